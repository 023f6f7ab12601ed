"""What a run trains for: data, model, loss and scores, one file a task. Torch comes in with the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attneck.models import catalog

if TYPE_CHECKING:
    from attneck.tasks.classification import Classification
    from attneck.tasks.detection import Detection
    from attneck.training.distributed import World
    from attneck.training.recipe import Recipe


def open_task(recipe: Recipe, everyone: World) -> Classification | Detection:
    """The task that the recipe's model is for.

    Raises:
        ValueError: a part of the recipe that its model or its data set cannot have.
        FileNotFoundError: data that is not there.
    """
    if recipe.model.name in catalog.list_detectors():
        from attneck.tasks.detection import Detection

        return Detection(recipe, everyone)
    from attneck.tasks.classification import Classification

    return Classification(recipe, everyone)
