"""The learning rate as a function of the step alone: no state to save."""

from __future__ import annotations

import math
from bisect import bisect_right

from attneck.training.recipe import Recipe, Schedule


def lr_factor(schedule: Schedule, step: int, steps: int, unit: float) -> float:
    """The share of the peak rate at `step` (0-based) of `steps`.

    Linear warm-up from `warmup_start` to 1, then cosine to 0 at `steps`; or the warm-up, and ×gamma at each
    milestone, also at one that lies within it.

    `unit`: the steps that a milestone's number, or a warm-up epoch, stands for (`Recipe.unit`).
    """
    warmup = schedule.warmup_steps or round(schedule.warmup_epochs * unit)
    rising = 1.0
    if step < warmup:
        rising = schedule.warmup_start + (1 - schedule.warmup_start) * step / warmup
    if schedule.kind == "step":
        passed = bisect_right([round(milestone * unit) for milestone in schedule.milestones], step)
        return float(rising * schedule.gamma**passed)
    share = max(0, step - warmup) / max(1, steps - warmup)
    return rising * 0.5 * (1 + math.cos(math.pi * share))


def no_warmup(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Before the first step: a line for a warm-up that is shorter than half a step, and the start of none."""
    wanted, start = recipe.schedule.warmup_epochs, recipe.schedule.warmup_start
    if recipe.schedule.warmup_steps or round(wanted * recipe.unit(steps_per_epoch)):
        return []
    if not wanted:
        return [f"schedule.warmup_start {start:g} changes nothing: the run has no warm-up"] if start else []
    return [
        f"schedule.warmup_epochs {wanted:.3g} is less than a step of the {steps_per_epoch} an epoch: the run "
        "has no warm-up"
    ]


def never_reached(recipe: Recipe, steps_per_epoch: int) -> list[str]:
    """Before the first step: a line for milestones that the run ends before."""
    steps, unit = recipe.total_steps(steps_per_epoch), recipe.unit(steps_per_epoch)
    late = [f"{mark:g}" for mark in recipe.schedule.milestones if round(mark * unit) >= steps]
    if not late:
        return []
    many, of = (recipe.steps, "step") if recipe.steps is not None else (recipe.epochs or 1, "epoch")
    run = f"{many} {of}{'s' * (many > 1)}"
    return [f"schedule.milestones {', '.join(late)} are never reached in {run}: give earlier ones"]
