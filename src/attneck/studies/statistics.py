"""What several seeds say: a mean, its spread, and the difference to the baseline, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite, nan
from statistics import fmean, stdev
from typing import Annotated

from pydantic import BeforeValidator

from attneck.files import number

Score = Annotated[float, BeforeValidator(number)]
"""As a report has it, where null is one that is no finite number."""
LEVEL = 0.95
ALIKE = 1e-9
"""Differences that are apart by this share of them at most are the same: the rest is rounding."""


@dataclass(frozen=True)
class Spread:
    """Of the scores of n seeds; `std` is the sample's, of n - 1, and None of one seed.

    Both are NaN where a score is no number, or infinite.
    """

    n: int
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """A variant's scores minus the baseline's, by seed: n of them, their mean, and its 95 % interval.

    The interval is Student's, of the paired differences; None where there are fewer than two, where all are
    the same, or where one is no number.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None

    def surely(self, *, lower: bool = False) -> bool:
        """Whether the interval lies above 0, or below."""
        return self.interval is not None and (self.interval[1] < 0 if lower else self.interval[0] > 0)

    def _decimals(self, least: int) -> int:
        """`least`, or so many that no end of an interval without 0 is printed as 0."""
        surely = self.surely() or self.surely(lower=True)
        nearest = min(map(abs, self.interval)) if self.interval and surely else 1.0
        return next(decimals for decimals in count(least) if round(nearest, decimals))

    def told(self, decimals: int = 2) -> str:
        """The mean, and the interval if there is one; with more decimals where that ends close to 0."""
        decimals = self._decimals(decimals)
        around = "" if self.interval is None else ", ".join(f"{end:+.{decimals}f}" for end in self.interval)
        return f"{self.mean:+.{decimals}f}" + (around and f" [{around}]")

    def verdict(self, decimals: int = 2) -> str:
        """In words."""
        if not isfinite(self.mean):
            return "a score is no number"
        if self.interval is None:
            if self.n < 2:
                return "one seed says nothing"
            return "the same difference each time" if self.mean else "no difference"
        low, high = self.interval
        if low <= 0 <= high:
            return "no difference that counts"
        return f"{'higher' if low > 0 else 'lower'} by {abs(self.mean):.{self._decimals(decimals)}f}"


def decimals_of(metric: str) -> int:
    """Of its scores, as they are printed: a loss is in nats, all else in per cent."""
    return 4 if metric == "loss" else 2


def spread(scores: Mapping[int, float]) -> Spread:
    """Of scores by seed, one or more."""
    values = list(scores.values())
    return Spread(len(values), _or_nan(fmean, values), _or_nan(stdev, values) if len(values) > 1 else None)


def told(scores: Mapping[int, float], decimals: int = 2) -> str:
    """mean ± standard deviation (n) of scores by seed; nothing of none."""
    if not scores:
        return ""
    found = spread(scores)
    around = f" ± {found.std:.{decimals}f}" if found.std is not None else ""
    return f"{found.mean:.{decimals}f}{around} ({found.n})"


def difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Over the seeds that both have; None where they share none."""
    pairs = [scores[seed] - baseline[seed] for seed in scores if seed in baseline]
    if not pairs:
        return None
    mean = _or_nan(fmean, pairs)
    if len(pairs) < 2 or not isfinite(mean) or stdev(pairs) <= ALIKE * max(1.0, *map(abs, pairs)):
        return Difference(len(pairs), mean, None)
    from scipy.stats import ttest_1samp

    found = ttest_1samp(pairs, 0).confidence_interval(LEVEL)
    return Difference(len(pairs), mean, (float(found.low), float(found.high)))


def pairs_of(pairs: int, seeds: int, apart: int) -> str:
    """What is to be said of a difference's pairs: that there are fewer than seeds, or of two machines."""
    said = [f"{pairs} pair{'s' * (pairs > 1)}"] if pairs < seeds else []
    said += [f"{apart} of two machines"] if apart else []
    return f" ({', '.join(said)})" if said else ""


def _or_nan(of: Callable[[Sequence[float]], float], values: Sequence[float]) -> float:
    """`of` finite values; of others the functions of `statistics` raise, each in its way."""
    return of(values) if all(map(isfinite, values)) else nan
