"""The plan: what a slot depends on, and that nothing else moves it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aif.core.errors import BadInput
from aif.core.resources import shipped
from aif.core.types import Message, Principle, Prompt, Sampling, digest, prompt_id
from aif.planning.plan import (
    PLAN_VERSION,
    PoolModel,
    Principles,
    SystemMode,
    completion_key,
    plan_digest,
    plan_slots,
    sent_messages,
)

SAMPLING = Sampling(max_tokens=1024, temperature=1.0, top_p=1.0)
USER = Message("user", "Why is the sky blue?")
OWN = Message("system", "Answer in French.")
HONEST = Principle("honesty", "Say how sure you are.")
PRINCIPLES = Principles(
    pools={"honesty": ("Say how sure you are.", "Admit doubt."), "helpfulness": ("Be concrete.",)},
    sources={"facts": {"honesty": 1.0}, "mixed": {"honesty": 0.25, "helpfulness": 0.75}},
    default={"helpfulness": 1.0},
)


def asked(*turns: Message, source: str = "facts") -> Prompt:
    return Prompt(prompt_id(turns), turns, source)


def numbered(n: int, source: str = "facts") -> Prompt:
    return asked(Message("user", f"Question {n}?"), source=source)


def model(name: str, **changes: Any) -> PoolModel:
    return replace(PoolModel(name, f"org/{name}", SAMPLING), **changes)


def pool(n: int, **changes: Any) -> list[PoolModel]:
    return [model(f"m{i}", **changes) for i in range(n)]


# --- identity --------------------------------------------------------------------------------------------------------


def test_slots_are_pinned() -> None:
    """Golden values: if these change, every completion ever paid for is called again."""
    planned = plan_slots(asked(OWN, USER), pool(3), 2, PRINCIPLES, 42)
    assert [(s.slot, s.model, s.sample, s.seed, s.key) for s in planned] == PINNED
    assert {s.principle.pool for s in planned if s.principle} == {"honesty"}


def test_slots_are_the_same_each_time_and_in_any_order_of_the_pool() -> None:
    models = [*pool(4, samples=2), model("warm", identity="org/m0", sampling=replace(SAMPLING, temperature=0.5))]
    for n in range(50):
        once = plan_slots(numbered(n), models, 5, PRINCIPLES, 7)
        assert once == plan_slots(numbered(n), models, 5, PRINCIPLES, 7)
        assert once == plan_slots(numbered(n), models[::-1], 5, PRINCIPLES, 7)


def test_slots_do_not_depend_on_the_order_of_a_principles_file() -> None:
    turned = Principles(
        PRINCIPLES.pools,
        {name: dict(list(s.items())[::-1]) for name, s in PRINCIPLES.sources.items()},
        PRINCIPLES.default,
    )
    assert plan_digest(pool(3), 2, PRINCIPLES, 1) == plan_digest(pool(3), 2, turned, 1)
    for n in range(50):
        prompt = numbered(n, "mixed")
        assert plan_slots(prompt, pool(3), 2, PRINCIPLES, 1) == plan_slots(prompt, pool(3), 2, turned, 1)


BASE: dict[str, Any] = {
    "prompt": asked(OWN, USER),
    "model": model("a"),
    "sample": 0,
    "seed": 5,
    "principle": HONEST,
}


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"prompt": asked(USER)}, True),
        ({"prompt": asked(OWN, USER, source="elsewhere")}, False),
        ({"prompt": replace(BASE["prompt"], meta={"row": 7})}, False),
        ({"model": model("renamed", identity="org/a")}, False),
        ({"model": model("a", samples=3)}, False),
        ({"model": model("a", identity="org/a@v2")}, True),
        ({"model": model("a", system="fold_into_user")}, True),
        ({"model": model("a", system="none")}, True),
        ({"model": model("a", sampling=replace(SAMPLING, temperature=0.9))}, True),
        ({"model": model("a", sampling=replace(SAMPLING, temperature=None))}, True),
        ({"model": model("a", sampling=replace(SAMPLING, top_p=0.9))}, True),
        ({"model": model("a", sampling=replace(SAMPLING, max_tokens=512))}, True),
        ({"sample": 1}, True),
        ({"seed": 6}, True),
        ({"principle": Principle("honesty", "Say how sure you are!")}, True),
        ({"principle": Principle("another pool", HONEST.text)}, False),
        ({"principle": None}, True),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_key_depends_on_what_reaches_the_model_and_on_nothing_else(changes: dict[str, Any], differs: bool) -> None:
    assert (completion_key(**{**BASE, **changes}) != completion_key(**BASE)) is differs


def test_without_a_system_turn_of_any_kind_the_modes_send_the_same() -> None:
    """A change of a model's `system` costs nothing if nothing that is sent changes."""
    modes: Sequence[SystemMode] = ("role", "fold_into_user", "none")
    keys = {completion_key(asked(USER), model("a", system=mode), 0, 5, None) for mode in modes}
    assert len(keys) == 1


