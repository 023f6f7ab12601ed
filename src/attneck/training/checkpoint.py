"""Checkpoints that are whole or not there: written to another name, hashed, renamed; the newest two kept.

A run's `checkpoints/` holds `step-00000042.pt` and `step-00000042.pt.sha256`, and the best one as
`best-00000021.pt` with its sum: the same file as that of its step, as long as that is kept. The sum is
written first, and the checkpoint is renamed last. So whoever finds a checkpoint finds its sum, and a write
that is cut short leaves the checkpoint before. Where a step is saved again, the file has both sums, the new
one first. Checkpoints are read with `weights_only=True` alone: they cannot run code. What else lies in the
folder is nobody's business here: it is neither removed nor counted.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attneck.errors import UserError, is_out_of_memory, one_line
from attneck.files import link_atomic, write_atomic, writing
from attneck.training.checkpoint_files import BEST, checkpoints, is_file, named, step_of, sum_of
from attneck.training.state import check

KEPT = 2
LEFT = re.compile(r"\.(step|best)-[0-9]{8,18}\.pt(\.sha256)?\.[0-9]+\.tmp")
"""What a process that was killed in a write has left."""


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`, in place of one that is there; keep the newest two.

    One that is newer than `step` was not to be used: it is left, and not counted.

    Raises:
        NotWritten: what was there stays as it was.
    """
    path = folder / f"step-{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with buffer.getbuffer() as data:  # given back here, also where an error keeps it: Python 3.13 complains
        sums = [hashlib.sha256(data).hexdigest()]
        with writing(path):
            folder.mkdir(exist_ok=True)  # not its parents: a run's folder that is gone does not come again
        _put_sum(path, sums)
        write_atomic(path, data)
    older = [old for old in checkpoints(folder) if step_of(old) <= step]
    with writing(path):  # the folder may have gone since
        _remove([file for file in folder.iterdir() if LEFT.fullmatch(file.name)])
    _remove([part for old in older[KEPT:] for part in (old, sum_of(old))])
    return path


def keep_best(folder: Path, step: int) -> None:
    """Let the checkpoint of `step`, just saved, stay as the best one whatever comes after it.

    Raises:
        NotWritten: what was there stays as it was.
    """
    source, path = folder / f"step-{step:08d}.pt", folder / f"best-{step:08d}.pt"
    with writing(path):
        sums = sum_of(source).read_text().split()
    _put_sum(path, sums)
    link_atomic(source, path)


def keep_no_other(folder: Path, step: int, best: set[int]) -> None:
    """Remove the best checkpoints up to `step` but those of the steps `best`."""
    old = [path for path in named(folder, BEST) if step_of(path) <= step and step_of(path) not in best]
    _remove([part for path in old if is_file(path) for part in (path, sum_of(path))])


def load_latest(
    folder: Path, fits: Callable[[dict[str, Any]], None] | None = None
) -> tuple[dict[str, Any], Path, list[str]]:
    """The newest whole checkpoint: its state, where it lies, and why newer ones were passed over, in lines.

    Args:
        fits: raises ValueError, with the reason, for a state that can't be used here.

    Raises:
        UserError: there is none that is whole and can be used.
    """
    passed: list[str] = []
    for path in named(folder):
        try:
            return _whole(path, fits), path, passed
        except ValueError as error:
            passed.append(str(error))
    if passed:
        raise UserError(
            f"{folder}: none of its {len(passed)} checkpoints can be used; start the run anew "
            f"({passed[0].removeprefix(f'{folder}/')})"
        )
    raise UserError(f"{folder}: no checkpoint there; start a run without --resume, into another --out")


def load_best(
    folder: Path, step: int, fits: Callable[[dict[str, Any]], None] | None = None
) -> tuple[dict[str, Any], Path]:
    """The checkpoint of `step`, kept as the best one: its state, and where it lies.

    Raises:
        UserError: it is not there, not whole, or cannot be used.
    """
    path = folder / f"best-{step:08d}.pt"
    if not os.path.lexists(path):  # as one of the newest it may still be there
        path = folder / f"step-{step:08d}.pt"
    if not os.path.lexists(path):
        raise UserError(
            f"{folder}: its best checkpoint, of step {step}, is not there; take the newest "
            "(--checkpoint newest)"
        )
    try:
        return _whole(path, fits), path
    except ValueError as error:
        raise UserError(f"{error}; take the newest (--checkpoint newest)") from None


def not_finite(state: Any, name: str = "") -> str | None:
    """The dotted name of the first tensor in nested dicts and lists that is not finite, or None."""
    if isinstance(state, Tensor):
        # A sum is read at the speed of memory. One that overflows says nothing: then each value is looked at.
        finite = bool(state.sum().isfinite()) or bool(state.isfinite().all())
        return None if finite else name
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


def _whole(path: Path, fits: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
    """A checkpoint's state; ValueError, with the file and the reason, where there is none to be used."""
    try:
        with _opened(path) as file:
            _compare(file, path)
            state: dict[str, Any] = _read(file)
        check(state, step_of(path))
        if fits is not None:
            fits(state)
        return state
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {one_line(error)[:150]}") from error


def _put_sum(path: Path, sums: list[str]) -> None:
    """Write the sums of what is about to be `path`, and of what is there: it is whole until then."""
    with writing(path):
        for file in (path, sum_of(path)):
            if os.path.lexists(file) and not is_file(file):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if path.is_file():
            sums = [*sums, _digest(path)]
    write_atomic(sum_of(path), ("\n".join(sums) + "\n").encode())


def _remove(files: list[Path]) -> None:
    for file in files:
        with suppress(OSError):  # it is in nobody's way
            file.unlink(missing_ok=True)


def _opened(path: Path) -> io.BufferedReader:
    """A file to be read; nothing else is opened, and a pipe would be waited for."""
    if os.path.lexists(path) and not is_file(path):
        raise ValueError(f"{path.name} is a link, a folder or a pipe")
    return path.open("rb")


def _digest(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(file: io.BufferedReader, path: Path) -> None:
    """Raises ValueError where a checkpoint's bytes are not those that were written."""
    try:
        with _opened(sum_of(path)) as known:
            sums = known.read(1000).split()
    except FileNotFoundError:
        raise ValueError("its SHA-256 is not beside it") from None
    if hashlib.file_digest(file, "sha256").hexdigest().encode() not in sums:
        raise ValueError("it does not match its SHA-256")
    file.seek(0)


def _read(file: io.BufferedReader) -> Any:
    """What a whole checkpoint holds."""
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # whatever torch's reader makes of a file that it did not write
        if is_out_of_memory(error):
            raise
        raise ValueError(f"it is no file of torch's: {type(error).__name__}") from error
