"""Backward by ordinary PyTorch, for `autograd.Function`s of which a second derivative is asked."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attneck.attention.graph import transformed


def is_asked_twice(*grads: Tensor) -> bool:
    """True in a backward whose own operations are differentiated (`create_graph=True`) or transformed.

    Also where autograd gives many gradients at once, as `is_grads_batched` and `jacobian(vectorize=True)` do.
    """
    batched = any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)
    return torch.is_grad_enabled() or transformed() or batched


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grads: Tensor | tuple[Tensor, ...],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of `function(*inputs)` from its outputs' `grads`, differentiable in their turn.

    `function` is made of PyTorch's own operations. None where no gradient is `wanted`.
    """
    with torch.enable_grad():
        # Aliases: one input may have been computed from another, and that way is not this function's.
        own = [None if given is None else given.view_as(given) for given in inputs]
        asked = [
            given for given, is_wanted in zip(own, wanted, strict=True) if given is not None and is_wanted
        ]
        made = function(*own)
        pairs = zip(_many(made), _many(grads), strict=True)
        outputs, above = zip(
            *(pair for pair in pairs if pair[0].requires_grad), strict=True
        )  # of what is asked
        found = iter(torch.autograd.grad(outputs, asked, above, create_graph=True))
        return [
            next(found) if given is not None and is_wanted else None
            for given, is_wanted in zip(own, wanted, strict=True)
        ]


def _many(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tensors if isinstance(tensors, tuple) else (tensors,)
