"""Which way computes relative attention: a rule of device, dtype and size, and an override.

| tensors | way |
|---|---|
| under `torch.export`, ONNX export, `torch.jit.trace`, `torch.func`, in forward mode, on meta | plain |
| on the CPU | cpu |
| on CUDA | as `cuda/choice.py` says: plain, sdpa, triton or tiled |
| on any other device (MPS, XPU, ROCm ...) | plain below 20x20, tiled from there on |

A kernel that no measurement vouches for is checked before it is taken (`selfcheck.py`). The ways round
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
from attneck.attention.graph import being_exported, transformed
from attneck.attention.operands import products_dtype
from attneck.attention.selfcheck import first_right

VARIABLE = "ATTNECK_ATTENTION"
"""The environment variable that overrides the rule."""

_asked: str | None = None
_same_bits = False


class Choice(NamedTuple):
    """A way of computing relative attention, and why it is taken."""

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

    Raises ValueError for a value of ATTNECK_ATTENTION that is no way.
    """
    if being_exported() or transformed():
        return Choice("plain", "exported graphs, torch.func and forward mode take PyTorch's own operators")
    if q.device.type == "meta":
        return Choice("plain", "nothing is computed on the meta device")
    asked = attention()
    if asked != "auto":
        return Choice(asked, f"the environment variable {VARIABLE}, or the run that goes on, asks for it")
    if q.device.type == "cpu":
        if q.dtype in DTYPES:
            return Choice("cpu", "the tensors are on the CPU")
        return Choice("plain", f"the CPU's operator does not take {q.dtype}")
    H, W = map_size
    if q.device.type != "cuda" or torch.version.hip is not None:
        side = LIMITS["any", "forward"].plain_below
        if side * side > H * W:
            return Choice("plain", f"the N x N logits of a map below {side}x{side} are small")
        return Choice("tiled", f"no kernel is made for this device ({q.device.type})")
    gradients = q.requires_grad if gradients is None else gradients
    gradients = gradients and not torch.is_inference_mode_enabled()
    dtype = products_dtype(q)
    names, reason = candidates(
        q, dtype, map_size, content=content, gradients=gradients, same_bits=same_bits()
    )
    if names[0] in ("plain", "tiled"):
        return Choice(names[0], reason)
    name, said = first_right(names, q, dtype, map_size, content=content, gradients=gradients)
    return Choice(name, reason + said)


def attention() -> str:
    """What "auto" stands for in this process: "auto" for the rule of this file, or a way that was asked for.

    The first call reads the environment variable ATTNECK_ATTENTION. ValueError for a value that is no way.
    """
    if _asked is None:
        set_attention(os.environ.get(VARIABLE) or None)
    assert _asked is not None
    return _asked


def set_attention(name: str | None) -> None:
    """Let "auto" stand for this way from now on, as a resumed run does; None or "auto" is the rule again.

    Raises ValueError for an unknown name.
    """
    global _asked
    name = name or "auto"
    if name not in ("auto", *BACKENDS):
        raise ValueError(
            f"unknown way {name!r} of computing attention; choose one of {', '.join(('auto', *BACKENDS))} "
            f"(the environment variable {VARIABLE} sets it too)"
        )
    _asked = name


def same_bits() -> bool:
    """True where gradients must be the same bits each time: `in_same_bits`, or where PyTorch was told so."""
    return _same_bits or torch.are_deterministic_algorithms_enabled()


@contextmanager
def in_same_bits() -> Iterator[None]:
    """Here "auto" takes no way that adds gradients atomically: for a run that promises the same weights."""
    global _same_bits
    before, _same_bits = _same_bits, True
    try:
        yield
    finally:
        _same_bits = before
