"""How PyTorch runs the code that asks: eagerly, for a graph, or under a transform of derivatives."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

F = TypeVar("F", bound=Callable[..., object])
R = TypeVar("R")

WAY_OUT = (
    "set backend='plain' on the MHSA2d (an argument, and an attribute of a layer that is built), "
    "or pass it to relative_attention_2d"
)
"""What a user does where an operator has no derivative; the end of every such message."""


def apart(function: Callable[[], R]) -> R:
    """`function()` in a thread of its own: outside of the modes, autocast and counters of who asks."""
    with ThreadPoolExecutor(1, "attneck self-check") as thread:
        return thread.submit(function).result()


def constant(function: F) -> F:
    """Marks a function that a compiler calls as it traces, and whose result it takes for a constant.

    `torch.compiler.assume_constant_result` sets the same mark, and imports the compiler for it, in every
    process that has a layer and compiles nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def being_exported() -> bool:
    """True in `torch.export`, ONNX export and `torch.jit.trace`, whose graphs hold no operator of ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def in_a_graph() -> bool:
    """True where operations are recorded, to be exported or compiled, and not run."""
    return torch.compiler.is_compiling() or being_exported()


def intercepted(*tensors: Tensor | None) -> bool:
    """True where something else than PyTorch's kernels takes the operations: memory alone tells nothing then.

    That is inside a dispatch mode (`make_fx`, `FakeTensorMode`, selective checkpointing, `FlopCounterMode`),
    and for tensors of a class of their own (`FakeTensor`, `DTensor`).
    """
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(one is not None and type(one) not in (Tensor, nn.Parameter) for one in tensors)


def in_forward_mode() -> bool:
    """True inside a level of forward-mode differentiation: `torch.func.jvp`, or `forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def transformed() -> bool:
    """True in forward mode and inside any transform of `torch.func` (grad, vjp, jvp, vmap and those on them).

    An operator registered by `torch.library.custom_op` drops tangents there without a word, and knows no
    transform. So nobody may call one where this is true.
    """
    return in_forward_mode() or _in_functorch()


@constant
def _in_functorch() -> bool:
    """True inside a transform of `torch.func`; a compiler asks while it traces, and guards on the stack."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def refuse_transforms(backend: str) -> None:
    """NotImplementedError where `transformed`: for a backend that was chosen by name."""
    if transformed():
        raise NotImplementedError(
            f"the {backend} backend of relative attention has no forward-mode derivative and no transform of "
            f"torch.func; {WAY_OUT}"
        )


def refuse_tangents(backend: str) -> None:
    """NotImplementedError in forward mode: for a backward pass whose forward pass ran outside it."""
    if in_forward_mode():
        raise NotImplementedError(f"the backward pass of {backend} has no forward-mode derivative; {WAY_OUT}")


def no_second_derivative(*_: object) -> None:
    """The gradient of a backward operator: NotImplementedError."""
    raise NotImplementedError(f"this operator is differentiable once; for second derivatives {WAY_OUT}")
