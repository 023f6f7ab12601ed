"""Which library multiplies float32 matrices on the CPU: decided by the processor, and never by a clock.

PyTorch brings two libraries. Its own `mm` goes to MKL (elsewhere than on x86, to what it was built with);
oneDNN is reached by one private operator. They round differently, so the choice is a part of what makes a run
reproducible: it is the same in every process on a machine, and a run can record it and set it again.

Measured, MKL's time over oneDNN's, one thread, products of 256 to 1024 a side (`benchmarks/choices.py`):

| processor | AVX-512 | MKL / oneDNN | choice | attention by it from |
|---|---|---|---|---|
| AMD Zen 5 (family 26) | yes | above 2 | oneDNN | 144 tokens |
| AMD Zen 4 (family 25) | yes | 1.04 to 1.16, and 0.94 on small operands | oneDNN | 400 tokens |
| AMD Zen 3 (family 25) | no | 0.93 to 1.00, and 0.6 on small operands | MKL | |
| Intel (family 6, model 167) | yes | 0.91 to 0.99, and 0.8 on small operands | MKL | |
| all others | | not measured | MKL | |

The likely reason: MKL keeps to AVX2 on AMD's processors. That costs half on Zen 5, and little on Zen 4, which
runs AVX-512 in two halves. Below so many tokens attention's products are small ones, a head each, and go
through `mm` and `bmm`; the projections of all tokens go through the library that is chosen.
"""

import os
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from attneck.attention.graph import apart, constant
from attneck.processor import processor

Products = Literal["onednn", "mkl"]

VARIABLE = "ATTNECK_PRODUCTS"
"""The environment variable that overrides the rule."""

TOKENS = 144
"""From which attention's products go through oneDNN where it is chosen, on others than FAMILIES."""
FAMILIES = {"26": TOKENS, "25": 400}
"""AMD's that are faster by it with AVX-512, and from how many tokens."""

_products: Products | None = None


def float32_products() -> Products:
    """The library in use: "onednn", or "mkl" for PyTorch's own `mm`. The first call decides for the process.

    The environment variable ATTNECK_PRODUCTS comes before the rule of this file.

    Raises ValueError for a value of that variable that is neither, and for "onednn" where it does not work.
    """
    if _products is None:
        set_float32_products(os.environ.get(VARIABLE) or None)
        assert _products is not None
    return _products


def set_float32_products(name: str | None) -> None:
    """Use this library from now on, as a resumed run does; None decides by the processor.

    Raises ValueError for an unknown name, and for "onednn" where its operator is missing or wrong.
    """
    global _products
    if name is None:
        _products = "onednn" if onednn_from(processor()) is not None and onednn_works() else "mkl"
        return
    if name not in get_args(Products):
        raise ValueError(
            f"unknown library {name!r} for float32 products; choose one of {', '.join(get_args(Products))} "
            f"(the environment variable {VARIABLE} sets it too)"
        )
    if name == "onednn" and not onednn_works():
        raise ValueError(
            "oneDNN was asked for, but this PyTorch's operator for it is missing or gives wrong products; "
            f"choose 'mkl' (the environment variable {VARIABLE} sets it too)"
        )
    _products = "onednn" if name == "onednn" else "mkl"


def onednn_from(about: dict[str, str]) -> int | None:
    """The tokens from which oneDNN is faster than MKL on this processor (the table above), if any."""
    if about.get("vendor_id") != "AuthenticAMD" or "avx512f" not in about.get("flags", "").split():
        return None
    return FAMILIES.get(about.get("cpu family", ""))


def attends_by_onednn(tokens: int) -> bool:
    """Whether float32 attention over so many tokens goes through oneDNN."""
    return float32_products() == "onednn" and tokens >= _tokens()


@cache
def _tokens() -> int:
    return onednn_from(processor()) or TOKENS


def onednn_works() -> bool:
    """Whether oneDNN's private operator is there and gives right products."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and apart(_onednn_is_right)


def _onednn_is_right() -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator, device="cpu", dtype=torch.float32).unbind()
    try:
        return bool((onednn(a, b).double() - a.double() @ b.double().T).abs().max() <= 1e-3)
    except (RuntimeError, TypeError, NotImplementedError):  # a private operator may change
        return False


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias by oneDNN: [M, K], [N, K], [N] -> [M, N]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


@constant
def emulated(dtype: torch.dtype) -> bool:
    """Whether products in this half precision are emulated here, 10 to 100 times slower than float32.

    On x86 that is without AVX-512 for bfloat16, and without its half-precision instructions for float16.
    """
    ask = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    supported = getattr(torch.ops.mkldnn, ask, None) if ask else None
    return supported is not None and not supported()
