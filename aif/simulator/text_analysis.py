"""Text analysis by regular expressions: tokens, sentences, and what a prompt is about.

Simulated models (completions.py) and judges (judgements.py) both use it; they share no other code.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

AnswerForm = Literal["question", "list", "writing", "code"]

_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_WORD_OR_BREAK = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[.!?\n:;,()\"\[\]{}]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")

_STOP_WORDS = """
about above after again against all almost also although always among and another any anyone anything are around
because been before being below between both but can cannot could did does doing done down during each either else
every for from further gave get gets getting give given gives giving goes going gone got had has have having her
here hers him his how however into its itself just know let lets like likely made make makes making many may maybe
might more most much must need needs neither never none nor not now off often once one ones only onto other others
our ours out over own per please put really said same say says see seem seems shall she should show since some
someone something such take takes taking tell than that the their theirs them then there these they thing things
this those though through thus too toward towards under until upon use used user uses using very via want wants was
way ways were what whatever when where whether which while who whole whom whose why will with within without would
yet you your yours yourself are aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't it's let's
shouldn't that's there's they're wasn't we're weren't what's won't wouldn't you're i'm i've i'd
answer answers compose create describe discuss draft explain explaining find following generate help ideas identify
implement include including list name names outline provide rewrite short start started suggest summarise summarize
tips write writing written good better best few several different example examples sentence sentences word words
well able back work works even ever first last new old two three four five six seven eight nine ten
"""
_STOP = frozenset(_STOP_WORDS.split())

_CODE = re.compile(
    r"\b(python|javascript|typescript|sql|html|css|regex|regexp|bash|shell script|rust|golang|c\+\+|implement|algorithm"
    r"|source code|write code|function (that|to|which|for)|program (that|to|which)|script (that|to|which)"
    r"|method (that|to|which))",
    re.IGNORECASE,
)
_WRITING = re.compile(
    r"\b(write|compose|draft|rewrite)\b.*\b(poem|story|essay|e-?mail|letter|blog|post|speech|song|haiku|scene|review"
    r"|article|paragraph|toast|description|dialogue|monologue|advert\w*|slogan)\b|\b(poem|haiku|short story)\b",
    re.IGNORECASE | re.DOTALL,
)
_LIST = re.compile(
    r"\b(list|names of|ideas for|some ideas|suggest\w*|recommend\w*|steps|tips|ways (to|of|in)|what are some|top \d+"
    r"|(two|three|four|five|six|seven|eight|ten|\d+) (\w+ )?(\w+s))\b",
    re.IGNORECASE,
)
_HARM = re.compile(
    r"\b(bombs?|explosives?|ransomware|malware|phishing|meth|methamphetamine|counterfeit|launder\w*|blackmail|stalk\w*"
    r"|nerve agent|fake id|shoplift\w*|steal|break into|hack into|poison (someone|a person|my)|credit card numbers"
    r"|untraceable|hurt (someone|my|a person))\b",
    re.IGNORECASE,
)
_REQUEST = re.compile(
    r"\b(how (do|to|can|could|would)|write|make|give|build|create|teach|help|tell|steps?|explain)\b", re.IGNORECASE
)

PHRASES = 10  # key phrases of a prompt, at most
_HEAD, _TAIL = 1200, 600  # characters read of a long turn: the question is usually at its start or its end


def count_tokens(text: str) -> int:
    """Return the number of tokens in a text. A token is a punctuation mark, or a piece of up to six characters of a
    word."""
    return len(_TOKEN.findall(text))


def truncate(text: str, limit: int) -> tuple[str, int, bool]:
    """Cut a text to at most `limit` tokens. Return the text, its number of tokens, and whether it was cut."""
    ends = [match.end() for match in _TOKEN.finditer(text)]
    if len(ends) <= limit:
        return text, len(ends), False
    return text[: ends[limit - 1]] if limit else "", limit, True


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, in order."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Return the sentences and list items of a text, in order. Those of a single word are left out."""
    return [part for part in _SENTENCE.split(text) if part.count(" ")]


