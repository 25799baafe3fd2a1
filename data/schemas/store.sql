-- The store: one DuckDB file, derived from the journal, open to anyone's SQL.
-- A store of another version is rebuilt from the journal; there are no migrations.

CREATE TABLE about (schema_version INTEGER, segment BIGINT, "offset" BIGINT, damaged BIGINT);

-- ---------------------------------------------------------------------------------------------------------------------
-- What came in

-- Every prompt ever read, as it last came in.
CREATE TABLE prompts (
    prompt_id VARCHAR PRIMARY KEY,          -- sha256 of the text (single user turn) or of the canonical messages
    messages  STRUCT(role VARCHAR, content VARCHAR)[],
    meta      JSON,                         -- the row's other columns
    material  JSON,                         -- by the rubric's slot: what a judge is shown beside the conversation
    mark      VARCHAR,                      -- what looks like a mark of reasoning in an earlier answer: `left: …`
    bytes     BIGINT                        -- of all of these
);

-- The prompts of the pipeline as its sources stand now, each once, in file order.
CREATE TABLE selection (position BIGINT, prompt_id VARCHAR, source VARCHAR);

-- The completions that came with the selected prompts, which then get none from the pool.
CREATE TABLE carried (
    prompt_id VARCHAR,
    n         USMALLINT,
    key       VARCHAR,                      -- in completions
    score     DOUBLE,                       -- as it came, if any
    source    VARCHAR                       -- whose scale the score is on
);

-- How many rows of each source were kept, and why others were not.
CREATE TABLE intake (source VARCHAR, reason VARCHAR, rows BIGINT);

-- Texts by digest: principles (text), rubrics (the folder's files) and material (what a judge was shown of a prompt's).
CREATE TABLE texts (digest VARCHAR PRIMARY KEY, kind VARCHAR, content JSON);

-- ---------------------------------------------------------------------------------------------------------------------
-- What was asked and answered

-- The completions the present plan wants: which model answers which prompt, steered and sampled how.
CREATE TABLE slots (
    position  BIGINT,
    prompt_id VARCHAR,
    slot      USMALLINT,
    key       VARCHAR,
    model     VARCHAR,                      -- its name in the pool
    identity  VARCHAR,                      -- declared model and revision
    sample    USMALLINT,
    seed      BIGINT,
    principle VARCHAR                       -- digest of its text, in texts
);

-- One row per completion had. Insert-only; those of former plans stay. One that came with its prompt has no call.
CREATE TABLE completions (
    key           VARCHAR PRIMARY KEY,
    prompt_id     VARCHAR,
    identity      VARCHAR,
    sample        USMALLINT,
    seed          BIGINT,
    principle     VARCHAR,
    system        VARCHAR,                  -- role, fold_into_user or none: how a system turn was sent
    text          VARCHAR,
    reasoning     VARCHAR,                  -- kept apart: never judged, never exported
    said          JSON,                     -- [content as it came, thoughts that came apart], where these are others
    mark          VARCHAR,                  -- what looks like a mark of reasoning: `left: …`, or `cut: …` in doubt
    finish        VARCHAR,                  -- stop or length
    output_tokens BIGINT,
    call_id       VARCHAR,                  -- in calls
    text_id       VARCHAR,                  -- a digest of the text: equal where texts are, but for how they are composed
                                            -- (NFC) and for blanks at their ends
    chars         BIGINT,                   -- of the text
    bytes         BIGINT                    -- of text and reasoning
);

-- One row per judgement read. `completions` are keys in the order the judge saw them.
CREATE TABLE judgements (
    key         VARCHAR PRIMARY KEY,
    prompt_id   VARCHAR,
    judge       VARCHAR,
    identity    VARCHAR,
    pass        USMALLINT,
    request     VARCHAR,                    -- which request of the rubric
    rubric      VARCHAR,                    -- digest of its files, in texts
    spec        VARCHAR,                    -- digest of what reached the wire besides prompt and completions
    material    VARCHAR,                    -- digest of what was shown beside the conversation, in texts
    form        VARCHAR,                    -- schema or text
    completions VARCHAR[],
    answers     VARCHAR[],                  -- the same keys, sorted
    shown       VARCHAR[],                  -- text_id of each of `answers` as the judge saw it, '' where not known; NULL: as it is
    text        VARCHAR,                    -- the judge's raw words
    said        JSON,                       -- as in completions
    ratings     STRUCT(completion VARCHAR, aspect VARCHAR, state VARCHAR, score DOUBLE, rationale VARCHAR, types INTEGER[])[],
    call_id     VARCHAR,
    bytes       BIGINT                      -- of text and rationales
);

