"""Where a run is from: what began it, and that nothing of another start is left in its folder."""

import json
import sys

from attneck import cli
from attneck.runs.cost import cost_of
from attneck.runs.provenance import command
from attneck.runs.scored import SCORED
from attneck.runs.start import SKIPPED
from attneck.training.environment import environment
from attneck.training.recipe import Recipe

SMALL = ["--data.train-size", "16", "--data.val-size", "4", "--data.image-size", "24", "--no-pictures"]
SMALL += ["--batch", "8", "--epochs", "1"]


def test_a_command_is_one_that_a_shell_takes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["attneck", "train", "demo", "--reach", "90 % of it"])
    assert environment()["command"] == "attneck train demo --reach '90 % of it'"


def test_a_run_s_command_is_its_first_one(tmp_path):
    began, went_on = "attneck train demo --epochs 3", "attneck train runs/x --resume"
    around = {"command": went_on, "starts": [{"command": began}, {"command": went_on}]}
    (tmp_path / "environment.json").write_text(json.dumps(around))
    assert command(tmp_path) == began
    (tmp_path / "environment.json").write_text(json.dumps({"command": began}))  # of an older version
    assert command(tmp_path) == began


def test_a_new_start_keeps_nothing_of_one_before(tmp_path):
    """That one ended before its first checkpoint, and may have been of another network."""
    (tmp_path / "environment.json").write_text('{"starts": [{"step": 0}]}')
    (tmp_path / "cost.json").write_text('{"params": 1, "madds": 1}')
    (tmp_path / SCORED).write_text("{}")
    (tmp_path / SKIPPED).write_text('"train/cat/1.png"\n')
    words = ["train", "demo", *SMALL, "--out", str(tmp_path)]
    assert cli.main(words) == 0
    assert not any((tmp_path / name).exists() for name in ("cost.json", SCORED, SKIPPED))
    begun = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert len(begun) == 1
    (tmp_path / SKIPPED).write_text('"train/cat/2.png"\n')
    assert cli.main([*words, "--resume"]) == 0
    assert "cat/2.png" in (tmp_path / SKIPPED).read_text(), "it is of this run"
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert (starts[:1], len(starts)) == (begun, 2)


def test_what_a_network_costs_is_counted_once(tmp_path):
    """A file of something else counts as none; where none can be written it is counted again."""
    recipe = Recipe.model_validate({"model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}})
    facts = {"classes": ["a", "b"], "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1}
    cost = cost_of(tmp_path / "no folder", recipe, facts)
    for other in ('{"params": 1}', "[1, 2]", "{"):
        (tmp_path / "cost.json").write_text(other)
        assert cost_of(tmp_path, recipe, facts) == cost
    assert cost_of(tmp_path, None, None) == cost
