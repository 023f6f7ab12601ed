"""What a classifier takes for what, by hand."""

import numpy as np
import pytest
import torch

from attneck.tasks import confusion
from attneck.tasks.confusion import Confusion, Tally
from attneck.training.distributed import World

CLASSES = ["ant", "bee", "cow", "dog"]
ROWS = [(0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (2, 1), (2, 0), (2, 0), (2, 2), (2, 0)]
"""Labels, and what they were taken for; of dogs there are none."""


def made() -> Confusion:
    labels, predicted = np.array(ROWS).T
    return Confusion(CLASSES, labels, predicted, [])


def test_counts_are_by_label_then_by_what_it_was_taken_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MATRIX", 4)
    counts = made().counts()
    assert counts is not None
    assert counts.tolist() == [[1, 2, 0, 0], [2, 0, 0, 0], [3, 1, 1, 0], [0, 0, 0, 0]]
    monkeypatch.setattr(confusion, "MATRIX", 3)
    assert made().counts() is None


def test_the_most_frequent_mistake_comes_first() -> None:
    """Of equally frequent ones that of the first label."""
    assert made().pairs() == [(2, 0, 3), (0, 1, 2), (1, 0, 2), (2, 1, 1)]
    rows = made().by_class()
    assert [(*row,) for row in rows] == [
        ("ant", 3, 1, "bee", 2),
        ("bee", 2, 0, "ant", 2),
        ("cow", 5, 1, "ant", 3),
        ("dog", 0, 0, "", 0),
    ]
    assert [row.accuracy for row in rows] == [100 / 3, 0, 20, None]


def test_the_surest_mistakes_of_all_batches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for; of equally sure ones the first image's."""
    monkeypatch.setattr(confusion, "KEPT", 3)
    tally = Tally(CLASSES)
    for keys, labels, predicted, scores in (
        ([3, 1], [0, 0], [1, 2], [0.5, 0.75]),
        ([7, 2, 4], [1, 2, 3], [0, 0, 3], [0.25, 0.75, 1.0]),
        ([0], [1], [1], [1.0]),
    ):
        batch = [(0, key) for key in keys]
        tally.add(batch, torch.tensor(labels), torch.tensor(predicted), torch.tensor(scores))
    found = tally.total(World(0, 1, torch.device("cpu")))
    assert [(*row,) for row in found.mistakes] == [(1, 0, 2, 0.75), (2, 2, 0, 0.75), (3, 0, 1, 0.5)]
    assert found.labels.tolist() == [0, 0, 1, 2, 3, 1]
    assert found.predicted.tolist() == [1, 2, 0, 0, 3, 1]
