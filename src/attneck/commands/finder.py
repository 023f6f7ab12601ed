"""What attneck predict asks of a model: a run's, or a saved one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attneck.commands.given_model import Kind, kind_of, viewer
from attneck.errors import UserError

if TYPE_CHECKING:
    from attneck.runs.run import Run
    from attneck.tasks.task import Found


@dataclass(frozen=True)
class Finder:
    """A model that finds classes, or objects, in images.

    Attributes:
        path: the run's folder, or where the saved model lies.
        model: what it is called.
        step: of a run's checkpoint; None of a saved model.
        facts: `classes` and `image_size`, as a task describes its data.
        finds_objects: whether what is found has boxes.
        find_each: as `attneck.runs.run.Run.predict_each`.
    """

    path: Path
    model: str
    step: int | None
    facts: dict[str, Any]
    finds_objects: bool
    find_each: Callable[..., Iterator[Found]]


def of_run(run: Run) -> Finder:
    """UserError for a run without a checkpoint that is whole."""
    name = run.recipe.model.name
    return Finder(run.folder, name, run.step, run.facts, run.finds_objects, run.predict_each)


def of_saved(path: Path) -> Finder:
    """UserError for what is damaged or does not come, or whose images or classes are none of predict's."""
    from attneck.tasks.task import class_name

    seen = viewer(str(path))
    facts = seen.facts
    count = len(facts["category_ids"]) if seen.detects else getattr(seen.network, "num_classes", 0)
    if count == 0:
        raise UserError(f"{path} has no classifier: give a model with one")
    names = [class_name(facts["classes"], label) for label in range(count)]

    def find_each(images: Any, *, min_score: float, top_k: int | None = None) -> Iterator[Found]:
        """On CUDA where there is one, in float32, with channels last as a recipe has it by default."""
        import torch

        from attneck.training.distributed import world
        from attneck.training.memory import memory_errors

        with world() as everyone, memory_errors(lambda: str(path), "take a machine with more"):
            seen.network.to(everyone.device).to(memory_format=torch.channels_last)
            for image in images:
                with torch.inference_mode():
                    yield seen.found(image, min_score, top_k)

    return Finder(path, called(path), None, facts | {"classes": names}, seen.detects, find_each)


def called(path: Path) -> str:
    """A saved model by its file or folder, timm's by its name."""
    return path.stem if path.suffix == ".safetensors" else path.name or path.resolve().name


def check_trained(path: Path) -> Kind:
    """The kind of a model with weights; UserError for what has none. It imports nothing heavy."""
    if (kind := kind_of(str(path))) == "name":
        raise UserError(
            f"{path} is a name, and its weights would be random: give a run's folder, what attneck.hub.save "
            "wrote, or timm/NAME for timm's weights"
        )
    return kind
