"""Attention of other implementations: how to know it, and ours in its place.

Letters: h heads, H×W map, d the width of a head's values, e ≤ d that of its queries and keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.bottleneck_attn import BottleneckAttn, PosEmbedRel
from torch import Tensor, nn

from attneck.errors import one_line
from attneck.layers import BAM, MHSA2d
from attneck.layers.bare import is_bare_pointwise
from attneck.layers.branches import ChannelBranch, SpatialBranch
from attneck.layers.meta import meta_copy

BOTTLE = "bottleneck_transformer_pytorch.bottleneck_transformer_pytorch"
"""The module of that package's classes. It need not be installed, so it is not imported."""


@dataclass(frozen=True)
class Form:
    """How the tensors of somebody else's layer become those of an `MHSA2d`."""

    names: dict[str, str]
    """Theirs and ours."""
    heads: int
    key_width: int
    """e."""
    width: int
    """d."""
    factor: float = 1.0
    """That the position tables take."""
    inside: str = ""
    """The layer's name, with a dot, in the module that took the other one's place."""

    def of(self, name: str, tensor: Tensor) -> Tensor | None:
        """Ours of this name from theirs, the very same where nothing changes; None for another shape."""
        fill = self.width - self.key_width
        if not name.startswith("qkv."):  # a table [rows, e] → [rows, d]
            if tensor.ndim != 2 or tensor.shape[1] != self.key_width:
                return None
            scaled = tensor if self.factor == 1 else tensor * self.factor
            return F.pad(scaled, (0, fill)) if fill else scaled
        widths = (self.key_width, self.key_width, self.width)
        if tensor.ndim == 0 or tensor.shape[0] != self.heads * sum(widths):
            return None
        if fill == 0:
            return tensor
        *narrow, values = tensor.split([self.heads * width for width in widths])  # [h·e, …] twice, [h·d, …]
        zeros = tensor.new_zeros(self.heads, fill, *tensor.shape[1:])
        parts = (part.unflatten(0, (self.heads, self.key_width)) for part in narrow)  # [h, e, …]
        return torch.cat(
            [*(torch.cat((part, zeros), 1).flatten(0, 1) for part in parts), values]
        )  # [3·h·d, …]

    def parameter(self, name: str, old: Tensor) -> nn.Parameter:
        """Our parameter of this name, theirs itself where nothing changes."""
        if not isinstance(old, nn.Parameter):
            raise ValueError("something computes one of its tensors, such as a pruning; make that permanent")
        with torch.no_grad():
            made = self.of(name, old)
        assert made is not None
        return old if made is old else nn.Parameter(made, requires_grad=old.requires_grad)


class Ours(NamedTuple):
    """What takes the place of a layer of theirs."""

    module: nn.Module
    layer: MHSA2d | BAM
    """That module, or the part of it that attends."""
    form: Form | None
    """None where no tensor changes."""


class Kind(NamedTuple):
    """An implementation of somebody else's."""

    of: str
    """What a message calls it."""
    convert: Callable[[Any, bool], Ours]
    """Ours for one of theirs, which is not changed. Where a 2×2 pool follows, as the second argument says, it
    may become the layer's stride.

    Raises ValueError, with the reason, where ours cannot stand for it."""


def kind_of(module: nn.Module) -> Kind | None:
    """What it is, if it is attention of somebody else's that ours can stand for, or nearly."""
    if isinstance(module, BottleneckAttn):
        return Kind("timm's BottleneckAttn", _of_timm)
    if any(f"{kind.__module__}.{kind.__name__}" == f"{BOTTLE}.Attention" for kind in type(module).__mro__):
        return Kind("bottleneck-transformer-pytorch's Attention", _of_bottle)
    if type(module).__name__ == "BAM" and not isinstance(module, BAM):
        gates = (("channel_att", "gate_c"), ("spatial_att", "gate_s"))
        if all(isinstance(getattr(getattr(module, a, None), b, None), nn.Sequential) for a, b in gates):
            return Kind("the BAM of its authors", _of_authors)
    return None


