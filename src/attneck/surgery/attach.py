"""Put a module after another one, without giving any tensor another name.

There are two ways, both of them plain modules: copies, pickles, state dicts, torch.compile, torch.export and
timm's feature extractors take them as they are.

- After a block, a stage, an activation or a convolution, the new module becomes its child. A module that runs
  its children in a row (a Sequential, timm's RegNet stages) needs nothing more, and whoever runs them one by
  one, as timm's gradient checkpointing does, runs the new child too. Any other module's class becomes a
  subclass whose forward hands its result to the child.
- After a norm, the new module becomes a child of the norm's parent. Libraries replace norms (SyncBatchNorm,
  frozen BatchNorm), and the new norm has neither the children nor the class of the old one. A parent that
  runs its children in a row runs the new child next. Any other parent's class becomes a subclass in which
  `self.bn2` is the norm followed by the new child, whatever the norm is by then.

A wrapper around the module would give its tensors other names. A hook would be lost with the norm, and would
not run where the blocks of a stage are run one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.utils.parametrize import is_parametrized

from attneck.surgery.places import Place
from attneck.surgery.step import Step
from attneck.surgery.trace import Trace, is_pefts


class OnPart(nn.Module):
    """A module for one map of a list, wherever it is an element; all else goes on as it is."""

    def __init__(self, module: nn.Module, part: int) -> None:
        super().__init__()
        self.module, self.part = module, part

    def forward(self, given: list[Any] | tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
        """Anything, number `part` of it a map [B, C, H, W] → the same with another map of its shape."""
        before = given[self.part]
        after = self.module(before)
        changed = [after if x is before else x for x in given]  # as in (skip, x), where both are one map
        return changed if isinstance(given, list) else tuple(changed)


@dataclass(frozen=True)
class _Slot:
    """Where a new child goes."""

    parent: str
    """The dotted name of the module that it becomes a child of."""
    name: str
    """Its name there."""
    after: str
    """The child whose result it is given; "" for the parent's own result."""
    extends: bool
    """Whether the parent's class has to change; else the parent runs its children in a row."""


def attached(
    model: nn.Module, trace: Trace, modules: dict[str, tuple[Place, nn.Module]], name: str
) -> AbstractContextManager[None]:
    """In this context each module is at its place in `model`, to stay there unless what is done inside fails.

    `trace` is of the model as it is.

    Args:
        modules: by the dotted name of the module that each comes after.
        name: of the new child: `bam` in a block, `bn2_bam` after its norm; a number is added where the name
            is taken.

    Raises:
        ValueError: a module that nothing can be put after; at once, and nothing is changed.
    """
    # Before the context, whose other errors are a forward's.
    slots = {where: _slot(trace, place, name) for where, (place, _) in modules.items()}
    return _attached(model, modules, slots)


@contextmanager
def _attached(
    model: nn.Module, modules: dict[str, tuple[Place, nn.Module]], slots: dict[str, _Slot]
) -> Iterator[None]:
    """`attached`, once it is known where each goes."""
    parents = dict(model.named_modules())
    done: list[tuple[nn.Module, type[nn.Module], str]] = []
    try:
        for where, (place, module) in modules.items():
            slot = slots[where]
            parent = parents[slot.parent]
            done.append((parent, type(parent), slot.name))
            if slot.extends:
                parent.__class__ = with_child(type(parent), slot.after, slot.name)
            _add(parent, slot, _for_part(module, place.part))
        yield
    except BaseException:
        for parent, own, child in reversed(done):
            parent.__class__ = own
            parent._modules.pop(child, None)
        raise


def device_to_make_on(model: nn.Module) -> torch.device:
    """For a new layer, whatever the default device is: the CPU, or for a model without storage meta.

    Not a GPU, for which the same seed would draw other values.
    """
    without = all(parameter.is_meta for parameter in model.parameters())
    return torch.device("meta" if without else "cpu")


