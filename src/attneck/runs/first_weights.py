"""What a new run's model starts from: published weights, a file, another run; and what stays frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attneck.files import read_json
from attneck.models.origin import is_detector
from attneck.models.pretrained import check_filled, fetch
from attneck.models.weights import StaysRandomWarning, read_weights
from attneck.runs.run import Run
from attneck.tasks.task import Task
from attneck.training import layers
from attneck.training.recipe import TIMM, Model, Recipe
from attneck.training.recipe_file import is_run


def start_from(recipe: Model, task: Task, model: nn.Module, verbose: bool) -> list[str]:
    """Fill the model from the weights that its recipe names, if any; what is to be said of that."""
    theirs: dict[str, Any] = {}  # the mean and std of the images that the weights know
    weights: Mapping[str, Tensor]
    if recipe.pretrained is not None:
        weights = fetch(recipe.pretrained)
    elif recipe.weights is not None and (folder := Path(recipe.weights)).is_dir():
        saved = folder / "model.safetensors"  # by attneck export, timm or the Hub
        if is_run(folder):
            run = Run(folder)
            weights, theirs = run.weights(), run.facts  # the averaged ones where it keeps them
        elif saved.is_file():
            weights, theirs = read_weights(str(saved)), _numbers(saved.with_name("config.json"))
        else:
            raise ValueError(
                f"model.weights {folder} is a folder with no run and no model.safetensors: give one that has "
                "either, or a file"
            )
    elif recipe.weights is not None:
        weights = read_weights(recipe.weights)
    elif recipe.name.startswith(TIMM) and "." in recipe.name:
        network, _, tag = recipe.name.removeprefix(TIMM).partition(".")
        raise ValueError(
            f"model.name {recipe.name}: {tag!r} names weights, and a model's name says how it is made: give "
            f"model.name {TIMM}{network} and model.pretrained {network}.{tag}"
        )
    elif recipe.name.startswith(TIMM) or recipe.surgery != "none" or task.finds_objects:
        return ["its weights start at random: give model.pretrained or model.weights for trained ones"]
    else:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaysRandomWarning)  # said below
        loaded = task.start(model, weights)
    if recipe.pretrained is not None:
        check_filled(loaded, recipe.pretrained)
    said = [f"from {recipe.pretrained or recipe.weights}: {loaded}"]
    said += [loaded.listing] if verbose and loaded.listing else []
    said += [f"warning: {loaded.warning}"] if loaded.warning else []
    return said + _normalised_otherwise(recipe.weights, theirs, task, model)


def _numbers(config: Path) -> dict[str, Any]:
    """The mean and std of images that a saved model's config has, where they are numbers."""
    known = (read_json(config) or {}).get("pretrained_cfg")
    return {
        key: value
        for key, value in (known if isinstance(known, dict) else {}).items()
        if key in ("mean", "std") and isinstance(value, list) and {*map(type, value)} <= {int, float}
    }


def _normalised_otherwise(
    source: str | None, theirs: dict[str, Any], task: Task, model: nn.Module
) -> list[str]:
    """A warning where the images that the weights know were normalised by other numbers."""
    ours = task.describe()
    if is_detector(model):
        transform: Any = model.transform
        ours = {"mean": transform.image_mean, "std": transform.image_std}
    found = [
        f"{key} {[round(each, 3) for each in theirs[key]]}, here {[round(each, 3) for each in ours[key]]}"
        for key in ("mean", "std")
        if key in theirs and key in ours and [*theirs[key]] != [*ours[key]]
    ]
    said = f"warning: the images of {source} were normalised otherwise ({'; '.join(found)})"
    return [f"{said}: its first steps see other values than its weights know"] if found else []


def frozen(model: nn.Module, recipe: Recipe) -> dict[str, Tensor]:
    """A copy of the weights that the recipe freezes, as they were drawn.

    Raises ValueError where there are no such stages.
    """
    if recipe.optimizer.freeze is None:
        return {}
    names = layers.frozen_by(model, recipe.optimizer.freeze)
    return {name: one.detach().clone() for name, one in model.named_parameters() if name in names}


def check_frozen(model: nn.Module, drawn: dict[str, Tensor]) -> None:
    """ValueError where a frozen weight would stay as it was drawn at random."""
    now = dict(model.named_parameters())
    same = [name for name, one in drawn.items() if one.dim() > 1 and torch.equal(one, now[name])]
    if same:
        raise ValueError(
            f"optimizer.freeze keeps {len(same)} weights as they were drawn at random, {same[0]} first: give "
            "model.weights or model.pretrained, or freeze fewer stages"
        )
