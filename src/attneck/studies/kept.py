"""What is found out of a finished run afterwards: once, and kept beside its summary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attneck.errors import UserError
from attneck.files import write_atomic
from attneck.training.checkpoint_files import checkpoints

Found = dict[str, Any]
"""As JSON has it."""


def read(file: Path) -> Found:
    """What is kept there; nothing where there is no such file.

    Raises:
        UserError: what is no JSON.
    """
    try:
        found: Found = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}): remove it, it is found out again") from None
    return found


def once(file: Path, key: str, find: Callable[[], Any]) -> None:
    """Keep what `find` says under `key`, unless something is kept there."""
    found = read(file)
    if key not in found:
        found[key] = find()
        write_atomic(file, (json.dumps(found, indent=1) + "\n").encode())


def has_weights(folder: Path) -> bool:
    """Whether a run's checkpoints are still there: without them nothing more is found out of it."""
    return bool(checkpoints(folder / "checkpoints"))
