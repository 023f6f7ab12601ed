"""An evaluation counts every held-out image once, on any number of processes."""

import pytest
import torch
from forked import as_ranks
from torch import Tensor, nn

from attneck.errors import NotFinite
from attneck.tasks.classification import Classification
from attneck.tasks.task import Evaluation
from attneck.training.distributed import World, world
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


@pytest.mark.parametrize(("accumulate", "most"), [(1, 50), (2, 40), (5, 32)])
def test_batches_are_of_eight_training_ones_or_32_images(
    accumulate: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attneck.tasks.classification.EVAL_BATCH", 500)
    data = {"name": "shapes", "image_size": 24, "train_size": 10, "val_size": 50}
    recipe = Recipe.model_validate({"data": data, "batch": 10, "accumulate": accumulate})
    network = Counting()
    Classification(recipe, World(0, 1, torch.device("cpu"))).report(network)
    assert network.most == most


def test_one_logit_that_is_not_finite_is_enough() -> None:
    """Of an image, that is, whose others are: in the first of each batch of four."""

    class Partly(Counting):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            logits[0, 3] = -torch.inf
            return logits

    with pytest.raises(NotFinite, match=f"6 of {IMAGES} images have logits that are not finite"):
        Classification(RECIPE, World(0, 1, torch.device("cpu"))).report(Partly())


class Two(Counting):
    """Scores for two classes, which it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.logits.append(super().forward(x)[:, :2])
        return self.logits[-1]


def _reported(network: Two) -> Evaluation:
    data = {"name": "relations", "image_size": 24, "train_size": 10, "val_size": IMAGES}
    with world() as everyone:
        return Classification(Recipe.model_validate({"data": data, "batch": 10}), everyone).report(network)


def test_of_two_processes_each_knows_what_one_alone_would() -> None:
    """How the classes are ordered, what each image was taken for, and the mistakes, surest first."""
    network = Two()
    alone = _reported(network)
    assert alone.confusion is not None
    labels, logits = torch.from_numpy(alone.confusion.labels), torch.cat(network.logits)
    shares, best = logits.softmax(1).max(1)
    wrong = [(i, int(labels[i]), int(best[i])) for i in (-shares).argsort() if labels[i] != best[i]]
    assert [mistake[:3] for mistake in alone.confusion.mistakes] == wrong
    assert [mistake.score for mistake in alone.confusion.mistakes] == [float(shares[i]) for i, *_ in wrong]
    margins = logits[:, 1] - logits[:, 0]
    ordered = margins[labels == 1][:, None] > margins[labels == 0]
    assert alone.scores["auc"] == pytest.approx(100 * float(ordered.double().mean()))
    for found in as_ranks(_reported, Two()):
        assert found.scores == pytest.approx(alone.scores, rel=1e-6)
        assert found.confusion.labels.tolist() == alone.confusion.labels.tolist()
        assert found.confusion.predicted.tolist() == alone.confusion.predicted.tolist()
        assert [mistake[:3] for mistake in found.confusion.mistakes] == wrong
