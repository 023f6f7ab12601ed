"""CONTRIBUTING's worked examples: each is added to a copy of the package, as it says, and then used."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n# (\S+?)(?:, after: (.*?))?\n(.*?)```", re.DOTALL)

USE = """
from pathlib import Path
import attneck, torch
from attneck.data import open_dataset
from attneck.training.recipe import Recipe
from attneck.models.catalog import find

assert Path(attneck.__file__).is_relative_to(Path.cwd()), attneck.__file__

assert attneck.list_models("twostage*") == ["twostage", "twostage_32", "twostage_sigmoid"]
assert not attneck.list_detectors("*twostage*")
import timm
features = timm.create_model("attneck_twostage", features_only=True, in_chans=1)(torch.zeros(1, 1, 32, 32))
assert [tuple(x.shape) for x in features] == [(1, 16, 16, 16), (1, 32, 8, 8)]
assert attneck.create_model("twostage_32", num_classes=7)(torch.zeros(2, 3, 40, 24)).shape == (2, 7)
assert len(open_dataset("stripes", "val", size=12)) == 12
plain, gain = (attneck.create_model("cifar_resnet20", gain=on).state_dict() for on in (False, True))
assert [name for name in gain if name not in plain][0] == "layer1.0.se.weight"

small = {"epochs": 2, "batch": 20, "optimizer": {"lr": 0.05}}
for name in ("twostage", "twostage_sigmoid"):
    recipe = Recipe.model_validate(small | {"model": {"name": name}, "data": {"name": "stripes"}})
    summary = attneck.train(recipe, Path(name))
    assert summary.scores["val_top1"] == 100, summary.scores
    (rows,) = attneck.Run(name).predict([attneck.Run(name).samples(1)[0].image])
    assert rows[0]["category"] == "upright"

import pytest
assert pytest.main(["-q", "-p", "no:cacheprovider", "tests/layers/test_gain.py"]) == 0
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """The copy, with every example in it."""
    copy = tmp_path_factory.mktemp("contributing")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = BLOCK.findall(page)
    assert len(blocks) == page.count("```python") > 0
    for path, anchor, text in blocks:
        file = copy / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(inserted(file.read_text(), anchor, text) if anchor else text)
    return copy


def inserted(source: str, anchor: str, text: str) -> str:
    """`text` after the line `anchor`, as deep as it wants; its imports at the top."""
    lines = source.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.strip() == anchor][:1]
    depth = len(lines[number]) - len(lines[number].lstrip()) + 4 * anchor.endswith((":", "= {"))
    imports = [line for line in text.splitlines() if line.startswith("from ")]
    rest = "\n".join(line for line in text.splitlines() if not line.startswith("from "))
    lines.insert(number + 1, textwrap.indent(rest, " " * depth))
    top = next(number for number, line in enumerate(lines) if line.startswith(("from ", "import ")))
    if lines[top].startswith("from __future__"):
        top += 1
    return "\n".join([*lines[:top], *imports, *lines[top:], ""])


def run(copy: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(copy / "src")}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_work(extended: Path) -> None:
    """All of them in one process, the layer's own test too."""
    run(extended, "-c", USE)


def test_the_examples_are_formatted(extended: Path) -> None:
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    whole = [str(extended / path) for path, anchor, _ in blocks if not anchor]
    run(extended, "-m", "ruff", "format", "--check", "--line-length", "110", *whole)
