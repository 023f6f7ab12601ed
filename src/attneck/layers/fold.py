"""Layers made cheaper once they are trained: what is only ever multiplied or added becomes part of a weight.

Letters: B batch, C channels, H x W map, d head width.
"""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, fx, nn

from attneck.layers.bam import BAM
from attneck.layers.bare import copied, is_bare, is_own
from attneck.layers.meta import meta_copy
from attneck.layers.mhsa import MHSA2d

Module = TypeVar("Module", bound=nn.Module)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""What is folded; by its very type, since libraries derive norms with an activation from them."""

MOST = 4
"""Arguments of a forward beside its first one, of which each may be left out."""

BAM_CALLS = ("forward", "_logits", "channel_attention", "spatial_attention")
"""BAM's methods that its branches are called in."""


def fold(model: Module) -> Module:
    """A copy of `model`, in eval mode, with the same results up to rounding and less to do.

    - `MHSA2d`: q's scale, d**-0.5, goes into the queries' weights.
    - A BatchNorm that a convolution feeds, and nothing else does, goes into its weights and bias. So do those
      of BAM's branches, behind linear layers too; elsewhere a linear layer's norm may be one of another axis.
    - The BatchNorm that an `MHSA2d` feeds: y = s*x + t a channel. Every channel of the result is a mean of
      that channel of v, whatever the weights, as they sum to one (those of the 2x2 pool do, too). So s goes
      into the values' weights and t becomes their bias, exactly.

    Which layer feeds a norm is found by tracing the module that holds both. Where that cannot be traced, or
    is a plain Sequential that nothing is seen to call, where either is used twice, the layer's result is kept
    for somebody, or another call (with a list for a tensor, or an argument left out) may go another way, both
    stay; so does a norm that brings its own activation, as timm's may. A layer that has hooks, a
    parametrization or a forward of its own stays as it is, and so does one whose weights or statistics a
    forward is seen to read. Methods other than `forward` are not looked at.

    A folded norm leaves an `nn.Identity` under its name. What has been folded is not folded again. The copy's
    state dict is no checkpoint: its weights and names are those of the folded layers.

    Raises:
        ValueError: for a model that is not in eval mode throughout: there BatchNorm is no fixed map; for one
            that cannot be copied.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(
            f"{f'{training!r}' if training else 'the model'} is in training mode, where BatchNorm depends on "
            "the batch; call .eval() on the model first"
        )
    folded = copied(model)
    places = Counter(id(module) for _, module in folded.named_modules(remove_duplicate=False))
    for bam in folded.modules():
        # Its branches are sequences, though it does not call them as such; a derived class may do otherwise.
        if type(bam) is BAM and is_own(bam, BAM, *BAM_CALLS):
            for sequence in bam.modules():
                if isinstance(sequence, nn.Sequential):
                    _fold_sequence(sequence, places)
    traced = meta_copy(model)  # a forward may count, or keep what it sees
    graphs = {}
    for name, parent in folded.named_modules():
        if (graph := _graph(traced.get_submodule(name))) is not None:
            graphs[parent] = graph
    read = {id(module) for parent, graph in graphs.items() for module in _read(parent, graph)}
    called: set[nn.Module] = {folded}
    calls = {}
    for parent, graph in graphs.items():
        # A plain Sequential that nobody is seen to call may be looped over, its results seen one by one.
        if parent in called or type(parent) is not nn.Sequential:
            called.update(_calls(parent, graph, set()).values())
            calls[parent] = _calls(parent, graph, read)
    paths = {module: name for name, module in folded.named_modules()}
    uses = Counter(id(module) for nodes in calls.values() for module in nodes.values())
    for parent, nodes in calls.items():
        found = []
        for node, layer in nodes.items():
            after = [*node.users]
            norm = nodes.get(after[0]) if len(after) == 1 else None
            if norm is None or is_bare(norm, nn.BatchNorm1d):  # which takes the rows of a map for channels
                continue
            if _foldable(norm) and _takes_a_norm(layer):
                found.append((layer, norm, (str(node.target), str(after[0].target))))
        always = _always(traced.get_submodule(paths[parent])) if found else set()
        for layer, norm, names in found:
            if names not in always:
                continue
            alone = not isinstance(layer, MHSA2d) or places[id(layer.qkv)] == 1
            if alone and all(places[id(module)] == uses[id(module)] == 1 for module in (layer, norm)):
                _fold_norm(layer, norm)
                parent.set_submodule(names[1], nn.Identity())
    for module in folded.modules():
        if is_bare(module, MHSA2d) and places[id(module.qkv)] == 1 and _is_rewritable(module.qkv):
            _fold_scale(module, module.qkv)
    return folded.eval()


class _Shallow(fx.Tracer):
    """Traces one module's own forward; its children are left as calls, and what it reads of them is seen."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _graph(parent: nn.Module) -> fx.Graph | None:
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