@pytest.mark.parametrize(
    "changed",
    [
        plan_digest(pool(4), 2, PRINCIPLES, 1),
        plan_digest(pool(3, samples=2), 2, PRINCIPLES, 1),
        plan_digest(pool(3, system="none"), 2, PRINCIPLES, 1),
        plan_digest(pool(3, sampling=Sampling(5)), 2, PRINCIPLES, 1),
        plan_digest(pool(3), 3, PRINCIPLES, 1),
        plan_digest(pool(3), 2, None, 1),
        plan_digest(pool(3), 2, replace(PRINCIPLES, default={"honesty": 1.0}), 1),
        plan_digest(pool(3), 2, replace(PRINCIPLES, pools={**PRINCIPLES.pools, "honesty": ("Admit doubt.",)}), 1),
        plan_digest(pool(3), 2, PRINCIPLES, 2),
    ],
)
def test_a_plan_s_digest_changes_with_everything_it_depends_on(changed: str) -> None:
    assert changed != plan_digest(pool(3), 2, PRINCIPLES, 1)


# --- which models ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    size=st.integers(4, 9),
    new=st.integers(0, 10**6),
    seed=st.integers(),
)
def test_a_new_model_replaces_at_most_one_slot_and_changes_no_other(text: str, size: int, new: int, seed: int) -> None:
    prompt = asked(Message("user", text))
    before = plan_slots(prompt, pool(size), 4, PRINCIPLES, seed)
    after = plan_slots(prompt, [model(f"new{new}"), *pool(size)], 4, PRINCIPLES, seed)
    kept = [s for s in after if not s.model.startswith("new")]
    assert len(kept) >= 3
    # the same slots but for their numbers, in the same order
    assert [replace(s, slot=0) for s in kept] == [replace(s, slot=0) for s in before[: len(kept)]]


def test_a_new_model_with_several_samples_replaces_at_most_as_many_slots() -> None:
    lost = Counter[int]()
    for n in range(300):
        before = {s.key for s in plan_slots(numbered(n), pool(6), 4, PRINCIPLES, 3)}
        after = {s.key for s in plan_slots(numbered(n), [*pool(6), model("new", samples=2)], 4, PRINCIPLES, 3)}
        lost[len(before - after)] += 1
    assert set(lost) == {0, 1, 2}


def test_every_model_comes_as_often_as_any_other() -> None:
    """2,000 prompts, 4 of 8 models each: 1,000 expected, with a standard deviation of 22."""
    times = Counter(s.model for n in range(2000) for s in plan_slots(numbered(n), pool(8), 4, None, 0))
    assert set(times) == {f"m{i}" for i in range(8)}
    assert max(abs(count - 1000) for count in times.values()) < 90


def twice(**other: Any) -> list[PoolModel]:
    """A model with two settings, and three others."""
    hot = model("A-hot", identity="org/A")
    return [replace(hot, name="A-cool", **(other or {"sampling": COOL})), hot, *map(model, "BCD")]


COOL = replace(SAMPLING, temperature=0.2)


@pytest.mark.parametrize("other", [{"sampling": COOL}, {"system": "none"}], ids=["settings", "system"])
def test_a_model_with_two_settings_is_drawn_as_two_models_are(other: dict[str, Any]) -> None:
    """20,000 prompts. The outcome of each is one of several cells of equal chance: the first two in their order (20
    cells, 19 degrees of freedom), two whatever their order (10, 9), and which one of five is left out of four (5, 4).
    The thresholds are those of p = 0.0001; drawn by one fraction, they come to 30,577, 13,544 and 5,008."""
    pool = twice(**other)
    drawn = [[s.model for s in plan_slots(numbered(n), pool, 4, None, 1)] for n in range(20_000)]
    names = {one.name for one in pool}
    ordered = Counter(tuple(one[:2]) for one in drawn)
    left_out = Counter(next(iter(names.difference(one))) for one in drawn)
    pairs = Counter(frozenset(one[:2]) for one in drawn)
    for cells, n, most in ((ordered, 20, 50.8), (pairs, 10, 33.7), (left_out, 5, 23.5)):
        assert len(cells) == n
        assert sum((seen - 20_000 / n) ** 2 for seen in cells.values()) * n / 20_000 < most


