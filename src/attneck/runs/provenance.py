"""Where a run is from, as its folder says: the command that made it, and the name of its recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from attneck.files import read_json
from attneck.training.recipe_file import shipped_recipes


def environment_of(folder: Path) -> dict[str, Any]:
    """Its environment.json; empty where it is missing or damaged."""
    return read_json(folder / "environment.json") or {}


def command(folder: Path) -> str | None:
    """The `attneck train …` that began the run, and not what went on; None where it was made in Python."""
    around = environment_of(folder)
    starts = around.get("starts")
    first = starts[0] if isinstance(starts, list) and starts and isinstance(starts[0], dict) else around
    said = first.get("command", "")
    return said if isinstance(said, str) and said.startswith("attneck train ") else None


def recipe_name(folder: Path) -> str | None:
    """The shipped recipe that the command names, or its recipe file's name; None for neither."""
    try:
        word = shlex.split(command(folder) or "")[2]
    except (ValueError, IndexError):
        return None
    return (
        word if word in shipped_recipes() else Path(word).stem if word.endswith((".yaml", ".yml")) else None
    )
