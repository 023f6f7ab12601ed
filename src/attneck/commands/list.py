"""attneck list: the models there are, and what each can be asked for."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import tyro

from attneck.checks import MOST
from attneck.commands.arguments import Flag, Json, call
from attneck.errors import UserError, suggestion
from attneck.models.catalog import CATALOG, list_detectors, list_models
from attneck.models.options import FamilyOptions

WIDTH = 80


def show(
    pattern: Annotated[str, tyro.conf.Positional] = "*",
    /,
    options: Flag = False,
    json_: Json = False,
) -> None:
    """The models there are.

    Args:
        pattern: as in a shell, such as 'botnet*'.
        options: of one model: its options, each with its type, its value in this model, and what it does.
        json_: print one JSON list and nothing else.
    """
    names = sorted([*list_models(pattern), *list_detectors(pattern)])
    if not names:
        near = suggestion(pattern, list(CATALOG))
        raise UserError(f"no model matches {pattern!r}{near} (attneck list: all of them)")
    if not options:
        print(json.dumps(names) if json_ else "\n".join(names))
        return
    if len(names) > 1:
        raise UserError(f"--options: {pattern!r} matches {len(names)} models, wanted one: give its name")
    parts = options_of(names[0])
    if json_:
        print(json.dumps([row for rows in parts.values() for row in rows]))
    else:
        render(names[0], parts)


def options_of(name: str) -> dict[str, list[dict[str, Any]]]:
    """The options of a model, and of a detector's backbone, under what each of the two is.

    A row has `name`, `type`, `value` and `help`.
    """
    own = CATALOG[name].options
    backbone = getattr(own, "backbone", None)
    # What every family has is of a classifier of whole images: detectors refuse it.
    refused = set(FamilyOptions.model_fields) if CATALOG[name].task == "detection" else set()
    parts = {_what(own): _rows(own, skip={"backbone"} | refused)}
    if backbone is not None:
        parts[f"Its backbone: {_what(backbone)}"] = _rows(backbone, skip={*dict(own)})
    return parts


def render(name: str, parts: dict[str, list[dict[str, Any]]]) -> None:
    """Print each option with its value and type, and under it what it does."""
    for what, rows in parts.items():
        print(textwrap.fill(what, WIDTH), end="\n\n")
        for row in rows:
            print(f"  {row['name']} {_as_typed(row['value'])}  ({row['type']})")
            print(textwrap.fill(row["help"], WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
        print()
    print(f"attneck train RECIPE --model.name {name} --model.options OPTION VALUE …")
    print(f"attneck.create_model({name!r}, OPTION=VALUE, …)")


def _what(options: FamilyOptions) -> str:
    return (type(options).__doc__ or "").partition("\n")[0]


def _rows(options: FamilyOptions, skip: set[str]) -> list[dict[str, Any]]:
    schema = type(options).model_json_schema()["properties"]
    values = dict(options)
    return [
        {
            "name": key,
            "type": _type(about),
            "value": values[key],
            "help": " ".join(about.get("description", "").split()),
        }
        for key, about in schema.items()
        if key not in skip
    ]


def _type(about: dict[str, Any]) -> str:
    """A field of a JSON schema in words: its choices, or its kind and range."""
    if "anyOf" in about:
        return " or ".join(map(_type, about["anyOf"]))
    if "enum" in about or "const" in about:
        return ", ".join(map(_as_typed, about.get("enum", [about.get("const")])))
    if about["type"] == "null":
        return "None"
    if about["type"] == "boolean":
        return "True, False"
    if about["type"] == "array":
        least, most = about.get("minItems"), about.get("maxItems")
        count = f"{least} " if least is not None and least == most else ""
        return f"{count}numbers {_range(about['items'])}".rstrip()
    return f"{about['type']} {_range(about)}".rstrip()


def _range(about: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    # MOST is there to refuse before memory is asked for: it tells nobody anything.
    return ", ".join(f"{sign} {about[key]}" for key, sign in signs.items() if about.get(key, MOST) != MOST)


def _as_typed(value: Any) -> str:
    """A value as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "''"


def main(words: list[str]) -> None:
    """Parse and run."""
    call(show, "attneck list", words)
