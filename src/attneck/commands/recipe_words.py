"""What the words of attneck train say: a recipe, with any of its fields changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from attneck.commands.arguments import Flag
from attneck.commands.arguments import parse as arguments_of
from attneck.errors import UserError
from attneck.models import catalog
from attneck.models.options import own_and_backbones
from attneck.training.recipe import Recipe, no_rate
from attneck.training.recipe_file import changed, load_recipe, refusal


@dataclass
class Arguments:
    """Train what a recipe says."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """The run's folder; runs/RECIPE, numbered where that is taken, if not given."""
    processes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes on this machine that share each batch, one a GPU where there are GPUs."""
    resume: Flag = False
    """Go on from the newest whole checkpoint of the run in --out (or of the run named as RECIPE)."""
    verbose: Flag = False
    """Name every tensor of model.weights or model.pretrained that was not simply taken."""
    accept_changes: Flag = False
    """With --resume: go on with data that has changed, and say how; otherwise it is refused."""


def parse(name: str, words: list[str], fields: Mapping[str, Any] | None = None) -> Arguments:
    """The recipe called `name` with the fields that `words` give, such as `--epochs 3`.

    Args:
        fields: other fields that the recipe has before, by their dotted names.

    Options of the model and of its surgery are added to the recipe's own, or put in their place; the value
    None takes one back. `--model.options.activation relu` is the same as `--model.options activation relu`.
    With epochs a recipe of steps is counted in these.

    Raises:
        UserError: no such recipe, or values that it cannot have.
    """
    before = changed(load_recipe(name), fields or {}, name)
    epochs = _given(words, "epochs") or ""
    if _given(words, "steps") in (None, "None") and re.fullmatch("[1-9][0-9]{0,8}", epochs):
        before = before.in_epochs(int(epochs))
    own = {"options": before.model.options, "surgery_options": before.model.surgery_options}
    bare = before.model_copy(update={"model": before.model.model_copy(update={part: {} for part in own})})
    try:
        arguments = arguments_of(
            Arguments,
            f"attneck train {name}",
            gathered(words),
            default=Arguments(recipe=bare),
            description=" ".join(["Train what a recipe says.", *map(_has, own, own.values())]),
        )
    except ValidationError as error:  # a value that is out of range, or two fields that do not go together
        raise refusal(error, name) from None
    model = arguments.recipe.model
    if model.name != before.model.name:
        _check_inherited(model.name, own["options"].keys() - model.options.keys(), name)
    both = {part: {**values, **getattr(model, part)} for part, values in own.items()}
    model = model.model_copy(
        update={
            part: {option: value for option, value in values.items() if value != "None"}
            for part, values in both.items()
        }
    )
    arguments.recipe = arguments.recipe.model_copy(update={"model": model})
    now = arguments.recipe.optimizer.name
    with_rate = any(word.partition("=")[0] == "--optimizer.lr" for word in words)
    if now not in ("sgd", before.optimizer.name) and not with_rate:
        raise UserError(f"attneck train {name}: {no_rate(now)}")
    return arguments


def _check_inherited(model: str, options: Set[str], recipe: str) -> None:
    """UserError for an option that the recipe gives its own network, and that this one does not have."""
    if (entry := catalog.CATALOG.get(model)) is None:
        return
    own, backbones = own_and_backbones(entry.options)
    if strange := sorted(options - own - backbones):
        words = " ".join(f"--model.options.{option} None" for option in strange)
        raise UserError(
            f"attneck train {recipe}: the recipe gives its network {', '.join(strange)}, which {model} does "
            f"not have: take it back with {words}"
        )


def _has(part: str, values: dict[str, Any]) -> str:
    """What the help says of the recipe's own options, which are no defaults."""
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"Its model.{part}: {said}." if said else ""


def gathered(words: list[str]) -> list[str]:
    """The words with each `--model.options.NAME VALUE …` as part of the one `--model.options`.

    Raises:
        UserError: an option that is given twice.
    """
    kept: list[str] = []
    options: dict[str, list[str]] = {}
    into = kept
    for place, word in enumerate(words):
        dotted = re.fullmatch(r"--model\.((?:surgery[-_])?options)\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        plain = re.fullmatch(r"--model\.((?:surgery[-_])?options)", word)
        if found := dotted or plain:
            flag = f"--model.{found[1].replace('_', '-')}"
            into = options.setdefault(flag, [])
        elif word.startswith("--") or word == "-h":
            into = kept
        option = dotted[2].replace("-", "_") if dotted else ""
        if (plain and word in words[:place]) or (dotted and option in into):
            raise UserError(
                f"{word.partition('=')[0]} is given more than once: give it once, with all of its values"
            )
        if dotted:
            into += [option] if dotted[3] is None else [option, dotted[3]]
        elif not plain:
            into.append(word)
    return kept + [word for flag, values in options.items() for word in (flag, *values)]


def _given(words: list[str], option: str) -> str | None:
    """The value that the words give to an option; None where they don't."""
    for word, value in zip(words, [*words[1:], ""], strict=False):
        if word == f"--{option}":
            return value
        if word.startswith(f"--{option}="):
            return word.partition("=")[2]
    return None
