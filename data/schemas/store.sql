-- The store: one DuckDB file, built from the journal, for anyone to query.
-- A store of another version is rebuilt from the journal; there are no migrations.

CREATE TABLE about (schema_version INTEGER, segment BIGINT, "offset" BIGINT, damaged BIGINT);

-- ---------------------------------------------------------------------------------------------------------------------
-- Input

-- All prompts ever read, as the sources last held them.
CREATE TABLE prompts (
    prompt_id VARCHAR PRIMARY KEY,          -- sha256 of the text (single user turn) or of the canonical messages
    messages  STRUCT(role VARCHAR, content VARCHAR)[],
    meta      JSON,                         -- the row's other columns
    material  JSON,                         -- by the rubric's slot: text shown to judges beside the conversation
    mark      VARCHAR,                      -- what looks like a reasoning tag in an assistant turn: `left: …`
    bytes     BIGINT                        -- of all these texts
);

-- The prompts in the pipeline's sources now, each once, in file order.
CREATE TABLE selection (position BIGINT, prompt_id VARCHAR, source VARCHAR);

-- The completions provided with selected prompts. Such prompts get no completions from models.
CREATE TABLE carried (
    prompt_id VARCHAR,
    n         USMALLINT,
    key       VARCHAR,                      -- in completions
    score     DOUBLE,                       -- as provided, if any
    source    VARCHAR                       -- the source whose scale the score is on
);

-- The number of rows of each source that were selected, or left out, by reason.
CREATE TABLE intake (source VARCHAR, reason VARCHAR, rows BIGINT);

-- Texts by digest: principles (text), rubrics (the folder's files) and material (as shown to judges).
CREATE TABLE texts (digest VARCHAR PRIMARY KEY, kind VARCHAR, content JSON);

-- ---------------------------------------------------------------------------------------------------------------------
-- Requests and answers

-- The plan: the completions wanted now, with the model, principle and sampling seed of each.
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

-- All completions, also those no longer planned. Insert-only. A provided completion has no call.
CREATE TABLE completions (
    key           VARCHAR PRIMARY KEY,
    prompt_id     VARCHAR,
    identity      VARCHAR,
    sample        USMALLINT,
    seed          BIGINT,
    principle     VARCHAR,
    system        VARCHAR,                  -- how the system message was sent: role, fold_into_user or none
    text          VARCHAR,
    reasoning     VARCHAR,                  -- never judged, never exported
    said          JSON,                     -- [content as received, reasoning received apart], if text differs
    mark          VARCHAR,                  -- what looks like a reasoning tag: `left: …` in the text, or `cut: …`
    finish        VARCHAR,                  -- stop or length
    output_tokens BIGINT,
    call_id       VARCHAR,                  -- in calls
    text_id       VARCHAR,                  -- a digest of the text, NFC-normalized and without spaces at its ends
    chars         BIGINT,                   -- of the text
    bytes         BIGINT                    -- of text and reasoning
);

-- All parsed judgements. `completions` are keys in the order shown to the judge.
CREATE TABLE judgements (
    key         VARCHAR PRIMARY KEY,
    prompt_id   VARCHAR,
    judge       VARCHAR,
    identity    VARCHAR,
    pass        USMALLINT,
    request     VARCHAR,                    -- which request of the rubric
    rubric      VARCHAR,                    -- digest of its files, in texts
    spec        VARCHAR,                    -- digest of the request apart from prompt and completions
    material    VARCHAR,                    -- digest of the material shown, in texts
    form        VARCHAR,                    -- schema or text
    completions VARCHAR[],
    answers     VARCHAR[],                  -- the same keys, sorted
    shown       VARCHAR[],                  -- text_id of each of `answers` when shown, '' if unknown; NULL: as now
    text        VARCHAR,                    -- the judge's reply
    said        JSON,                       -- as in completions
    ratings     STRUCT(completion VARCHAR, aspect VARCHAR, state VARCHAR, score DOUBLE, rationale VARCHAR, types INTEGER[])[],
    call_id     VARCHAR,
    bytes       BIGINT                      -- of text and rationales
);

-- All calls, answered or not, with their tokens and cost. Insert-only.
CREATE TABLE calls (
    id               VARCHAR PRIMARY KEY,
    run              VARCHAR,
    stage            VARCHAR,               -- completion or judgement
    key              VARCHAR,
    prompt_id        VARCHAR,
    endpoint         VARCHAR,               -- the model's or judge's name in the pipeline
    n                USMALLINT,             -- the attempt at this item in its run, from 1
    started          TIMESTAMP,             -- UTC
    seconds          DOUBLE,
    verdict          VARCHAR,               -- answered, again, later, failed, refused
    kind             VARCHAR,               -- the kind of failure, if there is no usable reply
    message          VARCHAR,
    raw              VARCHAR,               -- a received reply that could not be used
    input_tokens     BIGINT,
    cached_tokens    BIGINT,                -- those of input_tokens read from a cache
    cache_write_tokens BIGINT,              -- those written to a cache, if priced
    output_tokens    BIGINT,
    reasoning_tokens BIGINT,
    usd              DOUBLE,                -- at the price declared then; NULL: unknown
    bound            DOUBLE,                -- the most it can be, if unknown; NULL: no price
    sent             JSON,                  -- the settings as sent
    served           JSON                   -- the server's facts about itself
);

-- Ceilings that each run's spend stays below: the highest n is valid. A run that ends in order lowers it to its counted
-- spend. Insert-only.
CREATE TABLE reserved (run VARCHAR, n BIGINT, usd DOUBLE, PRIMARY KEY (run, n));

-- Unanswered items whose calls failed, with the last failure. `verdict` is `later` (retried by the next run) or `failed`
-- (permanent; retried with --retry-failed).
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
    pass      USMALLINT,                    -- from here on: judgements only
    request   VARCHAR,
    spec      VARCHAR,
    material  VARCHAR,
    answers   VARCHAR[],
    shown     VARCHAR[]
);

