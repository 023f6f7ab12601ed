"""Machines that have a copy of the data each, and what is said where one of them has another."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from forked import as_ranks
from PIL import Image

from attneck import cli
from attneck.errors import UserError
from attneck.runs.copies import check_copies
from attneck.runs.train import train

RECIPE = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "folder", "root": "data", "image_size": 16},
    "batch": 4,
    "steps": 1,
    "pictures": False,
}


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """The folders that two machines have, with the same data each, and the same recipe."""
    monkeypatch.delenv("ATTNECK_DATA", raising=False)
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in "ab":
            (tmp_path / "0/data" / split / kind).mkdir(parents=True)
            for number in range(4):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "0/data" / split / kind / f"{number}.png")
    (tmp_path / "0/tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    return tmp_path


def alone_there(machines, words):
    """The end of `attneck WORDS` in the folder of this process's machine, where it is the only one."""
    os.environ["LOCAL_RANK"] = "0"
    os.chdir(machines / os.environ["RANK"])
    return cli.main(words)


def test_another_copy_is_refused_before_anything_is_written(machines, capfd):
    (machines / "1/data/train/b/3.png").unlink()
    assert as_ranks(alone_there, machines, ["train", "tiny.yaml", "--out", "run"]) == [2, 2]
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2  # one a machine
    assert all("has other data than" in line and "training images: 1 fewer in 'b'" in line for line in lines)
    assert not list((machines / "0").glob("run/*"))


def test_another_copy_is_not_scored(machines, monkeypatch, capfd):
    monkeypatch.chdir(machines / "0")
    train("tiny.yaml", "run")
    shutil.copytree(machines / "0/run", machines / "1/run")
    capfd.readouterr()
    assert as_ranks(alone_there, machines, ["eval", "run", "--out", "whole"]) == [0, 0]
    assert capfd.readouterr().out.count("step 1, 8 ") == 1  # the first process alone prints
    (machines / "1/data/val/b/3.png").unlink()
    assert as_ranks(alone_there, machines, ["eval", "run", "--out", "scores"]) == [2, 2]
    assert "held-out images: 1 fewer in 'b'" in capfd.readouterr().err


def test_the_same_images_with_other_labels_are_another_copy():
    others = [("one", {"classes": ["a", "b"], "data": {}}), ("two", {"classes": ["b", "a"], "data": {}})]
    everyone = SimpleNamespace(size=2, joined=lambda own: others)
    with pytest.raises(UserError, match="two has other data than one"):
        check_copies(everyone, ["a", "b"], dict)


def test_a_machine_says_itself_what_it_alone_lacks(machines, capfd):
    shutil.rmtree(machines / "1/data")
    assert as_ranks(alone_there, machines, ["train", "tiny.yaml", "--out", "run"])[1] == 2
    said = capfd.readouterr().err
    assert "data is not a folder: give the folder that holds" in said
    assert "process 0 of 2: another process has ended" in said
