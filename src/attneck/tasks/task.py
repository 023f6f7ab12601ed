"""What a run trains for, as the loop and the commands see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from attneck.detection.precision_recall import Curve
from attneck.models.weights import Loaded
from attneck.tasks.confusion import Confusion
from attneck.training.distributed import World
from attneck.training.recipe import Recipe
from attneck.training.report import Watch
from attneck.training.step import Objective

Facts = dict[str, Any]
"""What `describe` says of the data that a model is for, as JSON has it: `classes` is always there.

A run adds `data`, the fingerprints of its data sets."""


class Described(BaseModel):
    """What there must be in the `Facts` of every task."""

    model_config = ConfigDict(strict=True)

    classes: list[str]
    image_size: int


Found = list[dict[str, Any]]
"""What is in one image, best first: a `category` and a `score` each; of detectors also COCO's fields."""


def class_name(classes: Sequence[str], label: int) -> str:
    """Its name, or its number where it has none."""
    return str(classes[label]) if label < len(classes) else f"class {label}"


@dataclass(frozen=True)
class Evaluation:
    """What held-out images say of one model: its scores, and whatever else the task has to tell.

    Attributes:
        details: of detectors, all scores as JSON has them.
        detections: of detectors, what was found, as COCO's results.
        confusion: of classifiers, what is taken for what.
        curves: of detectors, the precision by recall of each class, by kind.
    """

    images: int
    scores: dict[str, float]
    details: Any = None
    detections: Found | None = None
    confusion: Confusion | None = None
    curves: dict[str, list[Curve]] | None = None


class Sample(NamedTuple):
    """An image, where it is from, and what is in it, where that is known."""

    file: str
    image: Image.Image
    truth: Found | None


class Samples:
    """Samples that are read when they are asked for, so that one at a time is in memory."""

    def __init__(self, indices: list[int], read: Callable[[int], Sample]) -> None:
        self._indices, self._read = indices, read

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, number: int) -> Sample:
        return self._read(self._indices[number])

    def __iter__(self) -> Iterator[Sample]:
        return map(self._read, self._indices)


class Task(Objective, Protocol):
    """Data, model, loss and scores. A new task is a file with such a class, and a row in `TASKS`.

    Attributes:
        training: the data set that is trained on.
        held_out: the data set that is scored.
        last: what `evaluate` or `report` said last, of which a run's pictures are drawn; None before.
        finds_objects: whether predictions have a box in the image.
        described: what there must be in its `Facts`.

    The constructor raises ValueError for a part of the recipe that the task or its data does not have, and
    FileNotFoundError for data that is not there.
    """

    finds_objects: ClassVar[bool]
    described: ClassVar[type[Described]]
    recipe: Recipe
    held_out: Any
    last: Evaluation | None

    def __init__(self, recipe: Recipe, everyone: World) -> None: ...

    @property
    def training(self) -> Any: ...

    @staticmethod
    def collate(items: Any) -> Any:
        """Make a batch of what a data set gives."""

    def describe(self) -> Facts:
        """The data, as far as a model must know it: what a checkpoint holds, and `build` takes."""

    def report(self, model: nn.Module, watch: Watch) -> Evaluation:
        """`evaluate`, and all that there is to say beside."""

    def samples(self, count: int) -> Samples:
        """So many held-out images, evenly spread; ValueError if there are fewer."""

    def sample(self, index: int) -> Sample:
        """A held-out image by its place in the set."""

    def calibration(self, count: int) -> Iterator[Any]:
        """Batches of so many training images as a model takes them, seen as held-out images are, in no order.

        Raises ValueError where there are fewer, and of detectors.
        """

    # What a run that is read back needs: no data.

    @staticmethod
    def metrics(recipe: Recipe) -> tuple[str, ...]:
        """The names of `evaluate`'s scores; the first one says which checkpoint is best."""

    @staticmethod
    def build(recipe: Recipe, facts: Facts, image_size: int | tuple[int, int] | None = None) -> nn.Module:
        """The recipe's model for the data that `facts` describe; `image_size` in place of the data's."""

    @staticmethod
    def start(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
        """Start `model` from weights that were trained on something else."""

    @staticmethod
    def prepared(image: Image.Image, facts: Facts) -> Tensor:
        """An image of any size as `build`'s model takes it, without the batch: [3, H, W]."""

    @staticmethod
    def predict(model: nn.Module, image: Image.Image, facts: Facts, min_score: float) -> Found:
        """What `model`, in evaluation mode, finds in an image; nothing with a lower score.

        A classifier's takes `top_k` too, the number of classes at most.
        """

    @staticmethod
    def tables(evaluations: Mapping[str, Evaluation]) -> str:
        """Evaluations by name ("weights", "their average"), to be read."""
