"""Which finished runs trained what a row of a paper's table says."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from attneck.errors import UserError
from attneck.models import catalog
from attneck.papers.results import FinishedRun, each_once, read_runs, whole_data
from attneck.papers.tables import Row, Table
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import FREE_ON_RESUME, differences, parse_recipe

FOLDERS = (Path("results"), Path("runs"))
"""Where finished runs are looked for: what was committed, and what `attneck train` makes."""

HOW_IT_RAN = {"accumulate", "precision", "channels_last", "sync_bn"}
"""What may differ from the row's recipe and is said then: how a step is computed, not what it is."""

FREE = {
    "seed",
    "eval_epochs",
    "model.name",
    "model.options",
    "model.weights",
    "model.pretrained",
    "data.root",
}
"""What `Results.of` looks at otherwise than by comparing it, or not at all."""


class Results:
    """The finished runs in some folders."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.runs = each_once([run for folder in folders for run in read_runs(folder)])
        self.recipes: dict[str, Recipe] = {}
        for run in self.runs:
            try:
                self.recipes[run.folder] = parse_recipe(run.recipe, f"{run.folder}/recipe.yaml")
            except UserError as error:  # of another version: no row's recipe as it is here
                print(f"attneck: {error}; passed over", file=sys.stderr)

    def of(self, table: Table, row: Row, recipe: Recipe | None) -> list[FinishedRun]:
        """The runs of the row's network on all of its data by `recipe`, from the start that the paper has.

        Each says by `note` how its steps were computed, where otherwise than by the recipe.
        """
        if recipe is None:
            return []
        found = []
        for run in self.runs:
            own = self.recipes.get(run.folder)
            if own is None or not (
                whole_data(run, table) and _same_network(recipe, own) and _same_folder(recipe, own)
            ):
                continue
            if _started(own) != (row.detector is not None):  # detectors start from ImageNet, classifiers anew
                continue
            changes = [said for said in differences(recipe, own) if not _is_of(said, FREE | FREE_ON_RESUME)]
            if all(_is_of(said, HOW_IT_RAN) for said in changes):
                found.append(replace(run, note=", ".join(changes)))
        return found


def recipe_of(table: Table, row: Row, shipped: dict[str, Recipe]) -> Recipe | None:
    """The recipe that the row's command trains; None where it has none."""
    name, *changes = (row.recipe or table.recipe).split() or [""]
    if name not in shipped or not row.model or row.alternative:
        return None
    tree: dict[str, Any] = shipped[name].model_dump(mode="json")
    tree["model"]["name"] = row.trained
    tree["model"]["options"] |= row.trained_options
    if tree["data"]["image_size"] is not None:
        tree["data"]["image_size"] = row.image_size
    field: list[str] = []
    given: dict[str, list[Any]] = {}
    for word in changes:
        if word.startswith("--"):
            field = given.setdefault(word[2:].replace("-", "_"), [])
        else:
            field.append(_value(word))
    for path, values in given.items():
        *parts, last = path.split(".")
        place = tree
        for part in parts:
            place = place[part]
        place[last] = values if len(values) > 1 else values[0]
    return parse_recipe(tree, name)


def _value(word: str) -> Any:
    """A word of a command as YAML would have it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word


def _same_network(wanted: Recipe, recipe: Recipe) -> bool:
    """Whether two recipes train one network, by whatever names and options they give it."""
    try:
        one, other = (catalog.find(each.model.name, dict(each.model.options)) for each in (wanted, recipe))
    except ValueError:  # one of timm's, or of another version
        return False
    return one.options == other.options


def _same_folder(wanted: Recipe, recipe: Recipe) -> bool:
    """A folder of images goes by its name."""
    one, other = (Path(each.data.root or "").name for each in (wanted, recipe))
    return wanted.data.name != "folder" or one == other


def _started(recipe: Recipe) -> bool:
    """Whether it starts from weights that there were."""
    return recipe.model.weights is not None or getattr(recipe.model, "pretrained", None) is not None


def _is_of(said: str, fields: set[str]) -> bool:
    """Whether a difference, 'model.options.heads: 4 → 8' say, is in one of the fields."""
    return any(said.startswith((f"{field}:", f"{field}.")) for field in fields)