-- Every call made, answered or not, with what it used: the bill. Insert-only.
CREATE TABLE calls (
    id               VARCHAR PRIMARY KEY,
    run              VARCHAR,
    stage            VARCHAR,               -- completion or judgement
    key              VARCHAR,
    prompt_id        VARCHAR,
    endpoint         VARCHAR,               -- the model's or judge's name in the pipeline
    n                USMALLINT,             -- which attempt at this item in its run
    started          TIMESTAMP,             -- UTC
    seconds          DOUBLE,
    verdict          VARCHAR,               -- answered, again, later, failed, refused
    kind             VARCHAR,               -- why it gave no usable reply
    message          VARCHAR,
    raw              VARCHAR,               -- what was received and could not be used
    input_tokens     BIGINT,
    cached_tokens    BIGINT,                -- of these: read from a prefix cache
    cache_write_tokens BIGINT,              -- and written to one at a price of its own
    output_tokens    BIGINT,
    reasoning_tokens BIGINT,
    usd              DOUBLE,                -- at the price declared then; NULL: not known
    bound            DOUBLE,                -- what it is at most, where it is not known; NULL: no price either
    sent             JSON,                  -- the settings as they went over the wire
    served           JSON                   -- what the server said of itself
);

-- What each run's spend stays below, by its own word: the last (highest n) holds. Lowered to what was counted where it
-- ended in order. Insert-only.
CREATE TABLE reserved (run VARCHAR, n BIGINT, usd DOUBLE, PRIMARY KEY (run, n));

-- Items without an answer now whose calls failed, by their last one: `later` (pending again on the next run, whether the
-- item, its endpoint or the provider was at fault) or `failed` (waits for --retry-failed).
CREATE TABLE failed (
    key       VARCHAR PRIMARY KEY,
    stage     VARCHAR,
    prompt_id VARCHAR,
    endpoint  VARCHAR,
    verdict   VARCHAR,
    kind      VARCHAR,
    message   VARCHAR,
    raw       VARCHAR,
    started   TIMESTAMP,                    -- UTC
    identity  VARCHAR,
    pass      USMALLINT,                    -- from here on: of a judgement
    request   VARCHAR,
    spec      VARCHAR,
    material  VARCHAR,
    answers   VARCHAR[],
    shown     VARCHAR[]
);

-- ---------------------------------------------------------------------------------------------------------------------
-- What came out

-- What became of each prompt when pairs were last made: `paired`, or why not.
CREATE TABLE outcomes (
    prompt_id VARCHAR,
    outcome   VARCHAR,
    aspects   VARCHAR[],                    -- that entered the score; as judge/aspect where there are several judges
    unrated   BIGINT                        -- completions that are left out of its pairs, having no rating
);

-- The pairs as they were last made, one row each.
CREATE TABLE preferences (
    prompt_id      VARCHAR,
    n              UINTEGER,                -- from 0 within the prompt
    chosen         VARCHAR,                 -- completion keys
    rejected       VARCHAR,
    score_chosen   DOUBLE,
    score_rejected DOUBLE
);

-- The score by which pairs were last made, of every completion that has one. `spread` is the highest of the judges' own
-- scores of it less the lowest; NULL where fewer than two judges have one.
CREATE TABLE scores (completion VARCHAR, score DOUBLE, spread DOUBLE);

-- Each judge's own score of a completion: its mean over the aspects that entered from it.
CREATE TABLE judge_scores (completion VARCHAR, judge VARCHAR, score DOUBLE);

-- The share of prompt hashes that goes to the test split, fixed at the first export that asked for so many.
CREATE TABLE splits (asked DOUBLE, threshold DOUBLE);

