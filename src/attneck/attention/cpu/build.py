"""C++ sources of this folder as shared libraries: built at the first use, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from attneck.processor import processor

DTYPES = {torch.float32: "float", torch.bfloat16: "BFloat16"}
"""What functions are built for, and how floats.h calls it."""

FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
BUILT_FOR = ("model name", "flags", "CPU implementer", "CPU part", "Features", "isa")
"""What Linux says of a processor, of whatever kind, by which -march=native differs: folders are shared."""
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 120
"""Seconds that a compiler may take; it needs about one."""


def compiler() -> str | None:
    """The C++ compiler's path: that of the variable CXX, or the first of COMPILERS; None without one.

    On macOS that of CXX alone: the system's own has no OpenMP.
    """
    names = (os.environ.get("CXX"), *(COMPILERS if sys.platform != "darwin" else ()))
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def call(source: Path, name: str, dtype: torch.dtype, about: object, *tensors: Tensor | None) -> int:
    """Call a function of `source` for `dtype`; None is a null pointer.

    Raises OSError, CalledProcessError or TimeoutExpired where it cannot be built, AttributeError where the
    source has no such function.
    """
    assert all(one is None or one.is_contiguous() for one in tensors)
    function = getattr(library(source), f"{name}_{DTYPES[dtype]}")
    return int(
        function(about, *(ctypes.c_void_p(None if one is None else one.data_ptr()) for one in tensors))
    )


@cache
def library(source: Path) -> ctypes.CDLL:
    """The functions of `source`, built for this machine's processor, or taken from the user's cache.

    Raises as `call`.
    """
    built_by = compiler()
    assert built_by is not None
    about = processor()
    on = (built_by, platform.machine(), *(about.get(name, "") for name in BUILT_FOR))
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    told = "\n".join((*texts, *FLAGS, *on))
    folder = _cache()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="attneck-") as alone:
            return ctypes.CDLL(str(_build(built_by, source, Path(alone) / "built.so")))
    path = folder / f"{source.stem}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    return ctypes.CDLL(str(path if path.exists() else _build(built_by, source, path)))


def _build(built_by: str, source: Path, path: Path) -> Path:
    """Compile `source` to `path`, whole or not at all: several processes may be at it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / path.name
        command = [built_by, *FLAGS, str(source), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        os.replace(made, path)
    return path


def _cache() -> Path | None:
    """The user's own folder for what was built; None where there is none that nobody else can write to."""
    try:  # who has no home raises RuntimeError
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "attneck"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError):
        return None
    own = about.st_uid == os.getuid() and not about.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK) else None
