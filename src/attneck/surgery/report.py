"""What a piece of surgery changed: which modules, which tensors, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from attneck.measure import Counts, count
from attneck.surgery.intermediates import maps_of, warn_of_others
from attneck.surgery.trace import Trace


@dataclass(frozen=True)
class Change:
    """One new module."""

    name: str
    """Its dotted name."""
    kind: str
    """What it is: "BAM", "MHSA2d" …"""
    channels: int
    map_size: tuple[int, int] | None
    """Of the map that it sees, on the report's image size; None where it is the same for all maps."""
    stride: int = 1
    replaced: str = ""
    """What stood there before, if anything did."""

    def __str__(self) -> str:
        where = f" on {self.map_size[0]}×{self.map_size[1]}" if self.map_size else ""
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        before = f" instead of {self.replaced}" if self.replaced else ""
        return f"{self.name}: {self.kind} of {self.channels} channels{where}{stride}{before}"


@dataclass(frozen=True)
class Report:
    """The new modules, what became of the state dict's tensors, and what an image costs before and after."""

    network: str
    image_size: tuple[int, int]
    changes: tuple[Change, ...]
    kept: tuple[str, ...]
    """State-dict names of the tensors that are as they were, value and name."""
    new: tuple[str, ...]
    gone: tuple[str, ...]
    before: Counts
    after: Counts
    unstrided: tuple[str, ...] = ()
    """Modules that make no map smaller any more."""

    def __str__(self) -> str:
        H, W = self.image_size
        params, madds = self.after.params - self.before.params, self.after.madds - self.before.madds
        return "\n".join(
            [
                f"{self.network}, on an image of {H}×{W}:",
                *(f"  {change}" for change in self.changes),
                *(f"  {name}: no stride any more" for name in self.unstrided),
                f"  tensors: {len(self.kept)} kept, {len(self.new)} new, {len(self.gone)} gone",
                f"  parameters: {self.before.params:,} → {self.after.params:,} ({params:+,})",
                f"  multiply-adds: {self.before.madds / 1e9:.3f} G → {self.after.madds / 1e9:.3f} G "
                f"({madds / 1e9:+.3f} G)",
            ]
        )


class Result(NamedTuple):
    """The model, which is the one that was given, and what was changed in it."""

    model: nn.Module
    report: Report


class Ledger:
    """What a model has and costs before it is changed, to be compared with afterwards."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.model, self.trace = model, trace
        self.tensors, self.before = state_tensors(model), self._count()
        self.maps = maps_of(trace.skeleton, trace)

    def close(self, changes: list[Change], unstrided: Sequence[str] = ()) -> Result:
        """The model, changed by now, and the report; LeftOutWarning as `warn_of_others`."""
        warn_of_others(self.model, self.maps, self.trace, [change.name for change in changes])
        tensors = state_tensors(self.model)
        kept = dict.fromkeys(n for n, tensor in self.tensors.items() if tensors.get(n) is tensor)
        report = Report(
            type(self.trace.skeleton).__name__,
            self.trace.image_size,
            tuple(changes),
            kept=tuple(kept),
            new=tuple(name for name in tensors if name not in kept),
            gone=tuple(name for name in self.tensors if name not in kept),
            before=self.before,
            after=self._count(),
            # A convolution that attention has replaced is among the changes.
            unstrided=tuple(name for name in unstrided if name not in {each.name for each in changes}),
        )
        return Result(self.model, report)

    def _count(self) -> Counts:
        return count(self.model, self.trace.image_size, image_channels=self.trace.image_channels)


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of its state dict; hooks on that, which are the user's, are not called."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }
