"""What is found out of a finished run afterwards: once, and kept beside its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attneck.errors import UserError
from attneck.files import write_json
from attneck.training.checkpoint_files import checkpoints

Found = dict[str, Any]
"""As JSON has it."""
WEIGHTS = "weights"
"""Beside what was found, the digest of the weights that it was found of; files of before have none."""


def read(file: Path) -> Found:
    """What is kept there of the run's weights; nothing where there is no such file.

    A run may have gone on since, with more patience: what was found of its weights before does not count.

    Raises:
        UserError: what is no JSON, or no object.
    """
    try:
        found: Found = json.loads(file.read_text())
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): remove it, it is found out again") from None
    now = _weights(file.parent)
    return found if found.get(WEIGHTS, now) == now else {}


def keep(file: Path, key: str, value: object) -> None:
    """Keep `value` under `key`, beside what else is kept of the run's weights."""
    write_json(file, {WEIGHTS: _weights(file.parent)} | read(file) | {key: value})


def has_weights(folder: Path) -> bool:
    """Whether a run's checkpoints are still there: without them nothing more is found out of it."""
    return bool(checkpoints(folder / "checkpoints"))


def _weights(folder: Path) -> str | None:
    """Their digest, from the summary."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary.get(WEIGHTS)
