"""Recipes: strict, typed, and the same after a round trip."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attneck import cli
from attneck.errors import UserError
from attneck.runs.run import Run
from attneck.training.recipe import Optimizer, Part, Recipe, Schedule
from attneck.training.recipe_file import differences, dump_recipe, load_recipe, parse_recipe, shipped_recipes


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
        ({"steps": 9, "schedule": {"warmup_epochs": 1}}, "beside steps set it to 0"),
        ({"schedule": {"warmup_epochs": 1, "warmup_steps": 9}}, "warmup_steps are given: leave one out"),
        ({"data": {"jitter": [0.5]}}, "data.jitter"),
        ({"data": {"name": "cifra100"}}, "; perhaps you meant 'cifar100'"),
        ({"data": {"train_split": "test"}}, "data.train_split='test'"),
        ({"precision": "bfloat"}, "input should be 'float32' or 'bfloat16'; perhaps you meant 'bfloat16'"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(content, says):
    with pytest.raises(UserError) as error:
        parse_recipe(content, "source")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"schedule": {"kind": "step"}}, "schedule.kind step has no milestones: give one or more"),
        (
            {"schedule": {"kind": "step", "milestones": [3, 2]}},
            "are [3.0, 2.0]: give numbers over 0 in rising",
        ),
        ({"schedule": {"kind": "step", "milestones": [2, 2]}}, "give numbers over 0 in rising order"),
        ({"schedule": {"kind": "step", "milestones": [-1, 2]}}, "give numbers over 0 in rising order"),
        ({"schedule": {"kind": "step", "milestones": [0, 2]}}, "give numbers over 0 in rising order"),
        ({"schedule": {"milestones": [3]}}, "schedule.milestones go with kind step, not cosine"),
        ({"schedule": {"gamma": 0.2}}, "schedule.gamma goes with kind step, not cosine: leave it out"),
        (
            {"epochs": 2, "schedule": {"warmup_epochs": 2.5}},
            "schedule.warmup_epochs is 2.5 of a run of 2 epochs",
        ),
        ({"schedule": {"warmup_epochs": 2}}, "schedule.warmup_epochs is 2 of a run of 1 epochs"),
        ({"steps": 9, "schedule": {"warmup_steps": 10}}, "schedule.warmup_steps is 10 of a run of 9 steps"),
        (
            {"steps": 20, "steps_batch": 64, "batch": 128, "schedule": {"warmup_steps": 11}},
            "schedule.warmup_steps is 11 of a run of 10 steps",
        ),
        ({"data": {"randaugment_layers": 3}}, "data.randaugment_layers goes with data.augment randaugment"),
        (
            {"data": {"name": "folder", "augment": "inception", "randaugment_magnitude": 15}},
            "data.randaugment_magnitude goes with data.augment randaugment, not inception: leave it out",
        ),
        ({"data": {"jitter": [0.5, 2]}}, "data.jitter goes with data.augment scale_jitter, not none"),
        ({"data": {"augment": "randaugment", "randaugment_magnitude": 31}}, "data.randaugment_magnitude=31"),
        ({"data": {"augment": "randaugment", "randaugment_layers": -1}}, "data.randaugment_layers=-1"),
        ({"data": {"image_size": 0}}, "data.image_size=0"),
        ({"data": {"image_size": 1 << 20}}, "data.image_size=1048576"),
        ({"data": {"train_size": 0}}, "data.train_size=0"),
        ({"data": {"val_size": -1}}, "data.val_size=-1"),
        ({"batch": 10, "accumulate": 3}, "a batch of 10 does not divide into 3 micro-batches"),
    ],
)
def test_what_would_have_no_effect_or_a_wrong_one_is_refused(content, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        parse_recipe(content, "source")
    assert "\n" not in str(error.value)


INFINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("value", INFINITE, ids=str)
@pytest.mark.parametrize(
    "field",
    [
        "model.options.drop_path",
        "model.surgery_options.start",
        "data.jitter",
        "schedule.milestones",
        *[
            f"{name}.{field}" if name else field
            for name, part in (("", Recipe()), ("optimizer", Optimizer()), ("schedule", Schedule()))
            for field, value in part
            if isinstance(value, float)
        ],
        "optimizer.clip_norm",
    ],
)
def test_no_number_is_infinite_or_nan(field, value):
    """Every field of a recipe that holds floats, options and lists included."""
    wanted = {
        "data.jitter": {"data": {"augment": "scale_jitter", "jitter": [0.1, value]}},
        "schedule.milestones": {"schedule": {"kind": "step", "milestones": [1, value]}},
    }
    content = value
    for step in reversed(field.split(".")):
        content = {step: content}
    with pytest.raises(
        UserError, match=rf"^source: {re.escape(field)}(\.1)?={value}: input should be a finite"
    ):
        parse_recipe(wanted.get(field, content), "source")


def test_the_written_out_defaults_of_other_kinds_are_no_mistake():
    """A run's recipe.yaml names every field, also those of other augmentations and schedules."""
    content = {
        "data": {
            "augment": "crop_flip",
            "randaugment_layers": 2,
            "randaugment_magnitude": 10,
            "jitter": None,
        },
        "schedule": {"kind": "cosine", "milestones": [], "gamma": 0.1},
    }
    assert parse_recipe(content, "source").data.augmentation() == {"augment": "crop_flip"}