-- ---------------------------------------------------------------------------------------------------------------------
-- Of the run that goes on: made anew at its start

CREATE TABLE settled (position BIGINT, slot USMALLINT, answered BOOLEAN);
CREATE TABLE todo (seq BIGINT, model VARCHAR, position BIGINT, slot USMALLINT);
CREATE TABLE ready (seq BIGINT, position BIGINT);
CREATE TABLE incoming (position BIGINT, prompt_id VARCHAR PRIMARY KEY, source VARCHAR);
CREATE TABLE incoming_carried (seq BIGINT, prompt_id VARCHAR, key VARCHAR PRIMARY KEY, score DOUBLE, source VARCHAR);
CREATE TABLE specs (
    judge VARCHAR, identity VARCHAR, pass USMALLINT, request VARCHAR, listwise BOOLEAN, n USMALLINT, least USMALLINT,
    spec VARCHAR, instead VARCHAR           -- the spec of a request about one completion, where all together don't fit
);
CREATE TABLE materials (prompt_id VARCHAR PRIMARY KEY, digest VARCHAR);  -- what the present rubric shows, in texts
CREATE TABLE marks (name VARCHAR PRIMARY KEY, value VARCHAR);

-- ---------------------------------------------------------------------------------------------------------------------
-- Views: what a person asks for

-- Each slot of the present plan and how it stands: answered, failed, later or pending; `kind` and `message` of the last
-- word on it where it is failed or later. `carried`: the completion came with its prompt.
CREATE VIEW slot_states AS
SELECT s.*, a.key IS NOT NULL AS carried, f.kind, f.message, hash(c.text_id) AS shows,
       CASE WHEN c.key IS NOT NULL THEN 'answered' WHEN f.key IS NULL THEN 'pending' ELSE f.verdict END AS state
FROM slots s LEFT JOIN completions c ON s.key = c.key LEFT JOIN failed f ON s.key = f.key
LEFT JOIN carried a ON s.key = a.key;

