"""A network that runs compiled beside itself as it is: `compile: true` in a recipe.

The network's own modules stay as they are. So checkpoints, averages and whatever hangs hooks on a layer see
plain names and plain modules, and the compiled form is only what training and scoring call.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attneck.errors import UserError
from attneck.training.recipe import Recipe

BACKEND = "inductor"
MOST = 512
"""Compiled forms of one function in a process. torch's own limit is 8, and beyond it a network would run
uncompiled, with other roundings than the same run had when it began."""


class Compiled(nn.Module):
    """`network`, compiled where it is called through this module; the weights are the network's own.

    In training each size is compiled for itself: a run has one. Where no gradient is taken the number of
    images is left open, for the last batch is a smaller one. Which sizes came before changes nothing: a run
    that goes on would have other kernels otherwise, and with them other roundings.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # In a tuple: as a child its weights would have a second name.
        self._compiled = (torch.compile(network, dynamic=False, backend=BACKEND),)

    def forward(self, x: Tensor) -> Any:
        """x [B, C, H, W] → what the network says of it."""
        if not torch.is_grad_enabled() and len(x) > 1:  # a single one is a form of its own in any case
            torch._dynamo.maybe_mark_dynamic(x, 0)
        return self._compiled[0](x)


class PartCompiled(nn.Module):
    """`network`, with one of its children compiled where it is called through this module.

    A detector: behind its maps, the number of regions is another in each image, so they run as written.
    """

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part
        self._compiled = (Compiled(network.get_submodule(part)),)

    def forward(self, *inputs: Any) -> Any:
        """What the network says of its inputs."""
        children = self.network._modules
        own = children[self.part]
        children[self.part] = self._compiled[0]
        try:
            return self.network(*inputs)
        finally:
            children[self.part] = own


def to_call(network: nn.Module, recipe: Recipe) -> nn.Module:
    """What stands for `network` in training and scoring: itself, or its compiled form.

    A network that says so (`compiled_part`) is compiled in that child alone.
    """
    if not recipe.compile:
        return network
    part: str | None = getattr(network, "compiled_part", None)
    return Compiled(network) if part is None else PartCompiled(network, part)


@contextmanager
def compiling(recipe: Recipe) -> Iterator[None]:
    """Inside it as many forms are compiled as a run needs."""
    if not recipe.compile:
        yield
        return
    with torch._dynamo.config.patch(recompile_limit=MOST, accumulated_recompile_limit=2 * MOST):
        yield


def as_written() -> AbstractContextManager[None]:
    """A context in which nothing runs compiled, for hooks that must see every module."""
    stance: Any = torch.compiler.set_stance("force_eager")
    plain: AbstractContextManager[None] = stance
    return plain


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """Refuse a recipe that compiles where that cannot be.

    Raises:
        UserError: what is missing.
    """
    if not recipe.compile:
        return
    if not torch._dynamo.is_dynamo_supported():
        raise UserError(
            f"compile: torch {torch.__version__} cannot compile under this Python: give compile false"
        )
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "compile: this GPU's compiler, triton, is missing: install it, or give compile false"
            )
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            raise UserError(
                "compile: triton finds no C compiler: install gcc or clang (or name one in CC), or give "
                "compile false"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler

    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise UserError(
            "compile: Python's own headers are missing (Python.h): install python3-dev, or give compile false"
        )
    try:
        get_cpp_compiler()
    except RuntimeError:
        raise UserError(
            "compile: there is no C++ compiler: install g++ or clang++ (or name one in CXX), or give "
            "compile false"
        ) from None
