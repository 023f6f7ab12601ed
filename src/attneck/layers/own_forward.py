"""What a module's own forward calls and reads, and which calls always feed another: found by tracing it."""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import product

from torch import Tensor, fx, nn

MOST = 4
"""Arguments of a forward beside its first one, of which each may be left out."""


class _Shallow(fx.Tracer):
    """Traces one module's own forward; its children are left as calls, and what it reads of them is seen."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def graph_of(parent: nn.Module) -> fx.Graph | None:
    """A module's own forward; None without children, and where it cannot be traced."""
    if not any(True for _ in parent.children()):
        return None
    try:
        return _Shallow().trace(parent)
    except Exception:  # control flow on data, or anything else that a tracer does not take
        return None


class _StandIn(fx.Proxy):
    """For something of a kind that is known, which it says where a forward asks for its type."""

    kind: type

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asks = str(sys._getframe(1).f_globals.get("__name__"))
        return fx.Proxy if asks.startswith("torch.") else self.kind  # PyTorch wants to know what it really is


class _OneWay(_Shallow):
    """Traces a forward that is given arguments of these kinds, or None where one is left out."""

    def __init__(self, kinds: dict[str, type | None]) -> None:
        super().__init__()
        self.kinds = kinds
        self.made: dict[fx.Node, weakref.ref[fx.Proxy]] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = _StandIn(node, self)
        made.kind = (node.op == "placeholder" and self.kinds.get(str(node.target))) or Tensor
        self.made[node] = weakref.ref(made)
        return made

    def pairs(self, parent: nn.Module) -> set[tuple[str, str]]:
        """Of two modules that are called once each, where one's result goes to the other alone, the names."""
        graph = self.trace(parent, {name: None for name, kind in self.kinds.items() if kind is None})
        called = Counter(node.target for node in graph.nodes if node.op == "call_module")
        found = {
            node: after
            for node in graph.nodes
            if called[node.target] == 1 and len(node.users) == 1
            for after in node.users
            if after.op == "call_module" and called[after.target] == 1
        }
        if any(self.made[node]() is not None for node in found):
            gc.collect()  # frames of an error that was caught keep results too
        return {
            (str(node.target), str(after.target))
            for node, after in found.items()
            if self.made[node]() is None  # else somebody keeps the result, and may read it
        }


def always_fed(parent: nn.Module) -> set[tuple[str, str]]:
    """The pairs of every way to call a forward: with a tensor or a list first, others given or left out."""
    given = [*inspect.signature(parent.forward).parameters.values()]
    others = given[1:]
    unknown = [
        not given,
        "forward" in vars(parent),  # it is no method
        any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in given),
        any(one.default not in (one.empty, None) for one in others),  # another value may mean anything
        len(others) > MOST,
    ]
    if any(unknown):
        return set()
    ways = product((Tensor, list), *((Tensor, None) for _ in others))
    names = [one.name for one in given]
    try:
        return set.intersection(*(_OneWay(dict(zip(names, way, strict=True))).pairs(parent) for way in ways))
    except Exception:  # of a way that cannot be traced nothing is known
        return set()


def read_by(parent: nn.Module, graph: fx.Graph) -> Iterator[nn.Module]:
    """The modules whose weights `parent` uses directly, and all that hold them, below `parent`.

    All of its modules, where it uses tensors of which the graph does not say whose they are.
    """
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            yield from parent.modules()
        elif node.op == "get_attr":
            holders = str(node.target).split(".")[:-1]
            yield from (parent.get_submodule(".".join(holders[: i + 1])) for i in range(len(holders)))


def calls_of(parent: nn.Module, graph: fx.Graph) -> dict[fx.Node, nn.Module]:
    """What a module calls of what it holds, by the call's node."""
    return {node: parent.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