-- Whether a judgement stands: the texts that it was shown are those there are. (`shows` is a number for each text: to gather
-- the texts' ids themselves takes twice the time of all the view.) In nearly every store they are, and nothing is compared,
-- which takes half the time of the view; `stands` is replaced by `shown_now` where some are not.
CREATE MACRO shown_now(shown, shows) AS
CASE WHEN shown IS NULL THEN true ELSE list_transform(shown, lambda id: hash(id)) = shows END;
CREATE MACRO stands(shown, shows) AS true;

-- Each judgement the present rubric wants, as if every completion came through that is still pending, and how it stands.
-- `whole`: all the prompt's slots are terminal, so that it can be asked for. A judgement stands while the texts that it was
-- shown are those there are. What the judge said is too long for it, and is to be asked one completion by one then, stands
-- there so, unless it was answered after all. (One look at what is coming, not one for
-- each kind of request: DuckDB 2.0 filters before it groups only where the groups are used once. Of 48,000 prompts, what
-- two of them need takes 9 ms so, and 80 otherwise.)
CREATE VIEW foreseen AS
WITH coming AS (
    SELECT position, prompt_id, bool_and(state IN ('answered', 'failed')) AS whole,
           list(key ORDER BY key) FILTER (state <> 'failed') AS answers,
           list(shows ORDER BY key) FILTER (state <> 'failed') AS shows
    FROM slot_states GROUP BY position, prompt_id
), wanted AS (
    SELECT c.position, c.prompt_id, c.whole, p.judge, p.identity, p.pass, p.request, p.listwise AND o.key IS NULL AS listwise,
           CASE WHEN o.key IS NULL THEN p.spec ELSE p.instead END AS spec, m.digest AS material, c.answers AS every,
           c.shows AS every_shows
    FROM coming c JOIN specs p ON CASE WHEN p.listwise THEN p.n = len(c.answers) ELSE len(c.answers) >= p.least END
    LEFT JOIN materials m ON c.prompt_id = m.prompt_id
    LEFT JOIN (FROM failed WHERE kind = 'context_overflow' AND stage = 'judgement') o
        ON c.prompt_id = o.prompt_id AND CASE WHEN p.instead IS NOT NULL THEN p.spec END = o.spec
        AND p.identity = o.identity AND p.pass = o.pass AND c.answers = o.answers
        AND o.material IS NOT DISTINCT FROM m.digest AND stands(o.shown, c.shows)
), one AS (
    SELECT *, unnest(CASE WHEN listwise THEN [every] ELSE list_transform(every, lambda key: [key]) END) AS answers
    FROM wanted
)
SELECT w.* EXCLUDE (every, every_shows, listwise), j.key AS judgement, f.key AS failure, f.kind, f.message,
       CASE WHEN j.key IS NOT NULL THEN 'answered' WHEN f.key IS NULL THEN 'pending' ELSE f.verdict END AS state
FROM one w
LEFT JOIN judgements j ON w.prompt_id = j.prompt_id AND w.spec = j.spec AND w.identity = j.identity AND w.pass = j.pass
    AND w.answers = j.answers AND j.material IS NOT DISTINCT FROM w.material
    AND stands(j.shown, CASE WHEN w.listwise THEN w.every_shows ELSE [w.every_shows[list_position(w.every, w.answers[1])]] END)
LEFT JOIN failed f ON w.prompt_id = f.prompt_id AND w.spec = f.spec AND w.identity = f.identity AND w.pass = f.pass
    AND w.answers = f.answers AND f.material IS NOT DISTINCT FROM w.material
    AND stands(f.shown, CASE WHEN w.listwise THEN w.every_shows ELSE [w.every_shows[list_position(w.every, w.answers[1])]] END);

-- Each judgement wanted of the present completions. A prompt has some as soon as all its slots are terminal and enough of
-- them are answered. (No state is NULL: what can't be known before the joins keeps DuckDB 2.0 from filtering before them,
-- which takes 60 ms of 10,000 prompts instead of 37.)
CREATE VIEW needed AS SELECT * EXCLUDE (whole) FROM foreseen WHERE whole OR state IS NULL;

-- Each rating of the present plan's completions, with who wrote and who judged, by the names they have now. (What is
-- used of a rating is taken out of it before the join: of 1.6 million ratings, means by model and aspect take 0.8 s so,
-- and 9 s and 300 MB more where whole ratings go through it.)
CREATE VIEW ratings AS
WITH said AS (
    SELECT key, prompt_id, completions, r.completion, r.aspect, r.state, r.score, r.rationale, r.types
    FROM (SELECT key, prompt_id, completions, unnest(ratings) AS r FROM judgements)
)
SELECT j.prompt_id, s.model, j.completion, j.aspect, j.state, j.score, j.rationale, j.types, d.judge, d.pass, d.request,
       list_position(j.completions, j.completion) AS shown_as, j.key AS judgement, a.key IS NOT NULL AS carried
FROM said j JOIN needed d ON d.judgement = j.key
JOIN slots s ON s.key = j.completion LEFT JOIN carried a ON s.key = a.key;

-- All that is wanted, and how it stands: completions that came with their prompts (stage `carried`), those asked of
-- models, judgements asked of judges as if every completion came through that is still pending. Whatever is counted as
-- done, failed or pending is counted here. `waits`: it can't be asked for yet, since completions of its prompt are pending.
CREATE VIEW items AS
SELECT CASE WHEN carried THEN 'carried' ELSE 'completion' END AS stage, model AS endpoint, position, prompt_id, state,
       kind, message, false AS waits
FROM slot_states
UNION ALL
SELECT 'judgement', judge, position, prompt_id, state, kind, message, state = 'pending' AND NOT whole FROM foreseen;