def test_a_model_with_two_settings_draws_principle_and_seed_for_each() -> None:
    """Of two texts of equal chance both draw the same in half of 1,000 prompts, with a standard deviation of 16."""
    alike = 0
    for n in range(1000):
        cool, hot = sorted(
            (s for s in plan_slots(numbered(n), twice(), 5, PRINCIPLES, 1) if s.identity == "org/A"), key=repr
        )
        assert cool.seed != hot.seed
        alike += cool.principle == hot.principle
    assert abs(alike - 500) < 64


def test_the_first_setting_of_a_model_keeps_its_completions() -> None:
    """Whatever else is in the pool, in whatever order."""
    for n in range(50):
        alone = {s.key for s in plan_slots(numbered(n), twice()[:1] + twice()[2:], 4, PRINCIPLES, 1)}
        beside = {s.key for s in plan_slots(numbered(n), twice(), 5, PRINCIPLES, 1)}
        assert alone < beside == {s.key for s in plan_slots(numbered(n), twice()[::-1], 5, PRINCIPLES, 1)}


def test_pools_without_a_repeated_model_keep_every_slot_and_their_plan() -> None:
    """Golden values of the version before models with several settings were drawn separately."""
    pools = [
        pool(3),
        pool(5, samples=2),
        [model("a", samples=3), model("b", system="none", sampling=COOL), model("c", system="fold_into_user")],
    ]
    sources = ("facts", "mixed", "else")
    planned = [
        [asdict(slot) for slot in plan_slots(numbered(n, sources[n % 3]), one, 3, principles, seed)]
        for one in pools
        for seed in (0, 42, -7)
        for principles in (None, PRINCIPLES)
        for n in range(40)
    ]
    assert digest(planned) == "52325266a11ccf2dc2f8f5a5ea2bfb0ba18abdcdde6a17e5016aac2eb82d9871"
    plans = [plan_digest(one, 3, principles, 42) for one in pools for principles in (None, PRINCIPLES)]
    assert digest(plans) == "e31a69aa5b1d08c5fb2355e5a8c34764c0190d184919f2657d82c28dafbaeaf2"


def test_a_pool_with_a_repeated_model_is_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [plan_digest(one, 2, None, 1) for one in (twice(), twice()[1:])]
    monkeypatch.setattr("aif.planning.plan.REPEATED_MODEL_VERSION", PLAN_VERSION)
    after = [plan_digest(one, 2, None, 1) for one in (twice(), twice()[1:])]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


def test_samples_of_a_model_are_slots_of_their_own() -> None:
    planned = plan_slots(asked(USER), [model("a", samples=4)], 4, PRINCIPLES, 42)
    assert sorted(s.sample for s in planned) == [0, 1, 2, 3]
    assert [s.slot for s in planned] == [0, 1, 2, 3]
    assert len({s.key for s in planned}) == len({s.seed for s in planned}) == 4
    assert all(0 <= s.seed < 2**31 for s in planned)


def test_a_model_with_more_samples_keeps_those_it_had() -> None:
    few = plan_slots(asked(USER), [model("a", samples=2)], 2, PRINCIPLES, 42)
    many = plan_slots(asked(USER), [model("a", samples=5)], 5, PRINCIPLES, 42)
    assert {s.key for s in few} <= {s.key for s in many}


def test_another_seed_draws_differently() -> None:
    one, two = (plan_slots(asked(USER), pool(9), 4, PRINCIPLES, seed) for seed in (1, 2))
    assert {s.key for s in one}.isdisjoint(s.key for s in two)


def test_too_small_a_pool_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^5 completions a prompt, but the pool's models and samples make 4$"):
        plan_slots(asked(USER), [*pool(2), model("b", samples=2)], 5, None, 0)


# --- what is sent ----------------------------------------------------------------------------------------------------

ANSWER, MORE = Message("assistant", "Scattering."), Message("user", "And at dusk?")


