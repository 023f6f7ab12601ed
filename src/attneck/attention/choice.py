"""Which backend computes relative attention: a rule of device, dtype and size, and an override.

| tensors | backend |
|---|---|
| under `torch.export`, ONNX export, `torch.jit.trace`, `torch.func`, in forward mode, on meta | plain |
| on the CPU | cpu |
| on CUDA | as `cuda/choice.py` says: plain, sdpa, triton or tiled |
| on any other device (MPS, XPU, ROCm ...) | plain below 20x20, tiled from there on |

A kernel that no measurement vouches for is checked before it is taken (`selfcheck.py`). The backends round
differently, so an override is a part of what makes a run reproducible: a run can record it and set it again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from attneck.attention.backends import BACKENDS
from attneck.attention.cpu.operator import DTYPES
from attneck.attention.cuda.choice import candidates
from attneck.attention.cuda.limits import LIMITS
from attneck.attention.graph import being_exported, constant, transformed
from attneck.attention.operands import products_dtype
from attneck.attention.selfcheck import failures, first_right
from attneck.errors import UserError

VARIABLE = "ATTNECK_ATTENTION"
"""The environment variable that overrides the rule."""

_asked: str | None = None
_same_bits = False
_settled: dict[object, "Choice"] = {}


class UnknownBackendError(UserError, ValueError):
    """A name that is no backend of attention; at the command line, the user's mistake."""


class Choice(NamedTuple):
    """A backend for relative attention, and why it is taken."""

    name: str
    """One of `BACKENDS`."""
    reason: str


def choose(
    q: Tensor, map_size: tuple[int, int], *, content: bool = True, gradients: bool | None = None
) -> Choice:
    """What `relative_attention_2d` takes for these queries with backend="auto", and why.

    On CUDA, the first answer for a dtype, head width and device runs a small case of the kernel, forward and
    backward; a kernel that fails or is wrong there is left out, with one warning.

    Args:
        q: [B, h, N, d]; its numbers are not read.
        map_size: (H, W).
        content: whether there are keys.
        gradients: whether any operand requires a gradient; by default, whether q does.

    Raises ValueError for a value of ATTNECK_ATTENTION that is no backend.
    """
    if being_exported() or transformed():
        return Choice("plain", "exported graphs, torch.func and forward mode take PyTorch's own operators")
    kind = platform(q.device)
    if kind == "meta":
        return Choice("plain", "nothing is computed on the meta device")
    asked = attention()
    if asked != "auto":
        return Choice(asked, f"the environment variable {VARIABLE}, or the run that goes on, asks for it")
    if kind == "cpu":
        if q.dtype in DTYPES:
            return Choice("cpu", "the tensors are on the CPU")
        return Choice("plain", f"the CPU's operator does not take {q.dtype}")
    H, W = map_size
    if kind != "cuda":
        side = LIMITS["any", "forward"].plain_below
        if side * side > H * W:
            return Choice("plain", f"the N x N logits of a map below {side}x{side} are small")
        return Choice("tiled", f"no kernel of this project is made for {kind}")
    gradients = q.requires_grad if gradients is None else gradients
    if torch.compiler.is_compiling():  # once a graph; sizes may be symbols, which are no keys
        return _on_cuda(q, products_dtype(q), map_size, content, gradients, same_bits())[0]
    gradients = gradients and not torch.is_inference_mode_enabled()
    facts = (products_dtype(q), map_size, content, gradients, same_bits())
    key = (q.device, q.shape, torch.is_grad_enabled(), failures(), *facts)
    choice = _settled.get(key)  # once: another thread may clear it
    if choice is None:
        choice, settled = _on_cuda(q, *facts)
        if settled:
            if len(_settled) >= 4096:  # sizes that never come twice
                _settled.clear()
            _settled[key] = choice
    return choice


def _on_cuda(
    q: Tensor,
    dtype: torch.dtype,
    map_size: tuple[int, int],
    content: bool,
    gradients: bool,
    same_bits: bool,
) -> tuple[Choice, bool]:
    """The choice, and whether it is the one for good: a check may have to wait."""
    names, reason = candidates(q, dtype, map_size, content=content, gradients=gradients, same_bits=same_bits)
    if len(names) == 1:
        return Choice(names[0], reason), True
    name, said, settled = first_right(names, q, dtype, map_size, content=content, gradients=gradients)
    return Choice(name, reason + said), settled


def platform(device: torch.device) -> str:
    """A device's type, "cuda" for NVIDIA's alone: PyTorch calls AMD's so too."""
    return "rocm" if device.type == "cuda" and torch.version.hip is not None else device.type


def attention() -> str:
    """What "auto" stands for in this process: "auto" for the rule of this file, or one that was asked for.

    The first call reads the environment variable ATTNECK_ATTENTION. ValueError for a value that is none.
    """
    _read_environment()
    assert _asked is not None
    return _asked


@constant
def _read_environment() -> None:
    """A compiler calls this as it traces: a graph that guards on `_asked` finds what its next call finds."""
    if _asked is None:
        set_attention(os.environ.get(VARIABLE) or None)


def set_attention(name: str | None) -> None:
    """Let "auto" stand for this backend from now on, as a resumed run does; None or "auto" is the rule again.

    Raises ValueError for an unknown name.
    """
    global _asked
    name = name or "auto"
    if name not in ("auto", *BACKENDS):
        raise UnknownBackendError(
            f"unknown backend {name!r} of attention; choose one of {', '.join(('auto', *BACKENDS))} "
            f"(the environment variable {VARIABLE} sets it too)"
        )
    _asked = name


def same_bits() -> bool:
    """True where gradients must be the same bits each time: `in_same_bits`, or where PyTorch was told so."""
    return _same_bits or torch.are_deterministic_algorithms_enabled()


@contextmanager
def in_same_bits() -> Iterator[None]:
    """Here "auto" takes none that adds gradients atomically: for a run that promises the same weights."""
    global _same_bits
    before, _same_bits = _same_bits, True
    try:
        yield
    finally:
        _same_bits = before