-- Who wrote what, best first: completions, and as pairs were last made the mean score, and how often a name is on each
-- side of a pair. Of scores of several sources, each on a scale of its own, there is no mean. Completions that came with
-- their prompts (`carried`) are apart from those asked of a model of that name.
CREATE VIEW standings AS
WITH own AS (
    SELECT s.prompt_id, s.key, s.model, a.key IS NOT NULL AS carried FROM slots s LEFT JOIN carried a ON s.key = a.key
), sides AS (
    SELECT model, carried, count(*) FILTER (s.key = o.chosen) AS chosen, count(*) FILTER (s.key = o.rejected) AS rejected
    FROM own s JOIN preferences o ON s.prompt_id = o.prompt_id GROUP BY ALL
), answered AS (
    SELECT model, carried, count(*) AS completions, count(*) FILTER (c.finish = 'length') AS truncated,
           avg(c.output_tokens) AS mean_tokens,
           CASE WHEN (SELECT count(DISTINCT source) FROM carried) < 2 THEN avg(x.score) END AS mean_score
    FROM own s JOIN completions c ON s.key = c.key LEFT JOIN scores x ON s.key = x.completion GROUP BY ALL
)
SELECT * FROM answered LEFT JOIN sides USING (model, carried)
ORDER BY mean_score DESC NULLS LAST, model, carried;

-- The same with the mean rating by aspect, which takes reading every rating.
CREATE VIEW leaderboard AS
WITH rated AS (
    SELECT model, carried, aspect, avg(score) AS mean FROM ratings
    WHERE state = 'rated' AND (SELECT count(DISTINCT source) FROM carried) < 2 GROUP BY ALL
), by_aspect AS (
    SELECT model, carried, map_from_entries(list((aspect, mean) ORDER BY aspect)) AS aspects FROM rated GROUP BY ALL
)
SELECT * FROM standings LEFT JOIN by_aspect USING (model, carried) ORDER BY mean_score DESC NULLS LAST, model, carried;

-- Calls, tokens and dollars by model and judge. `usd` is what is known (NULL where that is nothing and some had no price);
-- `unknown` is how much more it may be at most, of calls whose cost nothing tells (a timeout, a broken reply); `unpriced`
-- counts those that had no price, in neither.
CREATE VIEW spend AS
SELECT stage, endpoint, count(*) AS calls, count(*) FILTER (verdict = 'answered') AS answered,
       sum(input_tokens)::BIGINT AS input_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
       sum(cache_write_tokens)::BIGINT AS cache_write_tokens, sum(output_tokens)::BIGINT AS output_tokens,
       count(*) FILTER (usd IS NULL AND bound IS NULL) AS unpriced,
       CASE WHEN unpriced = 0 OR sum(usd) > 0 THEN sum(usd) END AS usd, sum(bound) AS unknown, sum(seconds) AS seconds
FROM calls GROUP BY ALL ORDER BY stage, endpoint;

-- The same of all calls, which is what counts against a budget: known + unknown. Here `unknown` holds besides what runs
-- that crashed had reserved and no call accounts for.
CREATE VIEW spent AS
WITH runs AS (
    SELECT run, sum(usd) AS usd, sum(bound) AS bound, count(*) FILTER (usd IS NULL AND bound IS NULL) AS unpriced
    FROM calls GROUP BY run
), ceilings AS (
    SELECT run, max_by(usd, n) AS usd FROM reserved GROUP BY run
), rest AS (
    SELECT greatest(0, round(c.usd - coalesce(r.usd, 0) - coalesce(r.bound, 0), 9)) AS usd  -- 1e-9: sums in other orders
    FROM ceilings c LEFT JOIN runs r ON c.run = r.run
)
SELECT coalesce(sum(usd), 0)::DOUBLE AS known,
       (coalesce(sum(bound), 0) + (SELECT coalesce(sum(usd), 0) FROM rest))::DOUBLE AS unknown,
       coalesce(sum(unpriced), 0)::BIGINT AS unpriced
FROM runs;

