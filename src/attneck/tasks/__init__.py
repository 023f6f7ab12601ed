"""What a run trains for: data, model, loss and scores, one file a task. Torch comes in with the task."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING

from attneck.models import catalog
from attneck.training.recipe import TIMM

if TYPE_CHECKING:
    from attneck.tasks.task import Task
    from attneck.training.distributed import World
    from attneck.training.recipe import Recipe

TASKS = {
    "classification": "attneck.tasks.classification:Classification",
    "detection": "attneck.tasks.detection:Detection",
}
"""Where each task's class is, by the name that the catalog's rows have for it."""


def task_of(recipe: Recipe) -> type[Task]:
    """The task that the recipe's model is for.

    Raises:
        ValueError: the catalog has no such model.
    """
    timm = recipe.model.name.startswith(TIMM)  # its classifiers
    name = "classification" if timm else catalog.find(recipe.model.name).task
    found: type[Task] = resolve_name(TASKS[name])
    return found


def open_task(recipe: Recipe, everyone: World) -> Task:
    """That task, with its data.

    Raises:
        ValueError: a part of the recipe that its model or its data set cannot have.
        FileNotFoundError: data that is not there.
    """
    return task_of(recipe)(recipe, everyone)