def _always(parent: nn.Module) -> set[tuple[str, str]]:
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


def _read(parent: nn.Module, graph: fx.Graph) -> Iterator[nn.Module]:
    """The modules whose weights `parent` uses directly, and all that hold them, below `parent`.

    All of its modules, where it uses tensors of which the graph does not say whose they are.
    """
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            yield from parent.modules()
        elif node.op == "get_attr":
            holders = str(node.target).split(".")[:-1]
            yield from (parent.get_submodule(".".join(holders[: i + 1])) for i in range(len(holders)))


def _calls(parent: nn.Module, graph: fx.Graph, read: set[int]) -> dict[fx.Node, nn.Module]:
    """What a module calls of what it holds, by the call's node, without those whose weights are read."""
    called = {
        node: parent.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }
    return {node: module for node, module in called.items() if id(module) not in read}


def _takes_a_norm(layer: nn.Module) -> bool:
    """Whether what follows it, scale and shift a channel, can become a part of its weights."""
    if isinstance(layer, MHSA2d):
        return is_bare(layer, MHSA2d) and _is_rewritable(layer.qkv)
    return isinstance(layer, nn.Conv2d) and _is_rewritable(layer)


def _fold_norm(layer: nn.Module, norm: nn.Module) -> None:
    if isinstance(layer, MHSA2d):
        _into_values(layer, norm)
    else:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        _into(layer, *_affine(norm))


def _foldable(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm with statistics of its own, whose result nobody else is told."""
    return any(is_bare(norm, kind) for kind in NORMS) and getattr(norm, "running_mean", None) is not None


def _is_rewritable(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether the layer's weights can be replaced: nothing computes them, and nobody is told its result."""
    return is_bare(layer, nn.Linear) or is_bare(layer, nn.Conv2d)  # others may do more with their weights


def _exact(numbers: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has that."""
    return numbers.detach().cpu().double()


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """s and t of a BatchNorm in eval mode, which is y = s*x + t: [C] each, in float64."""
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, scale = _exact(norm.running_mean), (_exact(norm.running_var) + norm.eps).rsqrt()  # [C]
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -mean * scale if norm.bias is None else _exact(norm.bias) - mean * scale
    return scale, shift


def _into(layer: nn.Linear | nn.Conv2d, scale: Tensor, shift: Tensor | None = None) -> None:
    """Let the layer give scale*y + shift [O] for its y, by parameters of its own."""
    weight, learns = layer.weight.detach(), layer.weight.requires_grad
    wide = _exact(weight) * scale.view(-1, *[1] * (weight.ndim - 1))  # [O, ...]
    # New parameters: the old may be shared with another layer.
    layer.weight = nn.Parameter(wide.to(weight), requires_grad=learns)
    if layer.bias is not None:
        scaled = _exact(layer.bias) * scale
        shift = scaled if shift is None else scaled + shift
    if shift is not None:
        layer.bias = nn.Parameter(shift.to(weight), requires_grad=learns)


def _fold_sequence(sequence: nn.Sequential, places: Counter[int]) -> None:
    """Each BatchNorm into the layer right before it, where neither stands at a second place."""
    for (_, layer), (name, norm) in pairwise(list(sequence.named_children())):
        alone = places[id(layer)] == places[id(norm)] == 1
        if alone and _is_rewritable(layer) and _foldable(norm):
            _into(layer, *_affine(norm))
            sequence.set_submodule(name, nn.Identity())


def _into_values(attention: MHSA2d, norm: nn.Module) -> None:
    """A BatchNorm of the attention's result into its values: weights [C, C] scaled, and a bias."""
    scale, shift = _affine(norm)  # [C]
    others = attention.qkv.out_channels - attention.channels
    _into(
        attention.qkv,
        torch.cat((scale.new_ones(others), scale)),  # [3C or 2C]
        torch.cat((shift.new_zeros(others), shift)),
    )


def _fold_scale(attention: MHSA2d, qkv: nn.Linear | nn.Conv2d) -> None:
    """The queries' scale into their weights, and their bias if there is one."""
    factors = torch.ones(len(qkv.weight), dtype=torch.float64, device="cpu")
    factors[: attention.channels] = attention.scale
    _into(qkv, factors)
    attention.scale = 1.0
