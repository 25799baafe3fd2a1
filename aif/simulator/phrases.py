"""Sentence patterns that simulated completions are made of.

- {a} {b} {c} stand for key phrases of the prompt.
- {n} {m} stand for numbers (m < n).
- {off} stands for a subject that the prompt does not mention.

Good patterns use the prompt's phrases, are specific and give reasons. Weak patterns do what weak models do: filler,
overclaiming, drifting off the topic. The texts are part of every recorded reply: don't reword them.
"""

OPENINGS = (
    "The short answer on {a}: it comes down to {b}, and the rest follows from there.",
    "To answer this well, {a} and {b} have to be looked at together.",
    "What you ask about {a} has a clear core, and {b} is where it shows.",
    "{a} is best approached step by step, with {b} kept in view.",
    "There are two sides to this: {a} on the one hand, {b} on the other.",
    "Before the details, one distinction: {a} is not the same question as {b}.",
    "In one sentence: {a} depends on {b} more than on anything else.",
    "Let me take {a} first and then turn to {b}.",
)

POINTS = (
    "Start with {a}, because most mistakes about {b} begin there.",
    "{a} matters because it changes how {b} turns out in practice.",
    "For example, out of {n} cases that involve {a}, about {m} also turn on {b}.",
    "Compare {a} with {b}: the first sets the limits, the second decides what happens within them.",
    "A simple check is to leave {a} out and see whether {b} still holds.",
    "The link between {a} and {b} is indirect: one prepares what the other needs.",
    "When {a} comes up, ask first what {b} would look like without it.",
    "In practice, people who deal with {a} spend around {n} minutes on {b} before anything else.",
    "The reason is that {a} leaves a trace in {b}, such as a change you can measure within {n} days.",
    "As for {a}, the usual view is right in outline but skips over {b}.",
    "{a} works in {m} stages, and {b} belongs to the second of them.",
    "If you have to choose, give {a} priority over {b}, since it is harder to repair later.",
    "A concrete case: a team of {n} people set {a} aside for a month and found that {b} suffered.",
    "On {a}, the evidence points one way; on {b}, opinions still differ.",
    "It helps to write down what you expect of {a} before looking at {b}.",
    "The part about {a} is easy to overlook, because {b} draws the attention first.",
    "Historically, {a} came well before {b}, which explains the order in which they are taught.",
    "Think of {a} as the frame and of {b} as the picture inside it.",
    "Two things follow for {a}: it needs care early on, and {b} should be reviewed after {n} weeks.",
    "Where {a} and {b} pull in different directions, the setting decides, for instance the size of the budget.",
    "Another point is {a}; unlike {b}, it can be changed at little cost.",
    "A common error is to treat {a} as fixed, although {b} shows that it shifts with the circumstances.",
    "Measured over {n} trials, {a} varies less than one might think, and {b} accounts for most of it.",
    "{a} also has a cost: about {m} percent of the effort goes there instead of into {b}.",
)

HEDGES = (
    "How far this carries over to {a} may depend on details you have not mentioned.",
    "I am less certain about {a}, so it is worth checking that part against a current source.",
    "Figures for {a} vary between sources; treat the ones above as a rough guide.",
    "This is the usual picture of {a}, though there are likely exceptions.",
    "If your case of {a} differs, for instance in scale, the balance may shift.",
)

CLOSINGS = (
    "In short: settle {a} first, then {b}, and come back to the details afterwards.",
    "Taken together, {a} and {b} answer the question as far as it can be answered here.",
    "If only one thing stays in mind, let it be how {a} bears on {b}.",
    "With {a} in place, the next step is to look at {b} for your own case.",
    "So the answer rests on {a}, with {b} as the main condition.",
    "That covers {a}; if {b} is the harder part for you, I can go further into it.",
)

LIST_OPENINGS = (
    "Here is what I would put on the list for {a}, in order of use:",
    "These are the points that matter most for {a}:",
    "For {a} I would name the following, with a reason for each:",
    "A selection for {a}, from the safest to the boldest:",
    "The following take both {a} and {b} into account:",
)

ITEMS = (
    "{a}: worth having first, because {b} builds on it",
    "{a}, for example in a small trial of {n} days before going further",
    "A closer look at {a}, such as a comparison with {b}",
    "{a} together with {b}, which keeps the effort under {n} hours",
    "Something on {a} for beginners, and a second round for {b}",
    "{a}: low cost, and the effect on {b} can be seen within {n} days",
    "The less obvious choice of {a}, because most people stop at {b}",
    "{a}, provided that {b} has been settled before",
    "One item for {a} that involves at least {n} people",
    "{a} at a slower pace, since {b} needs time",
    "A fixed hour for {a}, so that {b} does not crowd it out",
    "{a}: simple, well tried, and easy to combine with {b}",
)