-- Why a model or judge was given up, if it was: its last refusal in the last run that asked it (what was in flight then
-- may be answered after it), else its last call, if that is one the next run makes again. (Calls stand in the order in
-- which they ended. Their `started` is a clock's, which may be put back in between.)
CREATE VIEW troubles AS
WITH last AS (SELECT stage, endpoint, max_by(run, rowid) AS run, max(rowid) AS at FROM calls GROUP BY ALL)
SELECT c.stage, c.endpoint, bool_or(c.verdict = 'refused') AS refused,
       max_by({'kind': c.kind, 'message': c.message}, (c.verdict = 'refused', c.rowid)) AS said
FROM calls c JOIN last USING (stage, endpoint, run)
WHERE c.verdict = 'refused' OR (c.rowid = last.at AND c.verdict IN ('again', 'later'))
GROUP BY ALL;

-- All that has no answer now, each item once, by the last word on it, with an example. `verdict`: failed (for good), later
-- (the next run asks again), refused (its provider takes no call until something is mended), waiting (for completions),
-- or pending (not asked yet). What was not asked since its model or judge was given up has that one's last word.
CREATE VIEW failures AS
WITH missing AS (
    SELECT stage, endpoint, state, waits, kind, count(*) AS items, min(message) AS message, min(prompt_id) AS prompt_id
    FROM items WHERE state <> 'answered' GROUP BY ALL
), told AS (
    SELECT m.stage, m.endpoint, CASE WHEN state = 'pending' AND NOT waits THEN said.kind ELSE m.kind END AS kind,
           CASE WHEN waits THEN 'waiting' WHEN state = 'failed' THEN 'failed'
                WHEN refused AND (state = 'pending' OR m.kind = said.kind) THEN 'refused'
                WHEN state = 'later' OR refused IS NOT NULL THEN 'later' ELSE 'pending' END AS verdict,
           items, CASE WHEN state = 'pending' AND NOT waits THEN said.message ELSE m.message END AS message, prompt_id
    FROM missing m LEFT JOIN troubles t ON m.stage = t.stage AND m.endpoint = t.endpoint
)
SELECT stage, endpoint, kind, verdict, sum(items)::BIGINT AS items, min(message) AS example, min(prompt_id) AS prompt_id
FROM told GROUP BY ALL ORDER BY items DESC, endpoint, kind;

-- Pairs with their texts.
CREATE VIEW pairs AS
SELECT o.prompt_id, o.n, p.messages, o.chosen, o.rejected, c.text AS chosen_text, r.text AS rejected_text,
       sc.model AS chosen_model, sr.model AS rejected_model, o.score_chosen, o.score_rejected, e.source
FROM preferences o
JOIN selection e ON o.prompt_id = e.prompt_id
JOIN prompts p ON o.prompt_id = p.prompt_id
JOIN completions c ON o.chosen = c.key
JOIN completions r ON o.rejected = r.key
JOIN slots sc ON o.chosen = sc.key
JOIN slots sr ON o.rejected = sr.key;

-- How far judges agree on an aspect: of every two, over the completions that both rated for it, the mean absolute
-- difference and the correlation (NULL where one of them always says the same).
CREATE VIEW agreement AS
WITH said AS (
    SELECT completion, aspect, judge, avg(score) AS score FROM ratings WHERE state = 'rated' GROUP BY ALL
)
SELECT a.judge, b.judge AS other, a.aspect, count(*) AS completions, avg(abs(a.score - b.score)) AS difference,
       CASE WHEN stddev_pop(a.score) > 0 AND stddev_pop(b.score) > 0 THEN corr(a.score, b.score) END AS correlation
FROM said a JOIN said b ON a.completion = b.completion AND a.aspect = b.aspect AND a.judge < b.judge
GROUP BY ALL ORDER BY a.judge, other, a.aspect;

-- The same of the judges' own scores, by which pairs were last made.
CREATE VIEW score_agreement AS
SELECT a.judge, b.judge AS other, count(*) AS completions, avg(abs(a.score - b.score)) AS difference,
       CASE WHEN stddev_pop(a.score) > 0 AND stddev_pop(b.score) > 0 THEN corr(a.score, b.score) END AS correlation
FROM judge_scores a JOIN judge_scores b ON a.completion = b.completion AND a.judge < b.judge
GROUP BY ALL ORDER BY a.judge, other;

-- The judges who rate a pair's rejected completion above its chosen one, with their own scores of the two.
CREATE VIEW dissent AS
SELECT p.prompt_id, p.n, c.judge, c.score AS score_chosen, r.score AS score_rejected
FROM preferences p
JOIN judge_scores c ON p.chosen = c.completion
JOIN judge_scores r ON p.rejected = r.completion AND c.judge = r.judge
WHERE r.score > c.score + 1e-9 * greatest(abs(r.score), abs(c.score));
