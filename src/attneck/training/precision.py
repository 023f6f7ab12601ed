"""Mixed precision: autocast to bfloat16, also where the processor multiplies no bfloat16.

There (x86 without AVX-512) PyTorch's convolutions and products in bfloat16 go number by number, several
times slower than in float32. So there each is computed in float32, of operands and with a result that are
rounded to bfloat16: what hardware does that multiplies bfloat16 and adds up in float32. It costs what float32
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from attneck.attention.cpu.choice import emulated
from attneck.training.recipe import Recipe

PRODUCTS: frozenset[Callable[..., Any]] = frozenset(
    [
        *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear),
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.einsum),
        *(torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm, Tensor.addmm),
        *(torch.baddbmm, Tensor.baddbmm, F.scaled_dot_product_attention),
    ]
)
"""The functions in whose place autocast to bfloat16 computes in bfloat16, by the names networks use."""


@contextmanager
def precision(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """A context: autocast to bfloat16 where the recipe asks for it."""
    half = recipe.precision == "bfloat16"
    slow = half and device.type == "cpu" and emulated(torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16, enabled=half), Rounded() if slow else nullcontext():
        yield


class Rounded(TorchFunctionMode):
    """Within autocast to bfloat16 on the CPU: products in float32, what they take and give in bfloat16."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, _rounded, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            result = function(*args, **kwargs)
        return result.to(torch.bfloat16) if result.dtype == torch.float32 else result


def _rounded(x: Tensor) -> Tensor:
    """As autocast casts: float64 and what isn't floating point stay."""
    cast = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.bfloat16).float() if cast else x