-- ---------------------------------------------------------------------------------------------------------------------
-- Results

-- The result of each prompt when pairs were last made: `paired`, or why not.
CREATE TABLE outcomes (
    prompt_id VARCHAR,
    outcome   VARCHAR,
    aspects   VARCHAR[],                    -- in the score; as judge/aspect if there are several judges
    unrated   BIGINT                        -- completions left out of its pairs: they have no rating
);

-- The pairs as last made, one row each.
CREATE TABLE preferences (
    prompt_id      VARCHAR,
    n              UINTEGER,                -- from 0 within the prompt
    chosen         VARCHAR,                 -- completion keys
    rejected       VARCHAR,
    score_chosen   DOUBLE,
    score_rejected DOUBLE
);

-- The score of each completion when pairs were last made. `spread` is the highest of the judges' scores minus the lowest;
-- NULL if fewer than two judges have one.
CREATE TABLE scores (completion VARCHAR, score DOUBLE, spread DOUBLE);

-- Each judge's own score of a completion: the mean over its aspects in the score.
CREATE TABLE judge_scores (completion VARCHAR, judge VARCHAR, score DOUBLE);

-- The share of prompt hashes in the test split, fixed at the first export with this test size (`asked`).
CREATE TABLE splits (asked DOUBLE, threshold DOUBLE);

-- ---------------------------------------------------------------------------------------------------------------------
-- The current run: replaced at the start of each

CREATE TABLE settled (position BIGINT, slot USMALLINT, answered BOOLEAN);
CREATE TABLE todo (seq BIGINT, model VARCHAR, position BIGINT, slot USMALLINT);
CREATE TABLE ready (seq BIGINT, position BIGINT);
CREATE TABLE incoming (position BIGINT, prompt_id VARCHAR PRIMARY KEY, source VARCHAR);
CREATE TABLE incoming_carried (seq BIGINT, prompt_id VARCHAR, key VARCHAR PRIMARY KEY, score DOUBLE, source VARCHAR);
CREATE TABLE specs (
    judge VARCHAR, identity VARCHAR, pass USMALLINT, request VARCHAR, listwise BOOLEAN, n USMALLINT, least USMALLINT,
    spec VARCHAR, instead VARCHAR           -- the spec for single completions, if all together don't fit
);
CREATE TABLE materials (prompt_id VARCHAR PRIMARY KEY, digest VARCHAR);  -- as the current rubric shows it; in texts
CREATE TABLE marks (name VARCHAR PRIMARY KEY, value VARCHAR);

-- ---------------------------------------------------------------------------------------------------------------------
-- Views for users