def test_an_augmentation_goes_with_its_own_options():
    data = parse_recipe({"data": {"augment": "randaugment", "randaugment_magnitude": 15}}, "source").data
    assert data.augmentation() == {
        "augment": "randaugment",
        "randaugment_layers": 2,
        "randaugment_magnitude": 15,
    }
    data = parse_recipe({"data": {"augment": "scale_jitter", "jitter": [0.1, 2]}}, "source").data
    assert data.augmentation() == {"augment": "scale_jitter", "jitter": (0.1, 2.0)}


def test_a_warm_up_in_steps_may_not_outlast_the_epochs():
    recipe = Recipe.model_validate({"epochs": 2, "schedule": {"warmup_steps": 15}})
    assert recipe.total_steps(8) == 16
    with pytest.raises(ValueError, match="warmup_steps is 15 of a run of 14 steps"):
        recipe.total_steps(7)


def test_every_complaint_is_made_at_once():
    with pytest.raises(UserError, match=r"epochs.*batch"):
        parse_recipe({"epochs": -1, "batch": -1}, "source")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1,\n b: }", "not YAML that a recipe may have: while parsing"),
        ("#" * 65_537, "longer than 65,536 bytes"),
        ("epochs: 3\nepochs: 4", "'epochs' is given twice"),
        ("epochs: 3\n---\nepochs: 4", "line 2 begins a second document"),
        ("reach: [[[[[[[[x]]]]]]]]", "at line 1 deeper than 8 levels"),
        ("md5: [" + "x," * 4000 + "]", "at line 1 deeper than .* more than 4,000 values"),
        ("reach: &a x", "line 1 has an anchor or alias, 'a'"),
        ("epochs: !!int '3'", "line 1 has a tag"),
        ("epochs: 010", "line 1: YAML takes 010 for an octal"),
        ("model: {<<: {name: cifar_resnet20}}", "line 1 merges a mapping"),
    ],
)
def test_a_file_that_is_not_plain_yaml(tmp_path, text, says):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as error:
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
    from attneck.commands.recipe_words import parse

    for words, says in ((["--epochs", "0"], "epochs=0"), (["--steps", "10"], "epochs and steps are given")):
        with pytest.raises(UserError, match=says) as error:
            parse("demo", words)
        assert "\n" not in str(error.value)
    words = ["--steps", "10", "--schedule.warmup-steps", "0", "--data.jitter", "0.5", "2"]
    assert parse("coco-1x", words).recipe.data.jitter == (0.5, 2.0)


def test_options_on_the_command_line_are_added_to_the_recipes_own():
    from attneck.commands.recipe_words import parse

    words = ["--model.options", "bam_dilation", "2", "depths", "1", "1", "1", "bam_combine", "max"]
    recipe = parse("demo", [*words, "--epochs", "3"]).recipe
    assert recipe.model.options == {"depths": [1, 1, 1], "bam_dilation": 2, "bam_combine": "max"}
    assert recipe.epochs == 3
    assert parse("demo", []).recipe == load_recipe("demo")


def test_one_number_on_a_command_line_is_a_list_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"name": "shapes", "train_size": 8, "val_size": 4, "image_size": 24}
    model = {"name": "resnet26_thin", "options": {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 16]}}
    Path("tiny.yaml").write_text(
        yaml.safe_dump({"model": model, "data": data, "batch": 8, "epochs": 1, "pictures": False})
    )
    assert cli.main(["train", "tiny.yaml", "--model.options", "se", "5", "--out", "run"]) == 0
    weights = Run("run").weights(average=False)
    assert {key.split(".se.")[0] for key in weights if ".se." in key} == {"layer4.0"}


def fields(part=Recipe, path=()):
    """Every field of a recipe, by the names that lead to it."""
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
            yield from fields(field.annotation, (*path, name))
        else:
            yield (*path, name), field