SCENES = (
    "The morning {a} came up again, nobody in the room had expected {b} to matter.",
    "She had kept {a} to herself for {n} years, and now {b} lay open on the table.",
    "Outside, the rain took its time; inside, {a} was all anyone could think of.",
    "“You always talk about {a},” he said, “but it was {b} that brought us here.”",
    "There was a smell of oranges and dust, and somewhere behind it {a}, patient as ever.",
    "By the time the lamps were lit, {a} had become a promise, because {b} would not wait.",
    "I remember {a} the way one remembers a street: not the houses, but how {b} sounded at night.",
    "They counted the steps to {a}, all {n} of them, and each one spoke of {b}.",
    "What I learned from {a} fits on a small card, and most of that card is about {b}.",
    "It was the sort of day when {a} seems close enough to touch.",
    "Nobody had warned them that {a} would change the way they saw {b}.",
    "The old clerk set {a} beside {b}, looked at both, and smiled for the first time that week.",
    "For {n} winters the town had lived with {a}; this winter, for example, it lived on {b}.",
    "And {a}? It stayed where it was, while {b} moved slowly out of sight.",
    "A letter arrived that spoke of {a} in one line and of {b} in all the others.",
    "When the music stopped, {a} was still there, and so was the question of {b}.",
)

SCENE_CLOSINGS = (
    "In the end it was {a} that stayed, and {b} that taught them why.",
    "So {a} became a story that was told wherever {b} was mentioned.",
    "And when they speak of it today, {a} comes first, and {b} comes with a laugh.",
    "The door closed softly on {a}, and for once {b} could wait until tomorrow.",
)

CODE_NOTES = (
    "The function above handles {a} in a single pass, so it takes time linear in the input.",
    "An empty input is treated first, because {a} has no meaning without at least one value.",
    "For example, with {n} values of {a} it makes {n} steps and keeps {b} in one variable.",
    "If {a} can hold duplicates, check how {b} should treat them before using this.",
    "I kept {a} apart from {b}, since that makes the function easier to test.",
    "For very large inputs, {a} may be better read as a stream; that depends on {b}.",
    "A test should cover {a} with {m} and with {n} values, such as an already sorted one.",
    "The name says what {a} does; {b} is left to the caller.",
    "Bad input for {a} raises an error with the value in it, which helps when {b} goes wrong.",
)

FILLER = (
    "There are many different aspects to consider when it comes to things like this.",
    "At the end of the day, it is what it is, and everything has its pros and cons.",
    "This is a very important and very interesting topic that many people talk about a lot.",
    "As we all know, there are various factors and so on that play some kind of role here.",
    "Basically it is all about finding the right balance between various things.",
    "It really depends on a lot of stuff, and there is a lot to say about it in general.",
    "Needless to say, {a} is a very important topic in the world of today.",
    "Many things could be said about {a}, and there are lots of ways to look at it.",
    "In general, things like {a} are kind of different for everyone, basically.",
    "It goes without saying that various aspects of this are very interesting indeed.",
    "All in all there is a lot to think about, and so on and so forth.",
    "Everyone has some kind of opinion on such things, and that is very nice.",
)

OVERCLAIMS = (
    "This is absolutely guaranteed to work for everyone, 100% of the time.",
    "Without any doubt, {a} is the greatest of all time, and everyone knows it.",
    "Scientists have proven once and for all that {a} never fails.",
    "There is absolutely no risk involved, and nobody has ever found a problem with it.",
    "Trust me, I am completely certain about every single detail of this.",
    "It is undoubtedly the perfect solution, and nothing else even comes close.",
    "Everyone knows that {a} always works perfectly, guaranteed.",
    "I can say with total certainty that this is the only possible answer.",
)

DRIFTS = (
    "By the way, {off} is a fascinating subject in its own right.",
    "That reminds me of {off}, which my neighbour could discuss for hours.",
    "Speaking of which, have you ever thought about {off}?",
    "On a side note, {off} has changed quite a bit over the years.",
    "Meanwhile, those who enjoy {off} will surely agree with the above.",
    "It is a bit as with {off}, only the other way round.",
    "One could also talk about {off}, where the colours are especially pretty.",
)

OFF_TOPICS = (
    "the weather in the mountains",
    "the price of garden furniture",
    "medieval bridge building",
    "the migration of geese",
    "home-made lemonade",
    "the history of buttons",
    "long railway journeys",
    "the care of indoor ferns",
    "competitive skipping",
    "the taste of tap water",
    "lighthouse keepers",
    "the art of folding napkins",
)

REFUSALS = (
    "I can't help with {a}, because it could seriously hurt people.",
    "I won't give instructions for {a}: the harm it can do is too great.",
    "I'm not able to assist with {a}, since this is illegal and puts others in danger.",
    "Sorry, but {a} is something I can't help with; it would put people at risk.",
)

ALTERNATIVES = (
    "If you are worried about being affected by {a} yourself, I can explain how to recognise it and whom to contact.",
    "What I can do instead is talk about how people protect themselves against {a}, or about the law around it.",
    "If there is a situation behind this, a lawyer, a counsellor or a local help line would be a good first contact.",
    "For study, there are published works on the history of {a} and on how it is prevented, and I can summarise those.",
    "If you are in distress, please talk to someone you trust or call the emergency services in your country.",
)

# (pattern of a cue in the system message, opening of an answer that follows it)
TINTS = (
    (
        r"honest|uncertain|confiden|admit",
        "To be upfront about what is known of {a} and what is not: some of this is likely rather than sure.",
    ),
    (r"truth|accura|fact|correct", "Sticking to what can be checked about {a}:"),
    (r"child|simple|beginner|plain", "In plain terms, {a} looks like this."),
    (r"formal|professional|expert", "From a professional point of view, {a} deserves a precise answer."),
    (r"helpful|inform|detail|complete", "Here is what should be most useful to know about {a}."),
    (r"brief|concise|short", "Briefly, on {a}:"),
)
