"""An evaluation counts every held-out image once, on any number of processes."""

import pytest
import torch
from torch import Tensor, nn

from attneck.tasks.classification import Classification
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

IMAGES = 23
"""Which neither 2 nor 3 processes share evenly, nor batches of 4."""
RECIPE = Recipe.model_validate(
    {"data": {"name": "shapes", "image_size": 24, "train_size": 10, "val_size": IMAGES}, "batch": 10}
)


class Noting(World):
    """A process that is alone here: what it would have exchanged with the others is kept."""

    def total(self, values: list[float]) -> list[float]:
        vars(self)["sums"] = values
        return [values[0] + 1, *values[1:]]  # the others have images, where this one has none

    def joined(self, rows: list[object]) -> list[object]:
        return rows


class Counting(nn.Module):
    """Scores for ten classes by the image alone; counts the images."""

    seen = most = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.most = max(self.most, len(x))
        return x.flatten(1)[:, :10] * 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attneck.tasks.classification.EVAL_BATCH", 4)


def parts(processes: int) -> tuple[Tensor, int]:
    """The sums of all processes (`report` has their order), and how many images their networks saw."""
    sums, seen = torch.zeros(5, dtype=torch.float64), 0
    for rank in range(processes):
        everyone, network = Noting(rank, processes, torch.device("cpu")), Counting()
        Classification(RECIPE, everyone).report(network)
        sums += torch.tensor(vars(everyone)["sums"], dtype=torch.float64)
        seen += network.seen
    return sums, seen


@pytest.mark.parametrize("processes", [2, 3, 30])
def test_all_processes_together_have_the_sums_of_one(processes: int) -> None:
    """Of 30 processes some have no image at all."""
    alone, _ = parts(1)
    together, seen = parts(processes)
    assert (alone[0], together[0], seen) == (IMAGES, IMAGES, IMAGES)
    assert together[2:].tolist() == alone[2:].tolist()
    torch.testing.assert_close(together[1], alone[1], rtol=1e-6, atol=0)  # float32, in other batches


@pytest.mark.parametrize(("pixels", "most"), [(2 * 24**2, 2), (100, 1), (100 * 24**2, 4)])
def test_large_images_come_in_smaller_batches(
    pixels: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attneck.tasks.classification.EVAL_PIXELS", pixels)
    network = Counting()
    Classification(RECIPE, World(0, 1, torch.device("cpu"))).report(network)
    assert (network.most, network.seen) == (most, IMAGES)
