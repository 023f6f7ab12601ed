"""The learning rate is a function of the step alone."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attneck.training.recipe import Schedule, load_recipe
from attneck.training.schedule import lr_factor


def test_step_schedule_of_wide_resnets():
    schedule = Schedule(kind="step", milestones=[60, 120, 160], gamma=0.2)
    rates = [lr_factor(schedule, epoch * 10, 2000, 10) for epoch in (0, 59, 60, 119, 120, 160, 199)]
    assert rates == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.008, 0.008])


def test_warm_up_is_linear_from_its_start():
    schedule = Schedule(warmup_epochs=5, warmup_start=0.0067)
    rates = [lr_factor(schedule, step, 10_000, 100) for step in (0, 250, 500)]
    assert rates == pytest.approx([0.0067, 0.0067 + (1 - 0.0067) / 2, 1])


@pytest.mark.parametrize("batch", [64, 32, 128])
def test_the_detectors_schedule_is_that_of_table_15(batch):
    """0.1, 0.01, 0.001 at [15k, 17.5k] of 22.5k, warm-up from 0.0067; scaled for other batches."""
    recipe = load_recipe("coco-1x")
    unit = recipe.model_copy(update={"batch": batch}).unit(1848)
    steps = recipe.model_copy(update={"batch": batch}).total_steps(1848)
    assert steps == 22_500 * 64 / batch
    places = [0, 500, 14_999 * unit, 15_000 * unit, 17_499 * unit, 17_500 * unit, steps - 1]
    rates = [0.1 * lr_factor(recipe.schedule, int(step), steps, unit) for step in places]
    assert rates == pytest.approx([0.0067, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@given(st.integers(10, 500), st.integers(1, 50), st.floats(0, 3))
def test_cosine_falls_from_one_towards_zero(steps, per_epoch, warmup):
    schedule = Schedule(warmup_epochs=warmup)
    begin = round(warmup * per_epoch)
    rates = [lr_factor(schedule, step, steps, per_epoch) for step in range(begin, steps)]
    assert all(later < sooner for sooner, later in itertools.pairwise(rates))
    if rates:
        assert rates[0] == 1
        expected = 0.5 * (1 + math.cos(math.pi * (len(rates) - 1) / (steps - begin)))
        assert rates[-1] == pytest.approx(expected)
