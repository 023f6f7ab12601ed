"""Which finished runs trained what a row of a paper's table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attneck.errors import UserError, say
from attneck.papers.results import FinishedRun, each_once, read_runs, same_data
from attneck.papers.tables import Row, Table
from attneck.runs.printed import FREE, HOW_IT_RAN, is_of, same_folder, same_network, started, variant_of
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import FREE_ON_RESUME, differences, parse_recipe

FOLDERS = (Path("results"), Path("runs"))
"""Where finished runs are looked for: what was committed, and what `attneck train` makes."""


class Results:
    """The finished runs in some folders."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        names = [folder.name for folder in folders]
        self.runs = each_once(
            [
                run
                for folder in folders
                for run in read_runs(folder, str(folder) if names.count(folder.name) > 1 else None)
            ]
        )
        self.recipes: dict[str, Recipe] = {}
        """By the digest of a run's weights."""
        for run in self.runs:
            try:
                self.recipes[run.weights] = parse_recipe(run.recipe, f"{run.folder}/recipe.yaml")
            except UserError as error:  # of another version: no row's recipe as it is here
                say(f"{error}; passed over")

    def of(self, table: Table, row: Row, recipe: Recipe | None) -> list[FinishedRun]:
        """The runs of the row's network on all of its data by `recipe`, from the start that the paper has.

        Each says by `note` how its steps were computed, where otherwise than by the recipe, and which file or
        run it started from.
        """
        if recipe is None:
            return []
        found = []
        for run in self.runs:
            own = self.recipes.get(run.weights)
            if own is None or not (
                same_data(run, table)
                and _whole_length(run, own)
                and same_network(recipe, own)
                and same_folder(recipe, own)
            ):
                continue
            if started(own) != (row.detector is not None):  # detectors start from ImageNet, classifiers anew
                continue
            changes = [said for said in differences(recipe, own) if not is_of(said, FREE | FREE_ON_RESUME)]
            if all(is_of(said, HOW_IT_RAN) for said in changes):
                if (variant := variant_of(own)) != variant_of(recipe):
                    changes.append(f"variant {variant}")
                if own.model.weights is not None:  # of whatever: another detector's, say
                    changes.append(f"started from {own.model.weights}")
                found.append(replace(run, note=", ".join(changes)))
        return found


def _whole_length(run: FinishedRun, recipe: Recipe) -> bool:
    """Whether the run went on to the end of its recipe: its `patience` may have ended it before."""
    done, of = recipe.reached(run.epoch, run.steps)
    return done >= of
