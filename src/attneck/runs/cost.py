"""What a run's network costs: counted once, and kept in the run's folder."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attneck.files import NotWritten, read_json, write_json

if TYPE_CHECKING:
    from attneck.tasks.task import Facts
    from attneck.training.recipe import Recipe

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds for one of the run's images."""

    params: int
    madds: int


def cost_of(folder: Path, recipe: Recipe, facts: Facts) -> Cost:
    """Of the recipe's network for the data that `facts` describe; no checkpoint is read.

    Raises:
        ValueError: no facts, or a network that cannot be built or counted.
    """
    file = folder / COST
    with suppress(TypeError):  # nothing kept, or something else
        return Cost(**(read_json(file) or {}))
    if not facts:
        raise ValueError("data.json, which says how many classes there are, is not there")
    import torch

    from attneck.measure import count
    from attneck.tasks import task_of

    with torch.device("meta"):
        model = task_of(recipe).build(recipe, facts)
    counts = count(model, facts["image_size"])
    found = Cost(counts.params, counts.madds)
    with suppress(NotWritten):  # it is counted again then
        write_json(file, asdict(found))
    return found
