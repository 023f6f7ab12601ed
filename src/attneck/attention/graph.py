"""Whether operations are run, or recorded for a graph."""

import torch


def being_exported() -> bool:
    """Whether a graph for elsewhere is being made, which must hold no operator of ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def in_a_graph() -> bool:
    """Whether operations are being recorded, for elsewhere or to be compiled, rather than run."""
    return torch.compiler.is_compiling() or being_exported()
