"""The passes of BAM's gate over a map, and sums of its columns, as compiled functions (gate.cpp).

Letters as in attention/gate.py: a map lies as matrices [B, O, I]; rows have the logits a, columns b. Whoever
calls these asks first whether compiled passes are in use (`passes.passes`).
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from attneck.attention.cpu.build import call

SOURCE = Path(__file__).with_name("gate.cpp")
CHUNK = 64
"""Rows whose columns are summed by themselves; a constant, so that threads change no bit."""
COMBINES = {"sum": "Sum", "prod": "Product", "max": "Maximum"}
"""The gate's, by gate.cpp's names."""


class Map(ctypes.Structure):
    """B matrices of O rows and I columns; rows in a chunk, and threads to use."""

    _fields_ = [(name, ctypes.c_int64) for name in ("B", "O", "I", "chunk", "threads")]


def weigh(x: Tensor, a: Tensor, b: Tensor, combine: str, out: Tensor) -> None:
    """x + x * sigmoid(combine(a, b)) into `out`: x and out [B, O, I] of DTYPES, a [B, O], b [B, I].

    All but a and b are dense.
    """
    _call(f"weigh_{COMBINES[combine]}", x, *_dense(a, b), out)


def gradients(
    x: Tensor, a: Tensor, b: Tensor, combine: str, above: Tensor, dx: Tensor
) -> tuple[Tensor, Tensor]:
    """From the gradient `above` of `weigh`'s result: x's into `dx`, a's [B, O] and b's [B, I].

    Operands as of `weigh`; of both logits the gradients are float32.
    """
    da, by_chunk = a.new_empty(a.shape, dtype=torch.float32), _by_chunk(x)
    _call(f"gradients_{COMBINES[combine]}", x, *_dense(a, b), above, dx, da, by_chunk)
    return da, by_chunk.sum(1)


def column_sums(x: Tensor) -> Tensor:
    """[B, O, I] of DTYPES, dense -> [B, I], in float32."""
    by_chunk = _by_chunk(x)
    _call("column_sums", x, by_chunk)
    return by_chunk.sum(1)


def _dense(*logits: Tensor) -> list[Tensor]:
    return [one.float().contiguous() for one in logits]


def _by_chunk(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], -(-x.shape[1] // CHUNK), x.shape[2], dtype=torch.float32)


def _call(name: str, x: Tensor, *others: Tensor | None) -> None:
    about = Map(*x.shape, CHUNK, torch.get_num_threads())
    assert all(one is None or one.dtype in (torch.float32, x.dtype) for one in others)
    call(SOURCE, name, x.dtype, about, x, *others)


def right() -> bool:
    """Whether the functions agree with their formulas in float64, on whole vectors and on parts of one."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32)

    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for columns in (5, 16):
            x, above = (normal(2, CHUNK + 1, columns).to(dtype) for _ in range(2))
            a, b = 3 * normal(2, CHUNK + 1), 3 * normal(2, columns)
            a[0, 0] = 100.0
            for combine in COMBINES:
                out, dx = torch.empty_like(x), torch.empty_like(x)
                weigh(x, a, b, combine, out)
                got = [out, dx, *gradients(x, a, b, combine, above, dx)]
                for one, other in zip(got, _exact(x, a, b, combine, above), strict=True):
                    if not (one.double() - other).abs().max() <= bound * other.abs().max():  # nor NaN
                        return False
            if not (column_sums(x).double() - x.double().sum(1)).abs().max() <= 1e-4:
                return False
    return True


def _exact(x: Tensor, a: Tensor, b: Tensor, combine: str, above: Tensor) -> list[Tensor]:
    """`weigh`'s result and its three gradients, in float64. No two logits are equal."""
    x, above, a, b = x.double(), above.double(), a.double()[..., None], b.double()[:, None]
    one = torch.ones_like(a)
    both, of_a, of_b = {
        "sum": (a + b, one, one),
        "prod": (a * b, b, a),
        "max": (torch.maximum(a, b), a > b, b > a),
    }[combine]
    s = both.sigmoid()  # [B, O, I]
    of_both = above * x * s * (1 - s)
    return [x * (1 + s), above * (1 + s), (of_both * of_a).sum(2), (of_both * of_b).sum(1)]
