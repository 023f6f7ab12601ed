"""Whether the passes over attention's logits and BAM's maps are compiled functions: built, tested, chosen.

That takes a C++ compiler: the functions are built at the first use (a second or two) and kept in the user's
cache. Without a compiler, or where what it made fails its test, PyTorch's operators do the work.

The two ways round differently, so the choice is a part of what makes a run reproducible: a run can record it
and set it again.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from functools import cache
from typing import Literal, get_args

from attneck.attention.cpu import gate_passes, tile_passes
from attneck.attention.cpu.build import compiler
from attneck.attention.graph import apart, constant

Passes = Literal["fused", "operators"]

VARIABLE = "ATTNECK_PASSES"
"""The environment variable that overrides the choice."""

_passes: Passes | None = None


@constant
def passes() -> Passes:
    """What is in use: "fused", or "operators" for PyTorch's. The first call decides for the process.

    The environment variable ATTNECK_PASSES comes before the rule: fused where it can be built and is right.

    Raises ValueError for a value of that variable that is neither, and for "fused" where it does not work.
    """
    if _passes is None:
        set_passes(os.environ.get(VARIABLE) or None)
        assert _passes is not None
    return _passes


def set_passes(name: str | None) -> None:
    """Use this from now on, as a resumed run does; None decides by what this machine can build.

    Raises ValueError for an unknown name, and for "fused" where it can't be built or is wrong.
    """
    global _passes
    if name is not None and name not in get_args(Passes):
        raise ValueError(
            f"unknown way {name!r} for attention's and BAM's passes; choose one of "
            f"{', '.join(get_args(Passes))} (the environment variable {VARIABLE} sets it too)"
        )
    why_not = None if name == "operators" else trouble()
    if name == "fused" and why_not:
        raise ValueError(
            f"fused passes were asked for, but {why_not}; choose 'operators' (the environment variable "
            f"{VARIABLE} sets it too), or mend that"
        )
    if name is None and why_not and compiler():  # a machine without a compiler is nothing to warn of
        warnings.warn(f"attention and BAM take PyTorch's operators for their passes: {why_not}", stacklevel=2)
    _passes = "operators" if name == "operators" or why_not else "fused"


@cache
def trouble() -> str | None:
    """Why the functions cannot be used, or None where they can: they are built, and right."""
    if compiler() is None:
        return "there is no C++ compiler"
    try:
        right = apart(lambda: tile_passes.right() and gate_passes.right())
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "no message").strip().splitlines()[-1][:150]
        return f"{compiler()} could not build them ({last})"
    except (OSError, AttributeError, subprocess.TimeoutExpired) as error:
        return f"they could not be built or loaded ({str(error)[:150]})"
    return None if right else f"what {compiler()} made of them gives wrong numbers"
