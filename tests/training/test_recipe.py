"""Recipes: strict, typed, and the same after a round trip."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attneck.errors import UserError
from attneck.training.recipe import (
    Recipe,
    differences,
    dump_recipe,
    load_recipe,
    parse_recipe,
    shipped_recipes,
)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_survive_a_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.reach, "a recipe says what it should reach"
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"optimzer": {}}, "there is no field 'optimzer'; perhaps you meant 'optimizer'"),
        ({"optimizer": {"lrr": 1}}, "there is no field 'optimizer.lrr'; perhaps you meant 'lr'"),
        ({"epochs": "many"}, "epochs='many'"),
        ({"epochs": 0}, "epochs=0"),
        ({"data": {"name": "cifra100"}}, "data.name='cifra100'"),
        ({"model": {"options": {"a": {"b": 1}}}}, "model.options.a"),
        ([1, 2], "source: "),
        ({"epochs": 3, "steps": 30}, "source: epochs and steps are given: leave one out"),
        ({"steps_batch": 64}, "steps_batch is given without steps"),
        ({"steps": 9, "schedule": {"warmup_epochs": 1}}, "beside steps give warmup_steps"),
        ({"schedule": {"warmup_epochs": 1, "warmup_steps": 9}}, "warmup_steps are given: leave one out"),
        ({"data": {"jitter": [0.5]}}, "data.jitter"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(content, says):
    with pytest.raises(UserError) as error:
        parse_recipe(content, "source")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_every_complaint_is_made_at_once():
    with pytest.raises(UserError, match=r"epochs.*batch"):
        parse_recipe({"epochs": -1, "batch": -1}, "source")


def test_a_file_that_is_not_yaml(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("a: [1,\n b: }")
    with pytest.raises(UserError, match="not YAML") as error:
        load_recipe(str(file))
    assert "\n" not in str(error.value)


def test_yaml_cannot_run_code(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("reach: !!python/object/apply:os.mkdir ['made']")
    with pytest.raises(UserError, match="not YAML"):
        load_recipe(str(file))


@given(st.floats(0.001, 1), st.integers(1, 300), st.sampled_from(["float32", "bfloat16"]))
def test_any_recipe_survives_a_round_trip(lr, epochs, precision):
    recipe = Recipe.model_validate({"optimizer": {"lr": lr}, "epochs": epochs, "precision": precision})
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


def test_differences_leave_out_what_moves_no_weight():
    old = Recipe()
    moved = Recipe.model_validate({"data": {"workers": 4, "root": "/elsewhere"}, "checkpoint_minutes": 1})
    assert differences(old, moved) == []
    assert differences(old, Recipe(batch=64)) == ["batch: 128 → 64"]


def test_epochs_and_steps():
    """Table 15's 6x is 135k steps at batch 64, and 67.5k at 128 (BoTNet A.2)."""
    assert Recipe().total_steps(7) == 7
    assert Recipe(epochs=3, batch=16).total_steps(7) == 21
    assert Recipe(steps=30).total_steps(7) == 30
    recipe = load_recipe("coco-6x")
    assert recipe.total_steps(1848) == 135_000
    assert Recipe.model_validate(recipe.model_dump() | {"batch": 128}).total_steps(924) == 67_500
    assert load_recipe("coco-1280").total_steps(924) == 67_500


def test_values_on_the_command_line_are_refused_in_a_line():
    from attneck.commands.train import parse

    for words, says in ((["--epochs", "0"], "epochs=0"), (["--steps", "10"], "epochs and steps are given")):
        with pytest.raises(UserError, match=says) as error:
            parse("demo", words)
        assert "\n" not in str(error.value)
    assert parse("coco-1x", ["--steps", "10", "--data.jitter", "0.5", "2"]).recipe.data.jitter == (0.5, 2.0)


def test_options_on_the_command_line_are_added_to_the_recipes_own():
    from attneck.commands.train import parse

    words = ["--model.options", "bam_dilation", "2", "depths", "1", "1", "1", "bam_combine", "max"]
    recipe = parse("demo", [*words, "--epochs", "3"]).recipe
    assert recipe.model.options == {"depths": [1, 1, 1], "bam_dilation": 2, "bam_combine": "max"}
    assert recipe.epochs == 3
    assert parse("demo", []).recipe == load_recipe("demo")