@lru_cache(maxsize=1 << 15)
def stem(word: str) -> str:
    """Return a word in lower case, without an English plural ending."""
    low = word.lower()
    if len(low) > 4 and low.endswith("ies"):
        return low[:-3] + "y"
    return low[:-1] if len(low) > 3 and low.endswith("s") and not low.endswith("ss") else low


def key_phrases(turns: Sequence[str]) -> tuple[str, ...]:
    """Return what the user's turns are about: up to ten phrases of one to three words. Empty only if the last turn has
    no words.

    - The phrases come from the last turn. If it gives fewer than three, earlier turns are used as well.
    - An *unlikely* word rarely names a topic: the verb that opens an instruction, a participle, an adverb. Unlikely
      words are used only if there are fewer than three other phrases.
    """
    phrases: dict[str, str] = {}
    for likely_only in (True, False):
        for turn in reversed(turns):
            if len(phrases) < 3:
                phrases.update((phrase.lower(), phrase) for phrase in _phrases(turn, likely_only))
    if not phrases and turns:
        phrases = {word: word for word in words(turns[-1])}
    return tuple(phrases.values())[:PHRASES]


def key_terms(phrases: Sequence[str]) -> frozenset[str]:
    """Return the stems of all words in the phrases."""
    return frozenset(stem(word) for phrase in phrases for word in _WORD.findall(phrase))


def answer_form(text: str) -> AnswerForm:
    """Return the form of answer that a user's turn asks for."""
    text = _head_and_tail(text)
    if _CODE.search(text):
        return "code"
    if _WRITING.search(text):
        return "writing"
    return "list" if _LIST.search(text) else "question"


def is_harmful(text: str) -> bool:
    """Return whether a user's turn asks for something that a model should decline: it has a cue word for harm and one
    for a request."""
    text = _head_and_tail(text)
    return bool(_HARM.search(text) and _REQUEST.search(text))


def _head_and_tail(text: str) -> str:
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"


def _phrases(turn: str, likely_only: bool) -> list[str]:
    """Return the most frequent phrases of a turn, at most PHRASES (10), in order of appearance.

    With `likely_only`, words that rarely name a topic are left out: the verb of an instruction, participles, adverbs.
    """
    counts: Counter[str] = Counter()
    spelling: dict[str, str] = {}
    for run in _runs(_head_and_tail(turn), likely_only):
        for start in range(0, len(run), 3):
            phrase = " ".join(run[start : start + 3])
            counts[phrase.lower()] += 1
            spelling.setdefault(phrase.lower(), phrase)
    frequent = {low for low, _ in counts.most_common(PHRASES)}
    return [phrase for low, phrase in spelling.items() if low in frequent]


def _runs(text: str, likely_only: bool) -> list[list[str]]:
    """Split a text at punctuation, stop words and very short words, and return the lists of words in between. With
    `likely_only`, split it also at words that rarely name a topic: the verb of an instruction, participles, adverbs."""
    runs: list[list[str]] = [[]]
    previous = "."  # the last word; "." at the start of a sentence
    for match in _WORD_OR_BREAK.finditer(text):
        piece = match.group()
        if not piece[0].isalnum():
            runs.append([])
            previous = "." if piece in ".!?\n" else previous
            continue
        starts_sentence = previous == "."
        if not _is_content(piece) or (likely_only and _is_unlikely_subject(piece, previous)):
            runs.append([])
        else:
            runs[-1].append(piece.lower() if starts_sentence and piece.istitle() else piece)
        previous = piece.lower()
    return [run for run in runs if run]


def _is_content(piece: str) -> bool:
    if piece.lower() in _STOP or len(piece) > 40:
        return False
    return len(piece) > 2 or piece[0].isdigit() or not piece.isascii() or (len(piece) == 2 and piece.isupper())


def _is_unlikely_subject(piece: str, previous: str) -> bool:
    return previous in (".", "to", "please", "you", "i") or (len(piece) > 4 and piece.endswith(("ed", "ly")))
