"""Times are medians of interleaved samples; peaks are what a call takes beyond what was there."""

import functools
from collections.abc import Callable

import pytest
import torch

from attneck.measure import memory, speed


class Clock:
    """A clock that only calls move on, by what each takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def call(self, name: str, *takes: float) -> Callable[[], None]:
        turns = iter(range(10**9))

        def run() -> None:
            self.order.append(name)
            self.now += takes[next(turns) % len(takes)]

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("perf_counter", "thread_time"):
        monkeypatch.setattr(speed.time, name, lambda: clock.now)
    monkeypatch.setattr(speed.time, "monotonic", lambda: clock.now)
    return clock


def test_times_are_medians_that_one_slow_sample_does_not_move(clock: Clock) -> None:
    odd = [1.0] * 3 + [100.0] + [1.0] * 16
    times = speed.interleave({"a": clock.call("a", *odd), "b": clock.call("b", 3.0)}, seconds=20)
    assert (times.median("a"), times.median("b")) == (1.0, 3.0)


def test_a_ratio_is_that_of_each_round() -> None:
    times = speed.Times(a=[1.0, 10.0, 100.0], b=[2.0, 20.0, 150.0])
    assert times.ratio("b", over="a") == 2.0


def test_calls_take_turns_in_changing_order(clock: Clock) -> None:
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    speed.interleave(calls, seconds=0, least=3)
    warm = (speed.WARM_UP + 1) * 3
    assert "".join(clock.order[warm:]) == "bcacababc"


def test_short_calls_are_repeated_within_a_sample(clock: Clock) -> None:
    times = speed.interleave({"a": clock.call("a", speed.SAMPLE / 50)}, seconds=0, least=2)
    assert times.median("a") == pytest.approx(speed.SAMPLE / 50)
    assert len(clock.order) == speed.WARM_UP + 1 + 2 * 50


def test_by_one_thread_it_is_processor_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: pytest.fail("waiting was counted"))
    assert speed.interleave({"a": clock.call("a", 1.0)}, seconds=0).median("a") == 1.0


def test_ceilings_are_positive() -> None:
    assert speed.bandwidth_ceiling() > 0


MIB = 1 << 20


def _takes(held: int, more: int) -> Callable[[], object]:
    kept = torch.ones(held * MIB, dtype=torch.uint8)
    return functools.partial(_uses, kept, more)


def _uses(kept: torch.Tensor, more: int) -> int:
    torch.ones(more * MIB, dtype=torch.uint8)  # freed at once: only the peak has it
    return len(kept)


def _fails() -> Callable[[], object]:
    raise ValueError("no such case")


@pytest.mark.skipif(not memory._RESET.exists(), reason="Linux alone")
def test_a_peak_is_what_the_call_takes_and_no_more() -> None:
    peak = memory.peak_elsewhere(_takes, 300, 64)
    assert abs(peak - 64 * MIB) < 3 * MIB  # the kernel counts resident pages in batches


def test_what_fails_elsewhere_says_so_here() -> None:
    with pytest.raises(ValueError, match="no such case"):
        memory.peak_elsewhere(_fails)