def is_of_bottle(module: nn.Module, name: str) -> bool:
    """Whether it is of this very class of bottleneck-transformer-pytorch's."""
    return (type(module).__module__, type(module).__name__) == (BOTTLE, name) and "forward" not in vars(
        module
    )


def _of_timm(theirs: Any, _pooled: bool) -> Ours:
    """Its logits are e^-½·q kᵀ + q Rᵀ, or with the scale on both terms; a pool comes last."""
    place, position = theirs, theirs.pos_embed
    for part, kind in ((place, BottleneckAttn), (position, PosEmbedRel)):
        if type(part) is not kind or "forward" in vars(part):
            raise ValueError(
                f"its {type(part).__name__} is not timm's {kind.__name__} itself, but a change of it"
            )
    form = Form(
        {
            "qkv.weight": "qkv.weight",
            "qkv.bias": "qkv.bias",
            "pos_embed.height_rel": "rel_h",
            "pos_embed.width_rel": "rel_w",
        },
        theirs.num_heads,
        theirs.dim_head_qk,
        theirs.dim_head_v,
        factor=1.0 if theirs.scale_pos_embed else 1 / theirs.scale,
    )
    tables = {"rel_h": position.height_rel, "rel_w": position.width_rel}
    strided = halves(theirs.pool) and all(side % 2 == 0 for side in _sides(tables))
    layer = _mhsa(theirs, theirs.qkv, tables, form, 2 if strided else 1)
    if strided or isinstance(theirs.pool, nn.Identity):
        return Ours(layer, layer, form)
    # On an odd side timm's pool drops the last row or column, and that of MHSA2d does not.
    row = nn.Sequential(OrderedDict(attn=layer, pool=theirs.pool))
    row.training = theirs.training
    return Ours(row, layer, replace(form, inside="attn."))


def _of_bottle(theirs: Any, pooled: bool) -> Ours:
    """Its logits are d^-½·q (k + position)ᵀ, as ours."""
    position = theirs.pos_emb
    relative = is_of_bottle(position, "RelPosEmb")
    if not is_of_bottle(theirs, "Attention") or not (relative or is_of_bottle(position, "AbsPosEmb")):
        raise ValueError(
            f"its {type(theirs).__name__} and {type(position).__name__} are not the package's own, but "
            "a change of them"
        )
    own = ("rel_h", "rel_w") if relative else ("abs_h", "abs_w")
    names = ("rel_height", "rel_width") if relative else ("height", "width")
    width = theirs.to_qkv.weight.shape[0] // (3 * theirs.heads)
    tables = {f"pos_emb.{name}": ours for name, ours in zip(names, own, strict=True)}
    form = Form({"to_qkv.weight": "qkv.weight", **tables}, theirs.heads, width, width)
    given = {ours: getattr(position, name) for name, ours in zip(names, own, strict=True)}
    even = all(side % 2 == 0 for side in _sides(given))
    layer = _mhsa(theirs, theirs.to_qkv, given, form, 2 if pooled and even else 1)
    return Ours(layer, layer, form)


def _mhsa(theirs: Any, qkv: nn.Module, tables: dict[str, Tensor], form: Form, stride: int) -> MHSA2d:
    """The layer with their projection, their scale and, in our form, their tables."""
    channels = form.heads * form.width
    if not isinstance(qkv, nn.Conv2d):
        kind = type(qkv)
        raise ValueError(
            f"its projection is a {kind.__name__} of {kind.__module__}, wanted torch's Conv2d (an adapter is "
            "merged first)"
        )
    if qkv.in_channels != channels:
        raise ValueError(
            f"it makes {channels} channels of {qkv.in_channels}, and an MHSA2d as many as it is given"
        )
    if form.key_width > form.width:
        raise ValueError(
            f"a head's queries are {form.key_width} wide and its values {form.width}, and an MHSA2d has no "
            "room for wider queries"
        )
    with torch.device("meta"):  # nothing is drawn: every tensor comes from theirs
        layer = MHSA2d(
            channels,
            _sides(tables),
            heads=form.heads,
            position="relative" if "rel_h" in tables else "absolute",
            stride=stride,
        )
        filled = nn.Conv2d(channels, 3 * channels, 1, bias=qkv.bias is not None)
    layer.training, layer.scale = theirs.training, theirs.scale
    if form.key_width == form.width:
        layer.qkv = qkv
    elif is_bare_pointwise(qkv):
        layer.qkv = filled.train(theirs.training)
        for name, old in qkv.named_parameters():
            setattr(filled, name, form.parameter(f"qkv.{name}", old))
    else:
        raise ValueError(
            f"its projection, a {type(qkv).__name__}, has to be filled up with zeros, and something else "
            "computes, wraps or listens to it"
        )
    for name, table in tables.items():
        setattr(layer, name, form.parameter(name, table))
    return layer


