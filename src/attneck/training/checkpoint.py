"""Checkpoints that are whole or not there: written aside, hashed, renamed; the previous one kept.

A run's `checkpoints/` holds `step-00000042.pt` and `step-00000042.pt.sha256`. The sum is written first, the
checkpoint renamed into place last, so a reader that finds the file finds the sum of it; whatever is cut short
in between leaves the one before. Read with `weights_only=True` alone: a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attneck.errors import UserError
from attneck.files import write_atomic

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, then drop all but the newest two.

    Raises:
        OSError: the disk would not take it (full, read-only): what was there stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:08d}.pt"
    write_atomic(_sum_of(path), (hashlib.sha256(data).hexdigest() + "\n").encode())
    write_atomic(path, data)
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
        _sum_of(old).unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest step first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def load_latest(folder: Path) -> tuple[dict[str, Any], Path, list[Path]]:
    """The newest whole checkpoint: its state, where it lies, and the newer ones that were passed over.

    Raises:
        UserError: there is none, or none whose bytes are those that were written.
    """
    damaged: list[Path] = []
    for path in checkpoints(folder):
        data = path.read_bytes()
        wanted = _sum_of(path)
        if wanted.is_file() and wanted.read_text().strip() == hashlib.sha256(data).hexdigest():
            state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            return state, path, damaged
        damaged.append(path)
    if damaged:
        raise UserError(
            f"{folder}: none of its {len(damaged)} checkpoints matches its SHA-256; start the run anew"
        )
    raise UserError(f"{folder}: no checkpoint there; start the run without --resume")


def digest(state: dict[str, Tensor]) -> str:
    """16 hex digits that stand for every bit of a state dict."""
    sums = hashlib.sha256()
    for name, tensor in state.items():
        sums.update(name.encode())
        sums.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()[:16]


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
