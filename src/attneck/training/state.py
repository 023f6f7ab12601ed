"""What a checkpoint holds: taken from a run, compared with what it must be, and put back.

A file whose sum is right holds what somebody wrote, and nothing more is known of it. So it is checked here,
before anything is done with it: its parts and their types by `check`, its tensors by `check_fits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attneck.errors import UserError
from attneck.training.distributed import World
from attneck.training.optimizer import example_state, parameter_groups, restore_optimizer
from attneck.training.recipe import Optimizer, Recipe
from attneck.training.recipe_file import parse_recipe
from attneck.training.records import Record

FORMAT = 1
"""Of the checkpoints that are written; those before the first had no number."""

PARTS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "step": (int,),
    "sums": (list,),
    "history": (list,),
    "model": (dict,),
    "optimizer": (dict,),
    "average": (dict, type(None)),
    "recipe": (dict,),
    "facts": (dict,),
}


@dataclass
class Progress:
    """Where a run is: optimiser steps done, the sums since the last record, and the records so far."""

    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    """float64 [], on the device."""
    history: list[Record] = field(default_factory=list)


def taken(
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    recipe: Recipe,
    facts: dict[str, Any],
    world: World,
) -> dict[str, Any]:
    """What the first process saves; nothing on the others. Called on all processes."""
    sums = world.joined([{name: float(total) for name, total in progress.sums.items()}])
    if world.rank > 0:
        return {}
    return {
        "format": FORMAT,
        "step": progress.step,
        "sums": sums,  # a process's own, for the record to come
        "history": progress.history,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "recipe": recipe.model_dump(mode="json"),
        "facts": facts,
    }


def copied(content: Any) -> Any:
    """What `taken` gave, its tensors copied to the CPU: the next steps change nothing in it."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: copied(part) for key, part in content.items()}
    if isinstance(content, list):
        return [copied(part) for part in content]
    return content


