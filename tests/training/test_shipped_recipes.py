"""Every shipped recipe, as it is but small, takes its steps."""

import json

import pytest
import yaml

from attneck import cli
from attneck.models import catalog
from attneck.models.detector_options import RCNNOptions
from attneck.runs import train as runs
from attneck.training.recipe import SHIPPED, Recipe, load_recipe, shipped_recipes

SMALL = {"depths": [1, 1, 1, 1], "channels": 32, "box_features": 64, "proposals": 50, "rois": 16}


def small(name: str) -> Recipe:
    """The recipe with a few images, two steps and a small batch; all else as it is."""
    recipe = load_recipe(name)
    content = recipe.model_dump()
    data, model = content["data"], content["model"]
    data |= {"train_size": 16, "val_size": 16, "workers": 0}
    content |= {"batch": 8, "epochs": 1, "steps": None, "steps_batch": None}
    if data["name"] == "folder":
        data |= {"root": "tiny-imagenet-20", "image_size": 64}
    if model["name"] in catalog.DETECTORS:
        data |= {"train_size": 4, "val_size": 4}
        content |= {"batch": 2, "schedule": {**content["schedule"], "warmup_steps": 0}}
        if isinstance(catalog.find(model["name"]).options, RCNNOptions):
            data["image_size"] = 128
            model["options"] |= SMALL
        if data["name"] == "voc0712":  # of which there is a part of one year
            data |= {"name": "voc2007", "val_split": "val"}
    return Recipe.model_validate(content)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", shipped_recipes())
def test_takes_its_steps(name, tmp_path):
    summary = runs.train(small(name), tmp_path / "run")
    assert summary.steps == 2
    assert 0 < summary.scores["train_loss"] < 40
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["model"]["name"]


def test_recipes_say_what_they_reach_and_how_to_run_them():
    for name in shipped_recipes():
        opening = (SHIPPED / f"{name}.yaml").read_text().split("reach:")[0]
        assert f"attneck train {name}" in opening, name


@pytest.mark.slow
def test_the_headers_have_the_ap_of_every_printed_row(capsys):
    """Of every row of the papers' detection tables that a recipe trains: its model and its AP."""
    assert cli.main(["papers", "--json"]) == 0
    papers = json.loads(capsys.readouterr().out)["papers"]
    rows = [row for paper in papers for table in paper["tables"] for row in table["rows"] if row["train"]]
    detectors = [row for row in rows if row["detector"]]
    assert len(detectors) > 50
    for row in detectors:
        words = row["train"].split()
        opening = (SHIPPED / f"{words[2]}.yaml").read_text().split("reach:")[0]
        assert row["detector"] in opening, row["train"]
        figures = [row["printed"][key] for key in ("ap_bbox", "map_50", "ap_mask") if key in row["printed"]]
        assert figures, row["train"]
        assert " / ".join(figures) in opening, (row["train"], figures)
