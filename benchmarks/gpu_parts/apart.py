"""One part in a process of its own: it may hang, crash or spoil the GPU's context, and the next part runs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

from attneck.errors import UserError, one_line

from .kept import DONE, FAILED, NOT_HERE, TRIES, UNFINISHED, Job, Kept, NotHere, where

Work = Callable[[Kept, Job], bool]
"""A part: what is missing of its rows, until its time is over; True where nothing is left."""
GRACE = 20.0
"""Seconds that a part has for its last row when its time is over."""
SLOW = 120.0
"""Seconds after which a row that is stopped is one that doesn't fit, rather than one that came too late."""
SPOILT, REFUSED = 75, 76
"""Exit codes: the GPU's context is lost, what was done is written, and a new process goes on; the documents
of another machine are in the folder."""


def apart(name: str, work: Work, job: Job, grace: float = GRACE) -> str:
    """Do `work` in its time, again after each crash without what crashed; its state at the end.

    Only what crashed is left out, with the reason; an exception of the part itself ends it as failed.
    """
    path = job.out / f"{name}.json"
    try:
        Kept(path).ended_in("the command ended in it, time and again", counts=1)
        while True:
            code = _in_time(path, work, job, grace)
            kept = Kept(path)
            if code == REFUSED:
                return FAILED
            if code == SPOILT:
                again = True
            elif code is None:
                began = kept.document.get("under_way", {}).get("since", time.time())
                slow = time.time() - began > SLOW
                kept.ended_in(f"not done after {SLOW:.0f} s", counts=1 if slow else 0)
                again = False
            elif code:
                again = kept.ended_in(f"its process ended: {_said(code)}", counts=TRIES)
                if not again and kept.document["state"] == UNFINISHED:
                    kept.close(FAILED, f"its process ended: {_said(code)}")
            else:
                again = False
            if not again or job.left <= 0:
                return str(kept.document["state"])
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED


def _in_time(path: Path, work: Work, job: Job, grace: float) -> int | None:
    """The exit code of a process that does it; None where its time was over, and it was ended."""
    sys.stdout.flush()
    process = get_context("fork").Process(target=_inside, args=(path, work, job, os.getpid()))
    process.start()
    try:
        process.join(max(job.left, 0) + grace)
        if process.is_alive():
            return None
        return process.exitcode
    finally:
        # Terminated first: a training saves its step then.
        for end in (process.terminate, process.kill):
            if process.is_alive():
                end()
                process.join(grace)


def _inside(path: Path, work: Work, job: Job, parent: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":  # so nothing goes on measuring when the command itself is killed
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
    from attneck.training.environment import environment

    code = 0
    try:
        kept = Kept(path)
        kept.on(where(job))
        kept.document["environment"] = environment()
        try:
            kept.close(UNFINISHED)
            over = work(kept, job)
        except NotHere as error:
            kept.close(NOT_HERE, str(error))
        except Exception as error:
            traceback.print_exc()
            kept.document.pop("under_way", None)
            kept.close(FAILED, f"{type(error).__name__}: {error}")
        else:
            kept.close(DONE if over else UNFINISHED)
    except UserError as error:
        print(f"attneck: {error}", file=sys.stderr)
        code = REFUSED
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End without the exit handlers of the process that this one was forked from."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _said(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def reason(error: BaseException) -> str:
    """Why somebody is left out of a row, in one line."""
    from attneck.errors import is_out_of_memory

    if is_out_of_memory(error):
        return "does not fit"
    return one_line(f"{type(error).__name__}: {error}", 300)


def sound(kept: Kept, device: str) -> None:
    """End the process where the GPU's context is lost: all that follows would fail for it."""
    if device == "cuda":
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            kept.ended_in(one_line(error, 300))
            _leave(SPOILT)
