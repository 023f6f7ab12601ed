"""Layers made cheaper once they are trained: what is only ever multiplied or added becomes part of a weight.

Letters: B batch, C channels, H x W map, d head width.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, fx, nn

from attneck.layers.bam import BAM
from attneck.layers.bare import copied, is_bare, is_own
from attneck.layers.meta import meta_copy
from attneck.layers.mhsa import MHSA2d
from attneck.layers.own_forward import always_fed, calls_of, graph_of, read_by

Module = TypeVar("Module", bound=nn.Module)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""What is folded; by its very type, since libraries derive norms with an activation from them."""

BAM_CALLS = ("forward", "_logits", "channel_attention", "spatial_attention")
"""BAM's methods that its branches are called in."""


def fold(model: Module) -> Module:
    """A copy of `model`, in eval mode, with the same results up to rounding and less to do.

    - `MHSA2d`: q's scale, d**-0.5, goes into the queries' weights.
    - A BatchNorm that a convolution feeds, and nothing else does, goes into its weights and bias. So do those
      of BAM's branches, behind linear layers too; elsewhere a linear layer's norm may be one of another axis.
    - The BatchNorm that an `MHSA2d` feeds: y = s*x + t a channel. Every channel of the result is a mean of
      that channel of v, whatever the weights, as they sum to one (those of the 2x2 pool do, too). So s goes
      into the values' weights and t becomes their bias, exactly. One whose maps are shown keeps it.

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
    calls = _calls(folded, traced)
    uses = Counter(id(module) for nodes in calls.values() for module in nodes.values())
    paths = {module: name for name, module in folded.named_modules()}
    for parent, nodes in calls.items():
        pairs = _pairs(nodes)
        always = always_fed(traced.get_submodule(paths[parent])) if pairs else set()
        for names, (layer, norm) in pairs.items():
            alone = not isinstance(layer, MHSA2d) or places[id(layer.qkv)] == 1
            once = all(places[id(module)] == uses[id(module)] == 1 for module in (layer, norm))
            if names in always and alone and once:
                _fold_norm(layer, norm)
                parent.set_submodule(names[1], nn.Identity())
    for module in folded.modules():
        if is_bare(module, MHSA2d) and places[id(module.qkv)] == 1 and _is_rewritable(module.qkv):
            _fold_scale(module, module.qkv)
    return folded.eval()


def _calls(folded: nn.Module, traced: nn.Module) -> dict[nn.Module, dict[fx.Node, nn.Module]]:
    """Of each module that can be traced what it calls, by the call's node; none whose weights are read.

    traced: a copy of it, whose forwards may be run.
    """
    graphs = {}
    for name, parent in folded.named_modules():
        if (graph := graph_of(traced.get_submodule(name))) is not None:
            graphs[parent] = graph
    read = {module for parent, graph in graphs.items() for module in read_by(parent, graph)}
    called, found = {folded}, {}
    for parent, graph in graphs.items():
        # A plain Sequential that nobody is seen to call may be looped over, its results seen one by one.
        if parent in called or type(parent) is not nn.Sequential:
            calls = calls_of(parent, graph)
            called.update(calls.values())
            found[parent] = {node: module for node, module in calls.items() if module not in read}
    return found


def _pairs(calls: dict[fx.Node, nn.Module]) -> dict[tuple[str, str], tuple[nn.Module, nn.Module]]:
    """A layer and the norm that alone takes its result, where that can be folded, by their names."""
    found = {}
    for node, layer in calls.items():
        after = [*node.users]
        norm = calls.get(after[0]) if len(after) == 1 else None
        if norm is None or is_bare(norm, nn.BatchNorm1d):  # which takes the rows of a map for channels
            continue
        if _foldable(norm) and _takes_a_norm(layer):
            found[str(node.target), str(after[0].target)] = (layer, norm)
    return found


def _takes_a_norm(layer: nn.Module) -> bool:
    """Whether what follows it, scale and shift a channel, can become a part of its weights."""
    if isinstance(layer, MHSA2d):
        # Where its weights are shown, somebody may change them, and they need not sum to one.
        return is_bare(layer, MHSA2d) and not layer.shows_maps and _is_rewritable(layer.qkv)
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