def match_to(
    module: nn.Module, model: nn.Module, trace: Trace, call: Step, number: int | None = None
) -> None:
    """Give a new module the device and mode of the module that makes `call` in `model`, and its map's dtype.

    The map is `number` of the trace, by default the call's first result. After a norm the mode is that of the
    norm's parent. The dtype need not be that of the weights before it: half networks may have norms in
    float32.
    """
    by_name = dict(model.named_modules())
    done = (step.name for step in reversed(list(trace.calls())) if step.end <= call.end)
    near = (p for name in done for p in by_name[name].parameters(recurse=False))
    device = next(p for p in (*near, *model.parameters()) if p.is_floating_point()).device
    # A norm may be frozen, in evaluation mode alone; what comes after it is the block's.
    of = by_name[call.name.rpartition(".")[0] if is_norm(call.module) else call.name]
    module.to(device=device, dtype=trace.dtypes[call.outputs[0] if number is None else number]).train(
        of.training
    )


class Probe(nn.Module):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def forward(self, x: Any) -> Any:
        self.given.append(x)
        return x


def is_norm(module: nn.Module | None) -> bool:
    """Whether it is a norm that libraries replace by another class: one with running statistics.

    All BatchNorms are, synchronised and frozen ones of torch, torchvision and timm among them.
    """
    return hasattr(module, "running_mean")


def _slot(trace: Trace, place: Place, name: str) -> _Slot:
    """The first slot in which a child gets the map of this place, and gets it once."""
    call: Step | None = place.call
    parent, after = place.call.name, ""
    if is_norm(place.call.module):
        parent, _, after = parent.rpartition(".")
        call = place.call.owner
    if call is not None and call.module is not None and call.name == parent:  # else it is in a ModuleList
        free = _free_name(call.module, f"{after}_{name}" if after else name)
        if is_parametrized(call.module):  # whose class torch puts back when a parametrization is removed
            raise ValueError(
                f"{call.name!r} is parametrised, and nothing can be put after it: take its parametrizations "
                "away first (torch.nn.utils.parametrize.remove_parametrizations), and put them back after"
            )
        if is_pefts(call.module):
            raise ValueError(
                f"{call.name!r} is PEFT's, and merging would take away what is put after it: do the surgery "
                "first, or merge the adapters"
            )
        for extends in (False, True):
            slot = _Slot(parent, free, after, extends)
            if extends and isinstance(call.module, fx.GraphModule):  # its copies are of fx's own class
                raise ValueError(
                    f"{call.name!r} is a GraphModule of torch.fx, whose copies would lose what is put after "
                    "it: do the surgery before it is traced, or choose another `at`"
                )
            if _gets_the_map(trace, call.module, call, slot, place.part):
                return slot
    own = type(place.call.module).__name__
    raise ValueError(
        f"nothing can be put after {trace.called(place.call)}, a {own}: looked for a module that hands its "
        "result on, by its own forward or its parent's; is a forward replaced on the instance, or the module "
        "in a ModuleList? Give the network an nn.Identity there, or choose another `at`"
    )


def _gets_the_map(trace: Trace, parent: nn.Module, call: Step, slot: _Slot, part: int | None) -> bool:
    """Whether a child in that slot of `parent`, of the traced copy, would be given the map, once."""
    probe, made = Probe(), []
    own, (args, kwargs) = type(parent), call.arguments
    source = parent._modules[slot.after] if slot.after else parent
    assert source is not None
    if slot.extends:
        parent.__class__ = with_child(own, slot.after, slot.name)
    _add(parent, slot, _for_part(probe, part))
    noted = source.register_forward_hook(lambda _module, _args, result: made.append(result))
    try:
        with trace.running():
            parent(*args, **kwargs)
    except Exception:  # it calls its children in a way of its own
        return False
    finally:
        noted.remove()
        parent.__class__ = own
        delattr(parent, slot.name)
    if not len(probe.given) == len(made) == 1:
        return False
    return probe.given[0] is (made[0] if part is None else made[0][part])


def _for_part(module: nn.Module, part: int | None) -> nn.Module:
    return module if part is None else OnPart(module, part)


def _add(parent: nn.Module, slot: _Slot, module: nn.Module) -> None:
    """Make it a child, right after the one that it follows; in a row the order is what runs."""
    names = list(parent._modules)
    later = names[names.index(slot.after) + 1 :] if slot.after else []
    parent.add_module(slot.name, module)
    for each in later:
        parent._modules[each] = parent._modules.pop(each)


