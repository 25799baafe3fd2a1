"""Placement of servers on GPUs: no GPU twice, no endpoint left out, and judges after models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aif.core.errors import BadInput
from aif.core.types import Stage
from aif.servers.placement import CPU, GpuRequest, Shift, plan_shifts

STAGES: tuple[Stage, ...] = ("completion", "judgement")


@st.composite
def wishes(draw: st.DrawFn, size: int) -> list[GpuRequest]:
    """Up to nine wishes that each fit a machine of so many GPUs."""
    made = []
    for number in range(draw(st.integers(0, 9))):
        each = draw(st.integers(1, size))
        replicas = draw(st.none() | st.integers(1, size // each))
        made.append(GpuRequest(draw(st.sampled_from(STAGES)), f"m{number}", each, replicas))
    return made


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[GpuRequest], tuple[str, ...]]:
    size = draw(st.integers(1, 8))
    return draw(wishes(size)), tuple(str(10 + n) for n in range(size))


def names(shift: Shift) -> list[str]:
    return [place.name for place in shift]


@given(machines())
def test_every_request_has_its_servers_in_one_shift_and_no_gpu_is_used_twice(
    machine: tuple[list[GpuRequest], tuple[str, ...]],
) -> None:
    wanted, gpus = machine
    made = plan_shifts(wanted, gpus)
    for shift in made:
        used = [gpu for place in shift for gpu in place.gpus]
        assert len(used) == len(set(used))
        assert set(used) <= set(gpus)
    for wish in wanted:
        (at,) = [[place for place in shift if place.key == wish.key] for shift in made if wish.name in names(shift)]
        assert all(len(place.gpus) == wish.gpus for place in at)
        assert len(at) == wish.replicas if wish.replicas else at
    assert sum(len(set(names(shift))) for shift in made) == len(wanted)


@given(machines())
def test_idle_gpus_are_filled_evenly(machine: tuple[list[GpuRequest], tuple[str, ...]]) -> None:
    wanted, gpus = machine
    own = {wish.name: wish for wish in wanted}
    for shift in plan_shifts(wanted, gpus):
        idle = len(gpus) - sum(len(place.gpus) for place in shift)
        free = [own[name] for name in dict.fromkeys(names(shift)) if own[name].replicas is None]
        assert all(wish.gpus > idle for wish in free)
        counts = {wish: names(shift).count(wish.name) for wish in free}
        alike = [counts[wish] for wish in free if wish.gpus == min(one.gpus for one in free)]
        assert not alike or max(alike) - min(alike) <= 1


@given(machines())
def test_models_come_before_judges_unless_all_run_together(machine: tuple[list[GpuRequest], tuple[str, ...]]) -> None:
    wanted, gpus = machine
    made = plan_shifts(wanted, gpus)
    together = sum(wish.min_gpus for wish in wanted) <= len(gpus)
    stages = [sorted({place.stage for place in shift}) for shift in made]

    assert made == plan_shifts(wanted, gpus)
    assert len(made) <= 1 if together else all(len(stage) == 1 for stage in stages)
    assert together or stages == sorted(stages)
    # first-fit never leaves two shifts of a stage that could have been one
    for stage in STAGES:
        own = {wish.name: wish.min_gpus for wish in wanted if wish.stage == stage}
        sizes = [
            sum(own[name] for name in set(names(shift))) for shift in made if not together and shift[0].stage == stage
        ]
        assert all(a + b > len(gpus) for n, a in enumerate(sizes) for b in sizes[n + 1 :])


def test_all_run_together_where_they_fit_and_the_rest_of_the_gpus_is_shared() -> None:
    pool = [GpuRequest("completion", "a", 1), GpuRequest("completion", "b", 2), GpuRequest("judgement", "j", 1, 1)]
    (shift,) = plan_shifts(pool, tuple("01234567"))

    assert [(place.name, "".join(place.gpus)) for place in shift] == [
        ("a", "0"), ("a", "1"), ("a", "2"), ("b", "34"), ("b", "56"), ("j", "7"),
    ]  # fmt: skip


def test_on_a_cpu_one_runs_after_another() -> None:
    pool = [GpuRequest("judgement", "j", 1), GpuRequest("completion", "a", 1), GpuRequest("completion", "b", 1)]

    assert [names(shift) for shift in plan_shifts(pool, CPU)] == [["a"], ["b"], ["j"]]


@pytest.mark.parametrize(
    ("wish", "gpus", "said"),
    [
        (
            GpuRequest("completion", "big", 4),
            ("0", "1"),
            r"big: launch.gpus is 4, so it needs 4 GPUs; here are 2 .*0, 1",
        ),
        (
            GpuRequest("completion", "big", 2, 3),
            ("0",),
            "launch.gpus is 2, launch.replicas 3, so it needs 6 GPUs; here are 1 GPU ",
        ),
        (GpuRequest("judgement", "big", 2), CPU, "launch.gpus is 2, but this machine has no GPU"),
        (GpuRequest("judgement", "big", 1, 2), CPU, "launch.replicas 2, but this machine has no GPU"),
    ],
)
def test_a_request_that_can_never_fit_is_reported_with_the_gpus_there_are(
    wish: GpuRequest, gpus: tuple[str, ...], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        plan_shifts([GpuRequest("completion", "small", 1), wish], gpus)


def test_without_requests_there_is_no_shift() -> None:
    assert plan_shifts([], CPU) == ()