@pytest.fixture(scope="module")
def help_texts():
    """What `attneck train demo --help` says of each option, and each box's title."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        patch.setenv("COLUMNS", "110")  # from some width on there are boxes side by side
        assert cli.main(["train", "demo", "--help"]) == 0
    rows = [row.strip("│| ") for row in told.getvalue().splitlines()]
    texts, flag = {"the recipe": ""}, "the recipe"
    for row in rows:
        if re.match("--[a-z]", row):
            flag = row.split()[0].rstrip(",")
            texts[flag] = ""
        elif not row.startswith(("╭", "╰")):
            texts[flag] += f"{row} "
    return texts


DEMO = load_recipe("demo")


@pytest.mark.parametrize(
    ("path", "field"), fields(), ids=lambda one: ".".join(one) if type(one) is tuple else ""
)
def test_every_field_has_a_help_text_and_shows_its_value(help_texts, path, field):
    text = help_texts[f"--{'.'.join(path).replace('_', '-')}"]
    said, _, default = text.partition("(default: ")
    assert len(said.split()) >= 3, text
    value = DEMO
    for name in path:
        value = getattr(value, name)
    if isinstance(value, dict):  # these are added to, and so they are no default
        default = help_texts["the recipe"]
    for part in re.findall(r"[\w.]+", str(value)):
        assert part in default, text


@pytest.mark.parametrize("path", [path for path, field in fields() if NoneType in get_args(field.annotation)])
def test_every_optional_field_can_be_taken_back(tmp_path, path):
    from attneck.commands.recipe_words import parse

    value = DEMO
    for name in path:
        value = getattr(value, name)
    recipe = parse("demo", [f"--{'.'.join(path).replace('_', '-')}", "None"]).recipe
    for name in path:
        recipe = getattr(recipe, name)
    assert recipe is None


def test_an_option_of_the_recipe_is_taken_back_by_none(tmp_path):
    from attneck.commands.recipe_words import parse

    file = tmp_path / "own.yaml"
    own = {"name": "cifar_resnet20", "options": {"activation": "silu", "depths": [1, 1, 1]}}
    more = {"surgery": "attend", "surgery_options": {"stage": -2, "heads": 2}}
    file.write_text(yaml.safe_dump({"model": own | more}))
    for words, options, surgery in (
        (["--model.options.activation", "None"], {"depths": [1, 1, 1]}, {"stage": -2, "heads": 2}),
        (["--model.options", "depths", "None", "activation", "relu"], {"activation": "relu"}, None),
        (
            ["--model.options.depths", "2", "2", "2", "--model.options", "activation", "None"],
            {"depths": [2] * 3},
            None,
        ),
        (["--model.surgery-options.stage=-1", "--model.surgery_options.heads", "None"], None, {"stage": -1}),
    ):
        model = parse(str(file), words).recipe.model
        assert options is None or model.options == options
        assert surgery is None or model.surgery_options == surgery
    with pytest.raises(UserError, match=r"--model\.options\.depths is given more than once"):
        parse(str(file), ["--model.options.depths", "2", "--model.options.depths", "3"])


def test_parts_that_do_not_go_together_are_refused_in_the_recipes_words():
    from attneck.commands.recipe_words import parse

    for words, says in (
        (["--optimizer.name", "adamw"], "demo: optimizer.name adamw is given without optimizer.lr"),
        (
            ["--optimizer.name", "adamw", "--optimizer.lr", "1", "--optimizer.momentum", "0.5"],
            "^optimizer.momentum: ",
        ),
        (["--optimizer.name", "admw", "--optimizer.lr", "1"], "; perhaps you meant 'adamw'"),
        (["--schedule.kind", "step"], "^schedule.kind step has no milestones"),
        (
            ["--optimizer.clip-norm", "0"],
            r"^optimizer.clip_norm=0.0: input should be greater than 0 \(attneck",
        ),
        (["--data.workers", "-1"], r"^data.workers=-1: input should be greater than or equal to 0 \(attneck"),
    ):
        with pytest.raises(UserError, match=says) as error:
            parse("demo", words)
        assert "\n" not in str(error.value)
        assert "pydantic" not in str(error.value)


def test_an_option_of_the_recipe_that_another_network_does_not_have_is_taken_back_in_words():
    from attneck.commands.recipe_words import parse

    words = ["--model.name", "efficientnet_b0"]
    with pytest.raises(UserError) as refused:
        parse("imagenet-350", words)
    assert str(refused.value) == (
        "attneck train imagenet-350: the recipe gives its network activation, which efficientnet_b0 does not "
        "have: take it back with --model.options.activation None"
    )
    made = parse("imagenet-350", [*words, *str(refused.value).partition("with ")[2].split()]).recipe
    assert made.model.options == {"drop_path": 0.2, "dropout": 0.2}