@pytest.mark.parametrize(
    ("turns", "principle", "system", "sent"),
    [
        ([USER], None, "role", [USER]),
        ([USER], HONEST, "role", [Message("system", HONEST.text), USER]),
        ([USER], HONEST, "fold_into_user", [Message("user", f"{HONEST.text}\n\n{USER.content}")]),
        ([USER], HONEST, "none", [USER]),
        ([OWN, USER], None, "role", [OWN, USER]),
        ([OWN, USER], HONEST, "role", [Message("system", f"{OWN.content}\n\n{HONEST.text}"), USER]),
        (
            [OWN, USER],
            HONEST,
            "fold_into_user",
            [Message("user", f"{OWN.content}\n\n{HONEST.text}\n\n{USER.content}")],
        ),
        ([OWN, USER], HONEST, "none", [Message("user", f"{OWN.content}\n\n{USER.content}")]),
        ([Message("system", ""), USER], None, "role", [USER]),
        (
            [OWN, USER, ANSWER, MORE],
            None,
            "fold_into_user",
            [Message("user", f"{OWN.content}\n\n{USER.content}"), ANSWER, MORE],
        ),
        # a conversation that the assistant opens: nothing is put into its mouth
        (
            [OWN, ANSWER, MORE],
            None,
            "fold_into_user",
            [ANSWER, Message("user", f"{OWN.content}\n\n{MORE.content}")],
        ),
    ],
)
def test_system_modes(
    turns: list[Message], principle: Principle | None, system: SystemMode, sent: list[Message]
) -> None:
    assert sent_messages(asked(*turns), principle, system) == tuple(sent)


def test_a_model_without_system_turns_gets_no_principle() -> None:
    assert [s.principle for s in plan_slots(asked(USER), pool(2, system="none"), 2, PRINCIPLES, 0)] == [None, None]
    assert [s.principle for s in plan_slots(asked(USER), pool(2), 2, None, 0)] == [None, None]


# --- principles ------------------------------------------------------------------------------------------------------


def test_principles_come_in_the_shares_of_the_source() -> None:
    """4,000 draws; 27 is the standard deviation of the larger share's count."""
    drawn = Counter(PRINCIPLES.draw("mixed", "shares", n).pool for n in range(4000))
    assert abs(drawn["honesty"] - 1000) < 110
    assert drawn["honesty"] + drawn["helpfulness"] == 4000
    assert {PRINCIPLES.draw("facts", n).pool for n in range(50)} == {"honesty"}
    assert {PRINCIPLES.draw("not listed", n).pool for n in range(50)} == {"helpfulness"}


def test_every_text_of_a_pool_comes_as_often() -> None:
    drawn = Counter(PRINCIPLES.draw("facts", "texts", n).text for n in range(2000))
    assert set(drawn) == set(PRINCIPLES.pools["honesty"])
    assert abs(drawn["Admit doubt."] - 1000) < 100


def test_a_share_of_0_is_never_drawn_even_where_the_others_sum_to_less_than_1() -> None:
    """Sums within a millionth of 1 are accepted: the rest goes to a pool with a share."""
    short = replace(PRINCIPLES, default={"helpfulness": 0.001, "honesty": 0.0})  # most draws lie behind the last bound
    assert {short.draw("s", n).pool for n in range(200)} == {"helpfulness"}