def _sides(tables: dict[str, Tensor]) -> tuple[int, int]:
    """H and W of the map that the tables are made for: 2H-1 rows where relative, else H."""
    H, W = ((len(table) + 1) // 2 if name.startswith("rel") else len(table) for name, table in tables.items())
    return H, W


def halves(pool: nn.Module) -> bool:
    """Whether it averages 2×2 windows and drops what is left over on an odd side."""
    if type(pool) is not nn.AvgPool2d or pool.ceil_mode or pool.divisor_override is not None:
        return False
    return (pool.kernel_size, pool.stride) in ((2, 2), ((2, 2), (2, 2))) and pool.padding in (0, (0, 0))


def _of_authors(theirs: Any, _pooled: bool) -> Ours:
    """x·(1 + σ(c·s)). There are changed copies of it: with random weights it has to give what ours gives."""
    copy: Any = meta_copy(theirs).to_empty(device="cpu").double().eval()
    draw = torch.Generator("cpu").manual_seed(0)
    for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=draw, dtype=torch.float64, device="cpu")
            fan_in = tensor[0].numel() if tensor.ndim else 1
            tensor.copy_(0.5 + drawn.abs() if name.endswith("running_var") else drawn / fan_in**0.5)
    ours = _bam(copy)
    x = torch.randn(2, ours.channels, 9, 9, generator=draw, dtype=torch.float64, device="cpu")
    try:
        with torch.no_grad():
            want = copy(x.clone())
    except Exception as error:  # it is somebody's code
        raise ValueError(f"it does not run on maps of 9×9: {one_line(error, 150)}") from error
    with torch.no_grad():
        got = ours(x)
    if not (
        isinstance(want, Tensor)
        and want.shape == got.shape
        and torch.allclose(got, want, rtol=1e-9, atol=1e-9)
    ):
        raise ValueError("it computes something else than the published code, x·(1 + σ(channel · spatial))")
    layer = _bam(theirs)
    return Ours(layer, layer, None)


def _bam(theirs: Any) -> BAM:
    """Ours around the layers of theirs, but for those that pool and flatten."""
    channel, spatial = list(theirs.channel_att.gate_c.named_children()), theirs.spatial_att.gate_s
    while channel and not any(True for _ in channel[0][1].parameters()):
        del channel[0]
    first, reduce = channel[0][1] if channel else None, next(spatial.children(), None)
    if not (isinstance(first, nn.Linear) and isinstance(reduce, nn.Conv2d)):
        raise ValueError("its branches do not begin with a linear layer and a convolution")
    channels, hidden = first.in_features, first.out_features
    dilations = [layer.dilation[0] for layer in spatial if isinstance(layer, nn.Conv2d)]
    with torch.device("meta"):  # nothing is drawn
        ours = BAM(
            channels, reduction=max(1, channels // hidden), dilation=max(dilations), variant="official"
        )
    gate_c = ChannelBranch(OrderedDict(channel))
    gate_s = SpatialBranch(OrderedDict(spatial.named_children()))
    ours.channel_att = nn.Sequential(OrderedDict(gate_c=gate_c))
    ours.spatial_att = nn.Sequential(OrderedDict[str, nn.Module](gate_s=gate_s))
    for made in (ours, gate_c, gate_s, ours.channel_att, ours.spatial_att):
        made.training = theirs.training  # by hand: a layer inside may have a mode of its own
    return ours
