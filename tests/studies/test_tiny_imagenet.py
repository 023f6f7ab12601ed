"""The study of Tiny-ImageNet: the ImageNet recipes' regimes, each of its networks trained for two steps."""

from pathlib import Path

import pytest
from noise_photos import write_photos

from attneck import cli
from attneck.data.pack import pack
from attneck.runs.train import train
from attneck.studies.study import Cell, cells, load_study
from attneck.training.recipe_file import flat, load_recipe

MADE = [cell for cell in cells(load_study("tiny-imagenet"), Path("x")) if cell.seed == 0]
SCALED = {
    "epochs",
    "batch",
    "schedule.warmup_epochs",
    "ema",
    "data.root",
    "data.image_size",
    "model.name",
    "seed",
    "reach",
}
NAMES = {cell.variant for cell in MADE}
SHORT = {"regime_350/botnet_s1_bam/0", "regime_100/botnet/0"}
"""What is trained in the short form: `test_study.py` builds each network."""


def test_a_regime_is_that_of_its_recipe() -> None:
    """Whatever is not scaled; an option of the model beside what makes it another network."""
    for cell in MADE:
        theirs = flat(load_recipe(f"imagenet-{cell.problem.removeprefix('regime_')}"))
        ours = flat(cell.recipe)
        own = {"model.options.bam", "model.options.c5_stride"}
        different = {name for name in theirs | ours if theirs.get(name) != ours.get(name)}
        assert different <= SCALED | own, cell.name
        assert (theirs["ema"] > 0) == (ours["ema"] > 0)
        assert ours["epochs"] * 10 == theirs["epochs"]
    assert (len(MADE), len(NAMES)) == (18, 6)


def test_its_runs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "tiny-imagenet", "--list", "--only", "regime_350"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18
    assert all(line.startswith("attneck train imagenet-100 ") for line in lines)
    assert all("--data.root tiny-imagenet-20-shards" in line for line in lines)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of 64×64 in the layout of the real ones, packed."""
    root = tmp_path_factory.mktemp("data") / "tiny-imagenet-20"
    write_photos(root, {"train": 4, "val": 1}, ("n01443537", "n01784675"), 64, "JPEG")
    pack(root, root.with_name("tiny-imagenet-20-shards"), 1 << 20, lambda indices, _: indices)
    return root.parent


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, id=cell.name, marks=() if cell.name in SHORT else pytest.mark.slow)
        for cell in MADE
        if cell.problem == "regime_350" or cell.variant == "botnet"
    ],
)
def test_each_is_built_and_takes_two_steps(
    cell: Cell, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network in the regime with the most options, and one network in every regime."""
    monkeypatch.setenv("ATTNECK_DATA", str(photos))
    recipe = cell.recipe.model_copy(update={"batch": 4, "epochs": 1, "pictures": False})
    summary = train(recipe, tmp_path / "run")
    assert summary.steps == 2
    assert summary.best is not None
    assert summary.best.key == ("ema_top1" if recipe.ema else "val_top1")