POOLS = {"a": ["A"], "b": ["B"]}
GOOD: dict[str, Any] = {"pools": POOLS, "default": {"a": 1}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a mapping with at least one entry, got nothing"),
        ([], "expected a mapping"),
        ("pools", "expected a mapping with at least one entry, got 'pools'"),
        ({"default": {"a": 1}}, "pools: expected a mapping"),
        ({"pools": POOLS}, "default: expected a mapping"),
        ({**GOOD, "source": {}}, "unknown key 'source'; did you mean 'sources'?"),
        ({**GOOD, "pools": {"a": []}}, "pools.a: expected a list of texts, got nothing"),
        ({**GOOD, "pools": {"a": "Be honest."}}, "pools.a: expected a list of texts, got 'Be honest.'"),
        ({**GOOD, "pools": {"a": ["A", None]}}, "pools.a: text 2: expected a text, got nothing"),
        ({**GOOD, "pools": {"a": [{"Rule": "be honest"}]}}, "pools.a: text 1: expected a text, got keys and values"),
        ({**GOOD, "pools": {"a": ["  "]}}, "pools.a: text 1: expected a text"),
        ({**GOOD, "sources": None}, "sources: expected a mapping"),
        ({**GOOD, "sources": ["a"]}, "sources: expected a mapping"),
        ({**GOOD, "sources": {"s": 0.5}}, "sources.s: expected a mapping"),
        ({**GOOD, "sources": {"s": {"c": 1}}}, "sources.s: there is no pool 'c'; pools are a, b"),
        ({**GOOD, "sources": {"s": {"a": 0.5, "b": 0.4}}}, "sources.s: the probabilities sum to 0.9; they must"),
        ({**GOOD, "sources": {"s": {"a": 1.5, "b": -0.5}}}, "sources.s.a: expected a probability from 0 to 1"),
        ({**GOOD, "default": {"a": "1"}}, "default.a: expected a probability from 0 to 1, got '1'"),
        ({**GOOD, "default": {"a": True}}, "default.a: expected a probability from 0 to 1, got true"),
        ({**GOOD, "default": {"a": float("nan")}}, "default.a: expected a probability from 0 to 1, got nan"),
    ],
    ids=str,
)
def test_a_bad_principles_file_is_refused(data: Any, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        Principles.parse(data, "mine.yaml")
    assert str(raised.value).startswith("mine.yaml: ")
    assert message in str(raised.value)


def test_a_minimal_principles_file() -> None:
    assert Principles.parse(GOOD, "mine.yaml") == Principles({"a": ("A",), "b": ("B",)}, {}, {"a": 1.0})


def shipped_principles() -> dict[str, Any]:
    file = shipped("prompts", "principles", "ultrafeedback.yaml")
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data


def test_the_shipped_principles() -> None:
    principles = Principles.parse(shipped_principles(), "ultrafeedback.yaml")
    sizes = {pool: len(texts) for pool, texts in principles.pools.items()}
    assert sizes == {"helpfulness": 11, "truthfulness": 11, "honesty": 11, "verbalized_calibration": 1}
    texts = [text for pool in principles.pools.values() for text in pool]
    assert len(set(texts)) == 34
    assert all(text == text.strip() and "\n" not in text and 80 < len(text) < 400 for text in texts)
    for shares in [*principles.sources.values(), principles.default]:
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)


def test_the_shipped_principles_split_the_sources_as_ultrafeedback_does() -> None:
    principles = Principles.parse(shipped_principles(), "ultrafeedback.yaml")
    chat = {"helpfulness": 0.6, "truthfulness": 0.2, "honesty": 0.18, "verbalized_calibration": 0.02}
    assert {name: principles.sources[name] for name in ULTRAFEEDBACK} == {
        "evol_instruct": {"helpfulness": 1.0},
        "false_qa": {"truthfulness": 1.0},
        "truthful_qa": {"truthfulness": 1.0},
        "flan": {"helpfulness": 0.6, "truthfulness": 0.2, "verbalized_calibration": 0.2},
        "sharegpt": chat,
        "ultrachat": chat,
    }
    assert principles.default == chat


def test_the_shipped_principles_name_every_bundled_source() -> None:
    """A misspelt source would silently get the default."""
    rows = shipped("data", "prompts", "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    others = set(Principles.parse(shipped_principles(), "ultrafeedback.yaml").sources) - set(ULTRAFEEDBACK)
    assert {json.loads(row)["source"] for row in rows} == others


ULTRAFEEDBACK = ("evol_instruct", "false_qa", "truthful_qa", "flan", "sharegpt", "ultrachat")
PINNED = [
    (0, "m1", 0, 911197193, "89b30aa5084ecb3aa55a66440d415e16"),
    (1, "m0", 0, 1430070048, "574263b2aefda9bb171adb0006d6714f"),
]


def test_a_text_added_to_a_pool_takes_its_share_of_draws_and_changes_no_other() -> None:
    texts = [f"Principle number {n}." for n in range(9)]
    before = Principles.parse({"pools": {"a": texts}, "default": {"a": 1.0}}, "p")
    after = Principles.parse({"pools": {"a": [*texts, "A new one."]}, "default": {"a": 1.0}}, "p")
    draws = [(before.draw("s", n).text, after.draw("s", n).text) for n in range(2000)]
    moved = [new for old, new in draws if new != old]

    assert set(moved) == {"A new one."}
    assert 140 <= len(moved) <= 260