-- Each planned completion with its state: answered, failed, later or pending; `kind` and `message` of its last failure if
-- failed or later. `carried`: it was provided with its prompt.
CREATE VIEW slot_states AS
SELECT s.*, a.key IS NOT NULL AS carried, f.kind, f.message, hash(c.text_id) AS shows,
       CASE WHEN c.key IS NOT NULL THEN 'answered' WHEN f.key IS NULL THEN 'pending' ELSE f.verdict END AS state
FROM slots s LEFT JOIN completions c ON s.key = c.key LEFT JOIN failed f ON s.key = f.key
LEFT JOIN carried a ON s.key = a.key;

-- Whether a judgement is valid: the texts it was shown are the present ones. (`shows` is a hash of each text_id: gathering
-- the text_ids themselves takes twice as long as the whole view.) In nearly all stores it is always valid, and nothing is
-- compared, which halves the view's time; `stands` is replaced by `shown_now` once a text differs.
CREATE MACRO shown_now(shown, shows) AS
CASE WHEN shown IS NULL THEN true ELSE list_transform(shown, lambda id: hash(id)) = shows END;
CREATE MACRO stands(shown, shows) AS true;

-- Each judgement that the current rubric wants, with its state, as if every pending completion will be answered.
-- `whole`: no completion of the prompt is pending, so the judgement can be requested. A judgement counts only if the texts
-- it was shown are the present ones. If all completions together exceed a judge's context window and are to be judged one
-- by one, the judgements of single completions are here instead, unless the judge answered after all. (The pending
-- completions are grouped once, not for each kind of request: DuckDB 2.0 filters before grouping only if the groups are
-- used once. For 2 of 48,000 prompts this takes 9 ms in place of 80.)
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

-- Each judgement that can be requested or was: those of prompts without pending completions and with enough answered ones.
-- (No state is NULL: the condition keeps DuckDB 2.0 from filtering before the joins, which takes 60 ms for 10,000 prompts
-- instead of 37.)
CREATE VIEW needed AS SELECT * EXCLUDE (whole) FROM foreseen WHERE whole OR state IS NULL;

-- Each rating of the planned completions, with the present names of model and judge. (The ratings' fields are extracted
-- before the join: means by model and aspect of 1.6 million ratings take 0.8 s, in place of 9 s and 300 MB more.)
CREATE VIEW ratings AS
WITH said AS (
    SELECT key, prompt_id, completions, r.completion, r.aspect, r.state, r.score, r.rationale, r.types
    FROM (SELECT key, prompt_id, completions, unnest(ratings) AS r FROM judgements)
)
SELECT j.prompt_id, s.model, j.completion, j.aspect, j.state, j.score, j.rationale, j.types, d.judge, d.pass, d.request,
       list_position(j.completions, j.completion) AS shown_as, j.key AS judgement, a.key IS NOT NULL AS carried
FROM said j JOIN needed d ON d.judgement = j.key
JOIN slots s ON s.key = j.completion LEFT JOIN carried a ON s.key = a.key;

-- All items that the pipeline wants, with their state: provided completions (stage `carried`), completions of models, and
-- judgements, as if every pending completion will be answered. All counts of answered, failed and pending items are counts
-- of this view. `waits`: it can't be requested yet, since completions of its prompt are pending.
CREATE VIEW items AS
SELECT CASE WHEN carried THEN 'carried' ELSE 'completion' END AS stage, model AS endpoint, position, prompt_id, state,
       kind, message, false AS waits
FROM slot_states
UNION ALL
SELECT 'judgement', judge, position, prompt_id, state, kind, message, state = 'pending' AND NOT whole FROM foreseen;

-- Models, best first: their completions, mean score, and the number of pairs on each side, as pairs were last made. Scores
-- of several sources have different scales, and so no mean. Provided completions (`carried`) are counted apart from those
-- of a model of the same name.
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

-- The same with the mean rating by aspect, for which every rating is read.
CREATE VIEW leaderboard AS
WITH rated AS (
    SELECT model, carried, aspect, avg(score) AS mean FROM ratings
    WHERE state = 'rated' AND (SELECT count(DISTINCT source) FROM carried) < 2 GROUP BY ALL
), by_aspect AS (
    SELECT model, carried, map_from_entries(list((aspect, mean) ORDER BY aspect)) AS aspects FROM rated GROUP BY ALL
)
SELECT * FROM standings LEFT JOIN by_aspect USING (model, carried) ORDER BY mean_score DESC NULLS LAST, model, carried;

