"""What a classifier takes for what: counts by class, and the mistakes that it is surest of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attneck.data.sampling import Key
from attneck.training.distributed import World

KEPT = 48
"""Mistakes that are remembered with their image."""
MATRIX = 2000
"""Classes of which there is a matrix, of K² counts."""


class Mistake(NamedTuple):
    """A held-out image, by its place in the set, that is of one class and was taken for another."""

    image: int
    label: int
    predicted: int
    score: float


class ClassRow(NamedTuple):
    """One class: its images, those that were right, and what the others were most often taken for."""

    name: str
    images: int
    right: int
    taken_for: str
    times: int

    @property
    def accuracy(self) -> float | None:
        """In per cent; None of a class without images."""
        return 100 * self.right / self.images if self.images else None


@dataclass(frozen=True)
class Confusion:
    """What every held-out image is and was taken for, both int64 [N], and the mistakes surest of.

    Attributes:
        classes: the names of the labels.
    """

    classes: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    mistakes: list[Mistake]

    def counts(self) -> NDArray[np.int64] | None:
        """int64 [K, K], what images are by what they were taken for; None over MATRIX classes."""
        count = len(self.classes)
        if count > MATRIX:
            return None
        found: NDArray[np.int64] = np.bincount(self.labels * count + self.predicted, minlength=count**2)
        return found.reshape(count, count)

    def pairs(self) -> list[tuple[int, int, int]]:
        """(label, taken for, how often) of all mistakes, the most frequent first."""
        wrong = self.labels != self.predicted
        places, times = np.unique(
            self.labels[wrong] * len(self.classes) + self.predicted[wrong], return_counts=True
        )
        order = np.argsort(-times, kind="stable")
        return [(*divmod(int(places[i]), len(self.classes)), int(times[i])) for i in order]

    def by_class(self) -> list[ClassRow]:
        """A row for each class, in the order of the labels."""
        count = len(self.classes)
        images = np.bincount(self.labels, minlength=count)
        right = np.bincount(self.labels[self.labels == self.predicted], minlength=count)
        most: dict[int, tuple[str, int]] = {}
        for label, other, times in self.pairs():
            most.setdefault(label, (self.classes[other], times))
        return [
            ClassRow(name, int(images[label]), int(right[label]), *most.get(label, ("", 0)))
            for label, name in enumerate(self.classes)
        ]


class Tally:
    """A confusion in the making, batch by batch."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.rows: list[tuple[int, int]] = []
        self.mistakes: list[Mistake] = []

    def add(self, keys: list[Key], labels: Tensor, predicted: Tensor, scores: Tensor) -> None:
        """A batch: its keys, and, all [B], the labels, the likeliest classes and their probabilities."""
        rows = [*zip(labels.tolist(), predicted.tolist(), strict=True)]
        wrong = [
            Mistake(index, label, other, score)
            for (_, index), (label, other), score in zip(keys, rows, scores.tolist(), strict=True)
            if label != other
        ]
        self.rows += rows
        self.mistakes = _surest(self.mistakes + wrong)

    def total(self, everyone: World) -> Confusion:
        """Of all processes, the same on each."""
        found = np.array(everyone.joined(self.rows), dtype=np.int64).reshape(-1, 2)
        return Confusion(self.classes, found[:, 0], found[:, 1], _surest(everyone.joined(self.mistakes)))


def _surest(mistakes: list[Mistake]) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.score, mistake.image))[:KEPT]
