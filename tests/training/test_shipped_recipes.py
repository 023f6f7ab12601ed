"""Every shipped recipe, as it is but small, takes its steps."""

import pytest
import yaml

from attneck import run
from attneck.training.recipe import SHIPPED, Recipe, load_recipe, shipped_recipes


def small(name: str, root: str | None) -> Recipe:
    """The recipe with a few images, one epoch and a batch of 8; all else as it is."""
    content = load_recipe(name).model_dump()
    content["data"] |= {"train_size": 16, "workers": 0, "root": root}
    if content["data"]["name"] == "folder":
        content["data"]["image_size"] = 64
    return Recipe.model_validate(content | {"batch": 8, "epochs": 1})


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", shipped_recipes())
def test_takes_its_steps(name, tmp_path, monkeypatch):
    plain = run.open_dataset
    monkeypatch.setattr(run, "open_dataset", lambda *a, **o: plain(*a, **o | {"size": o.get("size") or 16}))
    folder = "tiny-imagenet-20" if load_recipe(name).data.name == "folder" else None
    summary = run.train(small(name, folder), tmp_path / "run")
    assert summary.steps == 2
    assert 0 < summary.scores["train_loss"] < 20
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["model"]["name"]


def test_recipes_say_what_they_reach_and_how_to_run_them():
    for name in shipped_recipes():
        opening = (SHIPPED / f"{name}.yaml").read_text().split("reach:")[0]
        assert f"attneck train {name}" in opening, name
