"""Whether operations are run, recorded for a graph, or transformed by `torch.func`."""

import torch
from torch.autograd import forward_ad


def being_exported() -> bool:
    """Whether a graph for elsewhere is being made, which must hold no operator of ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def in_a_graph() -> bool:
    """Whether operations are being recorded, for elsewhere or to be compiled, rather than run."""
    return torch.compiler.is_compiling() or being_exported()


def transformed() -> bool:
    """True inside a `torch.func` transform (grad, jvp, vmap ...) and inside a forward-mode dual level."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0
