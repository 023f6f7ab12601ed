"""Which images a run is scored on, in words: those that it holds out, or those that it learnt."""

from __future__ import annotations

from typing import Any

from attneck.training.recipe import Recipe

HELD_OUT = "held-out images"
TRAINED_ON = "images that it was trained on"
SAME_SPLIT = "images of the split that it was trained on"

_PARTS = {"trainval": {"train", "val"}}


def scored_on(recipe: Recipe, facts: dict[str, Any]) -> str:
    """HELD_OUT, TRAINED_ON where both sets are the same by their fingerprints, or SAME_SPLIT: some may be.

    facts: a run's, with the fingerprints of its data.
    """
    data = facts.get("data", {})
    if "training" in data and data["training"] == data.get("held-out"):
        return TRAINED_ON
    trained, scored = (
        _PARTS.get(split, {split}) for split in (recipe.data.train_split, recipe.data.val_split)
    )
    return SAME_SPLIT if trained & scored else HELD_OUT