-- Calls, tokens and dollars by model and judge. `usd` is the known cost (NULL if it is 0 and some calls had no price);
-- `unknown` is the most that calls of unknown cost (a timeout, a broken reply) may add; `unpriced` is the number of calls
-- without a price, which are in neither.
CREATE VIEW spend AS
SELECT stage, endpoint, count(*) AS calls, count(*) FILTER (verdict = 'answered') AS answered,
       sum(input_tokens)::BIGINT AS input_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
       sum(cache_write_tokens)::BIGINT AS cache_write_tokens, sum(output_tokens)::BIGINT AS output_tokens,
       count(*) FILTER (usd IS NULL AND bound IS NULL) AS unpriced,
       CASE WHEN unpriced = 0 OR sum(usd) > 0 THEN sum(usd) END AS usd, sum(bound) AS unknown, sum(seconds) AS seconds
FROM calls GROUP BY ALL ORDER BY stage, endpoint;

-- The same of all calls. A budget counts known + unknown. Here `unknown` includes what crashed runs had reserved and no
-- call accounts for.
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

-- Why calls to a model or judge were stopped, if they were: its last refusal in the last run that called it (calls in
-- flight then may end later), else its last call, if the next run retries it. (Rows are in the order in which calls ended.
-- `started` is no order: a clock may be set back.)
CREATE VIEW troubles AS
WITH last AS (SELECT stage, endpoint, max_by(run, rowid) AS run, max(rowid) AS at FROM calls GROUP BY ALL)
SELECT c.stage, c.endpoint, bool_or(c.verdict = 'refused') AS refused,
       max_by({'kind': c.kind, 'message': c.message}, (c.verdict = 'refused', c.rowid)) AS said
FROM calls c JOIN last USING (stage, endpoint, run)
WHERE c.verdict = 'refused' OR (c.rowid = last.at AND c.verdict IN ('again', 'later'))
GROUP BY ALL;

-- All unanswered items, each counted once, by the last failure, with an example. `verdict`: failed (permanently), later
-- (the next run retries), refused (the provider refuses all calls until something is fixed), waiting (for completions), or
-- pending (never requested). Items never requested because calls to their model or judge were stopped have its failure.
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

-- How far each two judges agree on an aspect: over the completions that both rated, the mean absolute difference and the
-- correlation (NULL if one of them always gives the same rating).
CREATE VIEW agreement AS
WITH said AS (
    SELECT completion, aspect, judge, avg(score) AS score FROM ratings WHERE state = 'rated' GROUP BY ALL
)
SELECT a.judge, b.judge AS other, a.aspect, count(*) AS completions, avg(abs(a.score - b.score)) AS difference,
       CASE WHEN stddev_pop(a.score) > 0 AND stddev_pop(b.score) > 0 THEN corr(a.score, b.score) END AS correlation
FROM said a JOIN said b ON a.completion = b.completion AND a.aspect = b.aspect AND a.judge < b.judge
GROUP BY ALL ORDER BY a.judge, other, a.aspect;

-- The same for the judges' own scores, as pairs were last made.
CREATE VIEW score_agreement AS
SELECT a.judge, b.judge AS other, count(*) AS completions, avg(abs(a.score - b.score)) AS difference,
       CASE WHEN stddev_pop(a.score) > 0 AND stddev_pop(b.score) > 0 THEN corr(a.score, b.score) END AS correlation
FROM judge_scores a JOIN judge_scores b ON a.completion = b.completion AND a.judge < b.judge
GROUP BY ALL ORDER BY a.judge, other;

-- The judges that score a pair's rejected completion above its chosen one, with their own two scores.
CREATE VIEW dissent AS
SELECT p.prompt_id, p.n, c.judge, c.score AS score_chosen, r.score AS score_rejected
FROM preferences p
JOIN judge_scores c ON p.chosen = c.completion
JOIN judge_scores r ON p.rejected = r.completion AND c.judge = r.judge
WHERE r.score > c.score + 1e-9 * greatest(abs(r.score), abs(c.score));
