"""A schedule of steps on other data: counted in epochs it keeps its form, and too many epochs are said."""

import numpy as np
import pytest
import yaml

from attneck import cli
from attneck.commands.recipe_words import parse
from attneck.runs import train as runs
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import load_recipe, shipped_recipes
from attneck.training.schedule import lr_factor

IN_STEPS = [name for name in shipped_recipes() if load_recipe(name).steps]


@pytest.mark.parametrize("name", IN_STEPS)
def test_the_schedule_keeps_its_form(name):
    """At each share of the run the rate is that of the recipe in steps."""
    old, new = load_recipe(name), parse(name, ["--epochs", "40"]).recipe
    assert (new.steps, new.steps_batch, new.epochs) == (None, None, 40)
    an_epoch = 500
    steps, total = old.total_steps(an_epoch), new.total_steps(an_epoch)
    assert total == 40 * an_epoch
    for share in np.linspace(0.001, 0.999, 97):
        was = lr_factor(old.schedule, int(share * steps), steps, old.unit(an_epoch))
        now = lr_factor(new.schedule, int(share * total), total, new.unit(an_epoch))
        assert now == pytest.approx(was, abs=0.02)  # a step of 600 is that


def test_what_is_given_beside_goes_before():
    recipe = parse("coco-1x", ["--epochs=30", "--schedule.milestones", "20", "25"]).recipe
    assert recipe.schedule.milestones == [20, 25]
    assert parse("coco-1x", ["--steps", "None", "--epochs", "30"]).recipe.epochs == 30
    assert parse("demo", ["--epochs", "30"]).recipe.schedule == load_recipe("demo").schedule


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epochs", "30", "--steps", "9"], "epochs and steps are given"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "9" * 400], "epochs"),
        (["--epochs", "x"], "wanted {None}|INT"),
    ],
    ids=lambda value: value[1][:5] if isinstance(value, list) else "",
)
def test_refused_in_a_line(words, says, capsys):
    assert cli.main(["train", "coco-1x", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_more_than_a_thousand_epochs_are_said():
    words = runs.many_epochs(load_recipe("coco-1x"), 64)
    assert words is not None
    assert "22,500 steps of 64 are 22,500 epochs of the 64 training images: give --epochs" in words
    assert runs.many_epochs(load_recipe("coco-1x").model_copy(update={"batch": 4}), 16) == (
        words.replace("22,500 steps of 64", "360,000 steps of 4")
        .replace("22,500 ep", "90,000 ep")
        .replace("64 tr", "16 tr")
    )
    assert runs.many_epochs(load_recipe("coco-1x"), 117_266) is None
    assert runs.many_epochs(load_recipe("coco-overfit"), 96) is None
    assert runs.many_epochs(load_recipe("voc-overfit"), 60) is None
    assert runs.many_epochs(load_recipe("demo"), 20_000) is None


def test_they_are_said_at_the_start_of_a_run(tmp_path, monkeypatch, capsys):
    content = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "shapes", "image_size": 24, "train_size": 8, "val_size": 4},
        "batch": 8,
        "steps": 2000,
    }

    def stop(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("attneck.training.loop.train_loop", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.train(Recipe.model_validate(content), tmp_path / "run")
    assert "2,000 epochs of the 8 training images" in capsys.readouterr().err
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    assert (
        cli.main(["train", str(tmp_path / "tiny.yaml"), "--epochs", "3", "--out", str(tmp_path / "other")])
        == 130
    )
    said = capsys.readouterr().err
    assert "tiny.yaml counts in epochs here: 3, 0 of warm-up" in said
    assert "training images" not in said