def _free_name(module: nn.Module, name: str) -> str:
    names = [name, *(f"{name}_{number}" for number in range(2, 100))]
    return next(free for free in names if not hasattr(module, free))


class _Followed:
    """A norm as its parent's forward sees it: a call runs its follower too, all else is the norm's own."""

    __slots__ = ("_follower", "_norm")

    def __init__(self, norm: nn.Module, follower: nn.Module) -> None:
        object.__setattr__(self, "_norm", norm)
        object.__setattr__(self, "_follower", follower)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._follower(self._norm(*args, **kwargs))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance(block.bn2, nn.BatchNorm2d) holds
        return type(self._norm)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._norm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._norm, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._norm, name)

    def __eq__(self, other: object) -> bool:
        return self._norm is (other._norm if type(other) is _Followed else other)

    def __hash__(self) -> int:
        return hash(self._norm)

    def __repr__(self) -> str:
        return repr(self._norm)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _Followed, (self._norm, self._follower)


class _Follows:
    """The class attribute for a child that another follows. It looks both up at each call."""

    def __init__(self, child: str, follower: str) -> None:
        self.child, self.follower = child, follower

    def __get__(self, parent: Any, kind: Any = None) -> Any:
        if parent is None:
            return self
        child, follower = parent._modules.get(self.child), parent._modules.get(self.follower)
        if child is None or follower is None:  # somebody took one away since
            return parent.__getattr__(self.child)
        if torch.compiler.is_dynamo_compiling():
            return _traced_kind(type(child))(child, follower)
        return _Followed(child, follower)


def _unwrap(_parent: nn.Module, _name: str, child: Any) -> Any:
    """What a module registers as its child is the norm itself, as by fx, or by a wrapper around `block.bn2`.

    Else that one would run the follower, and the norm's own parent would run it again.
    """
    return child._norm if type(child) is _Followed else None


register_module_module_registration_hook(_unwrap)


class _Traced:
    """`_Followed` for torch.compile, for which an object is of no other class than its own."""

    def __init__(self, norm: nn.Module, follower: nn.Module) -> None:
        object.__setattr__(self, "_norm", norm)
        object.__setattr__(self, "_follower", follower)
        object.__setattr__(self, "training", norm.training)  # torch.compile has given it one by then

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._follower(self._norm(*args, **kwargs))

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._norm, name)


@torch.compiler.assume_constant_result  # else the class would be made in what is traced
def _traced_kind(kind: Any) -> type:
    return _traced(kind)


@functools.cache
def _traced(kind: Any) -> type:
    """The class of what stands for a norm of this class."""
    return type(kind.__name__, (_Traced, kind), {})


def with_child(kind: type[nn.Module], after: str, name: str) -> type[nn.Module]:
    """`kind`, which runs the child `name` on the result of the child `after`, or for "" on its own."""
    origin, pairs = getattr(kind, "_extended", (kind, ()))
    return _extended(origin, (*pairs, (after, name)))  # type: ignore[arg-type]


@functools.cache
def _extended(origin: Any, pairs: tuple[tuple[str, str], ...]) -> type[nn.Module]:
    """The subclass of `origin` with these children, each as (the child it comes after or "", its name)."""
    names = tuple(name for _, name in pairs)
    last = tuple(name for after, name in pairs if not after)

    class Extended(origin):
        _extended = (origin, pairs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            # A pickle cannot name this class: no module has it as an attribute.
            return _blank, (origin, pairs), self.__getstate__()

        if last:

            @functools.wraps(origin.forward)
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                result = super().forward(*args, **kwargs)
                for name in last:
                    result = getattr(self, name)(result)
                return result

        if issubclass(origin, nn.ModuleDict):  # DenseNet's blocks call whatever is in them

            def items(self) -> Any:
                return [(name, module) for name, module in super().items() if name not in names]

    for after, name in pairs:
        if after:
            setattr(Extended, after, _Follows(after, name))
    Extended.__name__ = Extended.__qualname__ = "_".join((origin.__name__, *names))
    return Extended


def _blank(origin: type[nn.Module], pairs: tuple[tuple[str, str], ...]) -> nn.Module:
    """An instance for a pickle to fill."""
    kind = _extended(origin, pairs)  # type: ignore[arg-type]
    return kind.__new__(kind)
