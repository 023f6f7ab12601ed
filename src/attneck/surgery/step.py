"""One call of a network's forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(eq=False)
class Step:
    """One call, of a module or of a torch function, that took or gave numbered tensors.

    A tensor's number is its value's: in-place functions give theirs a new one.
    """

    name: str
    """The module's dotted name, or the function's."""
    module: nn.Module | None
    owner: Step | None
    """The module call that it was made in; None for the network's own."""
    start: int
    inputs: tuple[int, ...]
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    result: Any = None
    outputs: tuple[int, ...] = ()
    parts: tuple[int | None, ...] = ()
    """Of a module that returns a list or tuple: each element's number, None where it is no tensor."""
    end: int = 0
    steps: list[Step] = field(default_factory=list)
    """What was called in it, in order."""

    def within(self, other: Step) -> bool:
        """Whether it is `other`, or was called in it."""
        return other.start <= self.start and self.end <= other.end

    def is_convolution(self) -> bool:
        """Whether it is the function of one; a linear layer is one of 1×1."""
        return self.module is None and self.name in {"conv2d", "linear"}

    def is_max_pool(self) -> bool:
        """Whether it is the function of a pooling by maxima."""
        return self.module is None and self.name.startswith("max_pool")

    def kernel(self) -> tuple[int, int]:
        """The (height, width) of a convolution's window, or of a pooling's."""
        positional, named = self.arguments
        if self.is_max_pool():
            size: Any = positional[1] if len(positional) > 1 else named["kernel_size"]
            return (size, size) if isinstance(size, int) else (size[0], size[-1])
        weight = positional[1] if len(positional) > 1 else named["weight"]
        return (1, 1) if self.name == "linear" else tuple(weight.shape[2:])

    def strides(self) -> bool:
        """Whether it is a convolution with a stride."""
        if self.name != "conv2d":
            return False
        positional, named = self.arguments
        stride: Any = positional[3] if len(positional) > 3 else named.get("stride", 1)
        return bool(max(stride if isinstance(stride, tuple | list) else [stride]) > 1)
