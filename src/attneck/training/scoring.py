"""What held-out images say of a network, and of the moving average of its weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from attneck.training.compiled import to_call
from attneck.training.precision import precision
from attneck.training.recipe import Recipe
from attneck.training.report import Watch
from attneck.training.step import Objective

T = TypeVar("T")


def evaluate(
    objective: Objective,
    model: nn.Module,
    average: AveragedModel | None,
    recipe: Recipe,
    device: torch.device,
    watch: Watch,
) -> dict[str, float]:
    """The objective's scores on held-out data: `val_…` for the weights, `ema_…` for their average."""
    networks = {"val": model} | ({"ema": average.module} if average is not None else {})
    score = partial(objective.evaluate, watch=watch)
    found = {
        prefix: scored(score, to_call(network, recipe), recipe, device)
        for prefix, network in networks.items()
    }
    return {f"{prefix}_{key}": value for prefix, scores in found.items() for key, value in scores.items()}


def scored(score: Callable[[nn.Module], T], network: nn.Module, recipe: Recipe, device: torch.device) -> T:
    """What `score` says of a network in evaluation mode, at the recipe's precision."""
    network.eval()
    with torch.inference_mode(), precision(recipe, device):
        return score(network)
