"""The learning rate is a function of the step alone."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import ALONE, Task, recipe, run

from attneck.training.recipe import Recipe, Schedule
from attneck.training.recipe_file import load_recipe
from attneck.training.schedule import lr_factor, never_reached, no_warmup


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


@st.composite
def schedules(draw):
    """A recipe with any schedule that it takes, and its steps per epoch."""
    epochs = draw(st.integers(1, 12))
    warmup = draw(st.one_of(st.just(0.0), st.floats(0, epochs), st.floats(0, min(1, epochs))))
    schedule = {"warmup_epochs": warmup, "warmup_start": draw(st.floats(0, 1))}
    if draw(st.booleans()):
        marks = draw(st.lists(st.floats(0.01, 14), min_size=1, max_size=4, unique=True))
        schedule |= {"kind": "step", "milestones": sorted(marks), "gamma": draw(st.floats(0.01, 1))}
    if draw(st.booleans()):
        del schedule["warmup_epochs"]
        schedule["warmup_steps"] = draw(st.integers(0, epochs))
    return Recipe(epochs=epochs, schedule=schedule), draw(st.integers(1, 40))


@settings(max_examples=150)
@given(schedules())
def test_any_schedule_rises_in_its_warm_up_and_falls_after_it(drawn):
    """Never under 0 or over 1; no jump but at a milestone; at its end as low as it should be."""
    recipe, per_epoch = drawn
    schedule, unit = recipe.schedule, recipe.unit(per_epoch)
    steps = recipe.total_steps(per_epoch)
    rates = [lr_factor(schedule, step, steps, unit) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    warmup = schedule.warmup_steps or round(schedule.warmup_epochs * unit)
    assert 0 <= warmup <= steps
    drops = {round(mark * unit) for mark in schedule.milestones}
    slope = (1 - schedule.warmup_start) / warmup if warmup else 0.0
    for step in range(1, warmup + 1):
        if step in drops:
            assert rates[step] <= (rates[step - 1] + slope) * schedule.gamma + 1e-9
        else:
            assert rates[step - 1] - 1e-9 <= rates[step] <= rates[step - 1] + slope + 1e-9
    assert all(later <= sooner for sooner, later in itertools.pairwise(rates[warmup:]))
    if schedule.kind == "cosine":
        assert rates[warmup] == 1
        assert rates[-1] == (0 if warmup < steps else 1)
        fall = math.pi / 2 / max(1, steps - warmup)
        assert all(sooner - later <= fall for sooner, later in itertools.pairwise(rates[warmup:]))
    else:
        passed = sum(round(mark * unit) <= steps for mark in schedule.milestones)
        assert rates[-1] == pytest.approx(schedule.gamma**passed)
        for step in set(range(warmup + 1, steps + 1)) - drops:
            assert rates[step] == rates[step - 1]


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ({"epochs": 25}, ["schedule.milestones 30, 60 are never reached in 25 epochs: give earlier ones"]),
        ({"epochs": 60}, ["schedule.milestones 60 are never reached in 60 epochs: give earlier ones"]),
        ({"epochs": 61}, []),
        (
            {"steps": 40, "steps_batch": 8, "batch": 16},
            ["schedule.milestones 60 are never reached in 40 steps"],
        ),
    ],
)
def test_milestones_that_the_run_ends_before_are_said(length, said):
    made = Recipe.model_validate({"schedule": {"kind": "step", "milestones": [30, 60]}} | length)
    found = never_reached(made, 10)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    steps, unit = made.total_steps(10), made.unit(10)
    last = lr_factor(made.schedule, steps - 1, steps, unit)
    assert last == pytest.approx(0.1 ** (2 - ("30" in str(found)) - ("60" in str(found))))
    assert never_reached(Recipe.model_validate(length), 10) == []


@pytest.mark.parametrize(
    ("schedule", "said", "first"),
    [
        ({"warmup_epochs": 0.04, "warmup_start": 0.1}, ["schedule.warmup_epochs 0.04 is less"], 1),
        ({"warmup_epochs": 0.06, "warmup_start": 0.1}, [], 0.1),
        ({"warmup_steps": 2, "warmup_start": 0.1}, [], 0.1),
        ({"warmup_start": 0.1}, ["schedule.warmup_start 0.1 changes nothing"], 1),
        ({}, [], 1),
    ],
)
def test_a_warm_up_of_no_step_is_said(schedule, said, first):
    made = Recipe.model_validate({"epochs": 2, "schedule": schedule})
    found = no_warmup(made, 10)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    assert lr_factor(made.schedule, 0, 20, 10) == first


def test_a_run_says_it_before_its_first_step(tmp_path, capsys):
    late = recipe(schedule={"kind": "step", "milestones": [1, 2]})
    for resume in (False, True):
        run(tmp_path, late, Task(ALONE), resume=resume)
        assert capsys.readouterr().err.count("milestones 2 are never reached in 2 epochs") == (not resume)
