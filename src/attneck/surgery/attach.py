"""Putting a module behind another one, wherever that is, without giving any tensor another name.

The new module becomes a child of the one that it stands behind. Where that one runs its children in a row
(a Sequential, timm's RegNet stages), nothing more is needed, and whoever runs them one by one, as timm's
gradient checkpointing does, runs it too. Any other one's class becomes a subclass whose forward hands its
result to the child. Both are plain modules, so copies, pickles, state dicts, torch.compile, torch.export and
timm's feature extractors take them as they are. A wrapper around the module would give its tensors other
names, and a hook would be passed by where the blocks of a stage are run one by one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from attneck.surgery.places import Place
from attneck.surgery.trace import Step, Trace


class OnPart(nn.Module):
    """A module for one map of a list of maps; the others go on as they are."""

    def __init__(self, module: nn.Module, part: int) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, maps: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor] | tuple[Tensor, ...]:
        """Maps [B, C, H, W], each of its own C, H and W → maps of the same shapes."""
        changed = [self.module(x) if index == self.part else x for index, x in enumerate(maps)]
        return changed if isinstance(maps, list) else tuple(changed)


def attach(model: nn.Module, trace: Trace, modules: dict[str, tuple[Place, nn.Module]], name: str) -> None:
    """Put each module at its place in `model`, in place; `trace` is of the model as it is.

    Args:
        modules: by the dotted name of the module that each is to stand behind.
        name: of the child that each becomes; a number is added where it is taken.

    Raises:
        ValueError: a module that nothing can be put behind. Nothing is changed then.
    """
    free = {where: _free_name(place.call.module, name) for where, (place, _) in modules.items()}
    kinds = {where: _kind_to_be(trace, place, free[where]) for where, (place, _) in modules.items()}
    for where, (place, module) in modules.items():
        stem = model.get_submodule(where)
        stem.__class__ = kinds[where]
        stem.add_module(free[where], module if place.part is None else OnPart(module, place.part))


def fit(module: nn.Module, model: nn.Module, trace: Trace, call: Step) -> None:
    """Give a new module the device, the dtype and the mode of what stands at a call in `model`."""
    done = (step.name for step in reversed(list(trace.calls())) if step.end <= call.end)
    near = (p for name in done for p in model.get_submodule(name).parameters(recurse=False))
    like = next(p for p in (*near, *model.parameters()) if p.is_floating_point())
    module.to(device=like.device, dtype=like.dtype).train(model.get_submodule(call.name).training)


def _free_name(module: nn.Module | None, name: str) -> str:
    names = [name, *(f"{name}_{number}" for number in range(2, 100))]
    return next(free for free in names if not hasattr(module, free))


class Probe(nn.Module):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.given.append(x)
        return x


def _kind_to_be(trace: Trace, place: Place, name: str) -> type[nn.Module]:
    """The class that the module needs to run a last child called `name`: its own one, if that does."""
    module, (args, kwargs) = place.call.module, place.call.arguments
    assert module is not None
    own = type(module)
    for kind in (own, with_children(own, name)):
        probe = Probe()
        module.__class__ = kind
        module.add_module(name, probe)
        try:
            with torch.no_grad():
                result = module(*args, **kwargs)
        except Exception:  # it calls its children in a way of its own
            continue
        finally:
            module.__class__ = own
            delattr(module, name)
        if len(probe.given) == 1 and result is probe.given[0]:
            return kind
    raise ValueError(
        f"nothing can be put behind {trace.called(place.call)}, a {own.__name__}: neither a last child nor a "
        "subclass gets its result; is its forward replaced on the instance?"
    )


def with_children(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """`kind`, with a forward that hands its result to a child of that name."""
    origin, names = getattr(kind, "_extended", (kind, ()))
    return _extended(origin, (*names, name))  # type: ignore[arg-type]


@functools.cache
def _extended(origin: Any, names: tuple[str, ...]) -> type[nn.Module]:
    """The subclass of `origin` that runs the children `names`, one after the other, on its result."""

    class Extended(origin):
        _extended = (origin, names)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            result = super().forward(*args, **kwargs)
            for name in names:
                result = getattr(self, name)(result)
            return result

        def __reduce_ex__(self, protocol: Any) -> Any:
            # The class has no place of its own that a pickle could name.
            return _blank, (origin, names), self.__getstate__()

        if issubclass(origin, nn.ModuleDict):  # DenseNet's blocks call whatever is in them

            def items(self) -> Any:
                return [(name, module) for name, module in super().items() if name not in names]

    Extended.__name__ = Extended.__qualname__ = "_".join((origin.__name__, *names))
    return Extended


def _blank(origin: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """An instance for a pickle to fill."""
    kind = _extended(origin, names)  # type: ignore[arg-type]
    return kind.__new__(kind)