def put_back(
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    world: World,
) -> Progress:
    """Go on from a state that `check_fits` has passed."""
    model.load_state_dict(state["model"])
    restore_optimizer(optimizer, state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    parts = state["sums"]
    if len(parts) != world.size:  # as many processes as before would have; now each has their mean
        parts = [{name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}] * world.size
    own = parts[world.rank].items()
    sums = {name: torch.tensor(total, dtype=torch.float64, device=world.device) for name, total in own}
    return Progress(state["step"], sums, state["history"])


def check(state: Any, step: int) -> None:
    """Raises ValueError, with the reason, for what no run saves at `step`."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not the state of a run")
    _check_parts(state, step)
    _check_history(state["history"], step)
    _check_sums(state["sums"])
    classes = state["facts"].get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its facts name no classes")
    if not state["recipe"]:  # its fields have defaults, so nothing would be a recipe too
        raise ValueError("its recipe is empty")
    try:
        parse_recipe(state["recipe"], "its recipe")
    except UserError as error:
        raise ValueError(str(error)) from None
    for name in ("model", "average"):
        for key, tensor in (state[name] or {}).items():
            if not isinstance(key, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"its {name} has {str(key)[:60]!r} as a {type(tensor).__name__}")


def _check_parts(state: dict[Any, Any], step: int) -> None:
    """PARTS and no other, of this format and step."""
    version = state.get("format", 0)
    if type(version) is int and version > FORMAT:
        raise ValueError(
            f"it has format {version}, of a newer attneck, and this one reads up to {FORMAT}: update attneck"
        )
    for name, types in PARTS.items():
        if name not in state and name != "format":
            raise ValueError(f"it has no {name!r}")
        value = state.get(name, 0)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"its {name!r} is of type {type(value).__name__}")
    if more := state.keys() - PARTS.keys():
        raise ValueError(f"it has {min(map(repr, more))}, which no checkpoint has")
    if version < 0 or state["step"] != step:
        raise ValueError(f"it says format {version}, step {state['step']}, under the name of step {step}")


def _check_history(history: list[Any], step: int) -> None:
    before = 0
    for number, record in enumerate(history, 1):
        plain = isinstance(record, dict) and all(isinstance(key, str) for key in record)
        if not plain or not all(type(value) in (int, float) for value in record.values()):
            raise ValueError(f"record {number} of its history is not figures by name")
        at = record.get("step")
        if type(at) is not int or not before < at <= step:
            raise ValueError(f"record {number} of its history is of step {at}, after {before}, up to {step}")
        before = at


def _check_sums(sums: list[Any]) -> None:
    """A row for each process."""
    rows = [row if isinstance(row, dict) else None for row in sums]
    if not rows or any(row is None or row.keys() != (rows[0] or {}).keys() for row in rows):
        raise ValueError("its sums are not the same figures for each process")
    for row in rows:
        for name, value in (row or {}).items():
            if not isinstance(name, str) or type(value) is not float or not math.isfinite(value):
                raise ValueError(f"its sums have {str(name)[:60]!r} as {str(value)[:60]}")


def check_fits(state: dict[str, Any], model: nn.Module, recipe: Recipe) -> None:
    """Raises ValueError, with the reason, where the tensors are not those of `model`, or not finite."""
    if state["step"] < 1:
        raise ValueError("no step is done in it")
    wanted = model.state_dict()
    _compare("model", state["model"], wanted)
    averages = {"n_averaged": torch.tensor(0)} | {f"module.{name}": one for name, one in wanted.items()}
    if (state["average"] is not None) != (recipe.ema > 0):
        raise ValueError(
            f"it has {'no' if recipe.ema else 'an'} average, with ema {recipe.ema} in its recipe"
        )
    if recipe.ema > 0:
        _compare("average", state["average"], averages)
    _check_optimizer(state["optimizer"], parameter_groups(model, recipe.optimizer), recipe.optimizer)


def _check_optimizer(given: dict[Any, Any], groups: list[dict[str, Any]], options: Optimizer) -> None:
    """What a step of this optimiser keeps for each weight, and in each group, and nothing else."""
    weights = dict(enumerate(weight for group in groups for weight in group["params"]))
    counts = iter(weights)
    numbers = [[next(counts) for _ in group["params"]] for group in groups]
    kept, in_group, shape = example_state(options)
    rows, there = given.get("state"), given.get("param_groups")
    if not isinstance(rows, dict) or not isinstance(there, list):
        raise ValueError("its optimizer has no state")
    if [group.get("params") if isinstance(group, dict) else None for group in there] != numbers:
        raise ValueError("its optimizer is that of another network: its groups differ")
    for number, row in rows.items():
        if number not in weights or not isinstance(row, dict):
            raise ValueError(f"its optimizer has {str(number)[:60]} as a {type(row).__name__}")
        full = {name: value for name, value in row.items() if value is not None}
        _compare_kept(f"momentum {number}", full, kept, weights[number], shape)
    for group in there:
        own = {name: group[name] for name in in_group if name in group}
        _compare_kept("group", own, in_group, None, shape)
    if kept and not rows:
        raise ValueError("its optimizer has no momentum")


def _compare_kept(
    where: str, given: dict[str, Any], kept: dict[str, Any], weight: Tensor | None, shape: torch.Size
) -> None:
    """The example's names; a tensor is like the weight's or the example's, and a number is finite."""
    if given.keys() != kept.keys():
        strange = min(map(repr, given.keys() ^ kept.keys()))
        raise ValueError(f"its optimizer is another one: {strange[:60]} of its {where}")
    for name, value in given.items():
        if isinstance(kept[name], Tensor):
            if not isinstance(value, Tensor):
                raise ValueError(f"its optimizer has {where} {name} as a {type(value).__name__}")
            wanted = weight if weight is not None and kept[name].shape == shape else kept[name]
            _compare("optimizer", {f"{where} {name}": value}, {f"{where} {name}": wanted})
        elif type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"its optimizer has {where} {name} as {str(value)[:60]}")


def _compare(where: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Same names, and each a plain tensor of the same type and shape that is finite."""
    for missing in (name for name in wanted if name not in given):
        raise ValueError(f"its {where} is that of another network: it has no {missing}")
    for name, tensor in given.items():
        if name not in wanted:
            raise ValueError(f"its {where} is that of another network: it has {name[:60]}")
        a, b = ([*t.shape, t.dtype, t.layout, "meta" if t.is_meta else ""] for t in (tensor, wanted[name]))
        if a[:-1] != b[:-1] or a[-1]:
            kind = f"{'×'.join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"its {where} is that of another network: {name} is {kind}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"its {where}'s {name} is not finite")
