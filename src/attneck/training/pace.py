"""How fast a run trains, and when it will be done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

SPAN = 60.0
"""Seconds of training that the speed is measured over."""


class Pace:
    """The speed of training and the time left. Evaluations are no part of the one, and are in the other.

    What was done before, by a run that is resumed, is in neither.
    """

    def __init__(
        self,
        steps: int,
        period: int,
        start: int,
        history: list[dict[str, Any]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`period`: steps from one evaluation to the next, the last step being always scored."""
        self.steps, self.period, self.now = steps, period, now
        self.history = history
        self.evaluation: float | None = None  # seconds of the last one
        self.paused = 0.0  # seconds of all of them
        self.at, self.done = now(), start  # the last step, and when it was done
        self.since = (self.at, start)  # the last record
        self.seen = deque([(self.at, start)])  # training's own clock, and its step

    def step(self, step: int) -> None:
        """After step number `step` (1-based)."""
        self.at, self.done = self.now(), step
        trained = self.at - self.paused
        if len(self.seen) > 1 and trained - self.seen[-2][0] < SPAN / 100:
            self.seen.pop()
        self.seen.append((trained, step))
        while len(self.seen) > 2 and self.seen[1][0] <= trained - SPAN:
            self.seen.popleft()

    def record(self, step: int) -> float | None:
        """After an evaluation: training's steps a second since the one before."""
        (began, first), now = self.since, self.now()
        speed = (step - first) / max(1e-9, self.at - began) if step > first else None
        self.evaluation = now - self.at
        self.paused += self.evaluation
        self.since = (now, step)
        return speed

    @property
    def speed(self) -> float | None:
        """Steps a second; None before the first one."""
        (began, first), (now, last) = self.seen[0], self.seen[-1]
        return (last - first) / max(1e-9, now - began) if last > first else None

    def left(self) -> float | None:
        """Seconds to the end, the evaluations to come among them; None before the first step."""
        if self.speed is None:
            return None
        scored = self.since[1]
        evaluations = (
            (self.steps - 1) // self.period - scored // self.period + 1 if scored < self.steps else 0
        )
        return (self.steps - self.done) / self.speed + evaluations * self._evaluation(self.speed)

    def _evaluation(self, speed: float) -> float:
        """Seconds that one takes; before the first, what the last record took beyond its steps."""
        if self.evaluation is not None or not self.history:
            return self.evaluation or 0.0
        last = self.history[-1]
        before = self.history[-2]["step"] if len(self.history) > 1 else 0
        return max(0.0, last.get("seconds", 0.0) - (last["step"] - before) / speed)


def clock(seconds: float | None) -> str:
    """`3723.4` as '1:02:03', 90,000 as '1d 01h', None as '-:--'."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
