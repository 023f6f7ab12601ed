"""Checkpoints that are whole or not there: written to another name, hashed, renamed; the newest two kept.

A run's `checkpoints/` holds `step-00000042.pt` and `step-00000042.pt.sha256`. The sum is written first, and
the checkpoint is renamed last. So whoever finds a checkpoint finds its sum, and a write that is cut short
leaves the checkpoint before. Where a step is saved again, the file has both sums, the new one first.
Checkpoints are read with `weights_only=True` alone: they cannot run code.
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
    """Write `state` as the checkpoint of `step`, in place of one that is there; keep the newest two.

    Raises:
        OSError: the disk is full or read-only: what was there stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = folder / f"step-{step:08d}.pt"
    sums = [hashlib.sha256(data).hexdigest()]
    if path.is_file():  # it is whole until the new one is in its place
        sums.append(hashlib.sha256(path.read_bytes()).hexdigest())
    write_atomic(_sum_of(path), ("\n".join(sums) + "\n").encode())
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
        if wanted.is_file() and hashlib.sha256(data).hexdigest() in wanted.read_text().split():
            state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            return state, path, damaged
        damaged.append(path)
    if damaged:
        raise UserError(
            f"{folder}: none of its {len(damaged)} checkpoints matches its SHA-256; start the run anew"
        )
    raise UserError(f"{folder}: no checkpoint there; start the run without --resume")


def not_finite(state: Any, name: str = "") -> str | None:
    """The dotted name of the first tensor in nested dicts and lists that is not finite, or None."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else name
    parts = state.items() if isinstance(state, dict) else enumerate(state if isinstance(state, list) else [])
    found = (not_finite(part, f"{name}.{key}".removeprefix(".")) for key, part in parts)
    return next((fault for fault in found if fault is not None), None)


def digest(state: dict[str, Tensor]) -> str:
    """16 hex digits that stand for every bit of a state dict."""
    sums = hashlib.sha256()
    for name, tensor in state.items():
        sums.update(name.encode())
        sums.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()[:16]


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
