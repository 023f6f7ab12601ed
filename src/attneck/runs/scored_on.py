"""Which images a run is scored on, in words: those that it holds out, or those that it learnt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attneck.files import read_json
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import is_run, load_recipe

HELD_OUT = "held-out images"
TRAINED_ON = "images that it was trained on"
SAME_SPLIT = "images of the split that it was trained on"
OTHER = "images of other data than its own"

_PARTS = {"trainval": {"train", "val"}}


def scored_on(recipe: Recipe, facts: dict[str, Any], elsewhere: Any = None) -> str:
    """HELD_OUT, TRAINED_ON where both sets are the same by their fingerprints, or SAME_SPLIT: some may be.

    Args:
        facts: a run's, with the fingerprints of its data.
        elsewhere: the fingerprint of images that are scored in place of its own; OTHER where they are others.
    """
    data = facts.get("data", {})
    own = data.get("held-out")
    scored = own if elsewhere is None else elsewhere
    if "training" in data and data["training"] == scored:
        return TRAINED_ON
    if scored != own:
        return OTHER
    trained, held_out = (
        _PARTS.get(split, {split}) for split in (recipe.data.train_split, recipe.data.val_split)
    )
    return SAME_SPLIT if trained & held_out else HELD_OUT


def hold_out(folders: Iterable[Path]) -> bool:
    """Whether all of these runs are scored on HELD_OUT, as far as their folders say.

    Raises UserError for a recipe.yaml that is none.
    """
    return all(
        scored_on(load_recipe(str(folder)), read_json(folder / "data.json") or {}) == HELD_OUT
        for folder in folders
        if is_run(folder)
    )
