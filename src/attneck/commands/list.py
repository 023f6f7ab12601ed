"""attneck list: the models there are."""

from __future__ import annotations

import json
from typing import Annotated

import tyro

from attneck.commands.arguments import call
from attneck.errors import UserError, suggestion
from attneck.models.catalog import CATALOG, list_detectors, list_models


def show(
    pattern: Annotated[str, tyro.conf.Positional] = "*",
    /,
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """The models there are.

    Args:
        pattern: as in a shell, such as 'botnet*'.
        json_: print one JSON list and nothing else.
    """
    names = sorted([*list_models(pattern), *list_detectors(pattern)])
    if not names:
        near = suggestion(pattern, list(CATALOG))
        raise UserError(f"no model matches {pattern!r}{near} (attneck list: all of them)")
    print(json.dumps(names) if json_ else "\n".join(names))


def main(words: list[str]) -> None:
    """Parse and run."""
    call(show, "attneck list", words)
