"""Moving averages that a run's scores would suffer from: too slow for its length, or of other sizes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from attneck.data.sampling import side_of
from attneck.training.layers import KEPT
from attneck.training.recipe import Recipe

MOST = 0.2
"""The share of an average's beginning that may be left in it when a run ends."""
TRIAL = 20
"""Steps of a run that is only tried, of which nothing is said."""


def too_slow(model: nn.Module, recipe: Recipe, steps: int, size: int | None = None) -> list[str]:
    """Before the first step: a line for each kind of average that `steps` would leave over MOST of its start.

    A BatchNorm with statistics that were loaded starts well. `size` is the held-out images'.
    """
    said: list[str] = []
    if steps < TRIAL:
        return said
    if (share := recipe.ema ** (steps - 1)) > MOST:
        said.append(
            f"ema {recipe.ema:g} is slow for {steps:,} steps: at the end {share:.0%} of the average would be "
            f"the weights of the first step; {1 - 5 / steps:.4g} would do"
        )
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and _starts(norm)]
    slow = min((norm.momentum for norm in norms if norm.momentum is not None), default=1.0)
    sides = recipe.data.image_sizes or []
    of_them = sides.count(size) / len(sides) if size in sides else 1  # see `of_one_size`
    if (share := (1 - slow) ** (steps * of_them * recipe.accumulate)) > MOST:
        some = f", of which {of_them:.0%} are of {size} pixels" if of_them < 1 else ""
        faster = "model.options norm_momentum 0.1 (of a classifier bn_momentum), or " if slow < 0.1 else ""
        said.append(
            f"BatchNorm's momentum {slow:g} is slow for {steps:,} steps{some}: at the end {share:.0%} of its "
            "mean and variance, which images are scored with, would be the 0 and 1 that it starts from; give "
            f"{faster}more steps"
        )
    return said


def of_another_size(model: nn.Module, recipe: Recipe, size: int | None) -> list[str]:
    """Before the first step: a line where BatchNorms will learn from no image of the size that is scored."""
    norms = (one for one in model.modules() if isinstance(one, _BatchNorm))
    sides = recipe.data.image_sizes or ()
    if not sides or size in sides or all(getattr(norm, KEPT, False) for norm in norms):
        return []
    return [
        f"data.image_sizes has no {size}, the size of the held-out images: BatchNorm's statistics will be of "
        "other sizes, and scores may be lower than by those of one's own, which attneck eval RUN "
        "--recalibrate 2000 takes"
    ]


@contextmanager
def of_one_size(model: nn.Module, recipe: Recipe, size: int | None, step: int) -> Iterator[None]:
    """In `step`, norms learn statistics only from images of the size that is scored, if that is trained too.

    An average over several sizes is right for none of them. Where the step's images have another size, each
    batch is normalised by its own statistics as ever, so gradients are the same.
    """
    sides = recipe.data.image_sizes or ()
    norms = []
    if size in sides and side_of(sides, recipe.seed, step) != size:
        norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = not norm.training  # one in evaluation mode goes on by what it has
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _starts(norm: _BatchNorm) -> bool:
    """Whether it will learn statistics, and has seen nothing yet."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or getattr(norm, KEPT, False):
        return False
    return bool((mean == 0).all() and (var == 1).all())
