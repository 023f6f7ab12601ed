"""Layers made cheaper once they are trained: what is only ever multiplied or added becomes part of a weight.

Letters: B batch, C channels, H x W map, d head width.
"""

from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from attneck.layers.bam import BAM
from attneck.layers.mhsa import MHSA2d

Module = TypeVar("Module", bound=nn.Module)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
"""What is folded; by its very type, since libraries derive norms with an activation from them."""


def fold(model: Module) -> Module:
    """A copy of `model`, in eval mode, with the same results up to rounding and less to do.

    - `MHSA2d`: q's scale, d**-0.5, goes into the queries' weights.
    - The BatchNorm that an `MHSA2d` feeds, and nothing else does: y = s*x + t a channel. Every channel of the
      result is a mean of that channel of v, whatever the weights, as they sum to one (those of the 2x2 pool
      do, too). So s goes into the values' weights and t becomes their bias, exactly. It is found by tracing
      the module that holds both; where that cannot be traced, or either is used twice, it stays.
    - `BAM`: each BatchNorm of a branch goes into the linear layer or convolution right before it.

    A layer that has forward hooks, or a parametrization, stays as it is.

    A folded norm leaves an `nn.Identity` under its name. What has been folded is not folded again. The copy's
    state dict is no checkpoint: its weights and names are those of the folded layers.

    Raises:
        ValueError: for a model that is not in eval mode throughout: there BatchNorm is no fixed map.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise ValueError(
            f"{f'{training!r}' if training else 'the model'} is in training mode, where BatchNorm depends on "
            "the batch; call .eval() on the model first"
        )
    folded = copy.deepcopy(model)
    positions = Counter(id(module) for _, module in folded.named_modules(remove_duplicate=False))
    for parent in list(folded.modules()):
        if any(isinstance(child, MHSA2d) for child in parent.children()):
            for attention, name in _norms_after_attention(parent):
                norm = parent.get_submodule(name)
                if positions[id(attention)] == positions[id(norm)] == 1:
                    _into_values(attention, norm)
                    parent.set_submodule(name, nn.Identity())
        if isinstance(parent, BAM):
            for sequence in parent.modules():
                if isinstance(sequence, nn.Sequential):
                    _fold_sequence(sequence)
    for module in folded.modules():
        if isinstance(module, MHSA2d) and _is_rewritable(module.qkv):
            _fold_scale(module, module.qkv)
    return folded.eval()


class _Shallow(fx.Tracer):
    """Traces one module's own forward; its children are left as calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _norms_after_attention(parent: nn.Module) -> list[tuple[MHSA2d, str]]:
    """The MHSA2d whose results go to a BatchNorm of the same parent and nowhere else, and its norm's name."""
    try:
        graph = _Shallow().trace(parent)
    except Exception:  # control flow on data, or anything else that a tracer does not take
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: parent.get_submodule(str(node.target)) for node in calls}
    found = []
    for node in calls:
        attention, users = modules[node], list(node.users)
        if not isinstance(attention, MHSA2d) or len(users) != 1 or users[0] not in modules:
            continue
        norm = modules[users[0]]
        once = all(sum(other is module for other in modules.values()) == 1 for module in (attention, norm))
        if once and _foldable(norm) and _is_rewritable(attention.qkv) and not _has_hooks(attention):
            found.append((attention, str(users[0].target)))
    return found


def _foldable(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm with statistics of its own, whose result nobody else is told."""
    return type(norm) in NORMS and getattr(norm, "running_mean", None) is not None and not _has_hooks(norm)


def _is_rewritable(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether the layer's weights can be replaced: nothing computes them, and nobody is told its result."""
    known = isinstance(layer, nn.Linear | nn.Conv2d)
    return known and not is_parametrized(layer) and not _has_hooks(layer)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """s and t of a BatchNorm in eval mode, which is y = s*x + t: [C] each, in float64."""
    assert isinstance(norm, NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()  # [C]
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale if norm.bias is None else norm.bias.detach().double() - mean * scale
    return scale, shift


def _into(layer: nn.Linear | nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Let the layer give scale*y + shift [O] for its y, by parameters of its own."""
    weight = layer.weight.detach()  # [O, ...]
    bias = 0 if layer.bias is None else layer.bias.detach().double()
    wide = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))  # [O, ...]
    # New parameters: the old may be shared with another layer.
    layer.weight = nn.Parameter(wide.to(weight), requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter((bias * scale + shift).to(weight), requires_grad=layer.weight.requires_grad)


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Each BatchNorm into the layer right before it."""
    for (_, layer), (name, norm) in pairwise(list(sequence.named_children())):
        if _is_rewritable(layer) and _foldable(norm):
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
    factors = torch.ones(len(qkv.weight), dtype=torch.float64, device=qkv.weight.device)
    factors[: attention.channels] = attention.scale
    weight = qkv.weight.detach()
    qkv.weight = nn.Parameter(
        (weight.double() * factors.view(-1, 1, 1, 1)).to(weight), requires_grad=qkv.weight.requires_grad
    )
    if qkv.bias is not None:
        qkv.bias = nn.Parameter((qkv.bias.detach().double() * factors).to(weight), qkv.bias.requires_grad)
    attention.scale = 1.0
