"""BoTNet's multi-head self-attention over a map (arXiv 2101.11605, Fig. 4).

Letters: B batch, C channels, H x W map, N = H*W tokens, h heads, d = C/h head width.
"""

import warnings
from collections import OrderedDict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from attneck.attention.cpu.products import linear
from attneck.attention.graph import being_exported, in_a_graph, intercepted, transformed
from attneck.attention.relative import (
    BACKENDS,
    RESAMPLE,
    Resample,
    leaves_rows,
    pool_tokens,
    relative_attention_2d,
    relative_logits_2d,
    resample_rows,
    resample_table,
)
from attneck.checks import flag, one_of, sides, whole
from attneck.layers.bare import is_bare_pointwise
from attneck.layers.input import check_input
from attneck.layers.tracing import recorded

TABLES: dict[str, tuple[str, ...]] = {
    "relative": ("rel_h", "rel_w"),
    "absolute": ("abs_h", "abs_w"),
    "none": (),
}
"""The choices of `position`, and the names of the tables that each one has."""
NO_DECAY = {f"*.{name}" for names in TABLES.values() for name in names}
"""The tables' names in a network, as patterns; weight decay is not for them."""


class MHSA2d(nn.Module):
    """All-to-all attention where a 3x3 convolution was: [B, C, H, W] -> [B, C, H', W'].

    The parameters are `qkv.weight` [3C, C, 1, 1] (queries, keys, values; heads outermost in each; no bias and
    no output projection) and, shared by the heads, `rel_h` [2H-1, d] and `rel_w` [2W-1, d] (row y'-y+H-1 for
    query row y and key row y'), or `abs_h` [H, d] and `abs_w` [W, d], or no table at all. Without the content
    term there are no keys: `qkv.weight` is then [2C, C, 1, 1], queries and values.

    Any map goes in. On another than `map_size` the tables are resampled, differentiably; at `map_size` they
    are used as they are. A state dict from a layer of another map size loads, resampled into this one's.
    `attneck.layers.fold` takes `scale`, d**-0.5, into the queries' weights, and a BatchNorm that follows into
    the values'.

    Queries are scaled by d**-0.5 in both terms of the logits, as in the authors' code; Fig. 4 shows no scale.
    `torch.fx` records the layer as one call of it. No N x N map is made, unless `show_maps` asks for it.

    Args:
        channels: C, a multiple of `heads`.
        map_size: the map's (H, W), or one number for a square, that the tables are made for.
        heads: h, 4 in the paper (Fig. 4).
        position: "relative" (the paper's), "absolute" (Tables 4 and 19), or "none" (None means the same).
        content: whether the logits have the term q k^T (Table 4 tries without).
        stride: 1, or 2 for a 2x2 average pool of the result (appendix A.4): H' = ceil(H/2), W' = ceil(W/2).
        resample: how, also an attribute that may be set later. "stretch": linearly, the ends staying the
            map's ends, for the same scene in more pixels. "keep": a row stays that of its offset in
            positions of the map, and the last rows are those of all that lie farther, for a larger scene at
            the same scale; see `attneck.attention.resample_table`.
        backend: how the layer is computed, also an attribute that may be set later. "auto" goes by
            the rule of `attneck.attention.choose`; its operators are differentiable once.
            "plain" is ordinary PyTorch throughout, with N x N logits: every derivative (`torch.func`, forward
            mode, second derivatives). A relative layer takes the other backends of `relative_attention_2d`
            too: "cpu", "tiled", "sdpa", "triton". Under `torch.func` and in forward mode "auto" is "plain".

    Raises:
        ValueError: for anything but whole numbers where numbers are wanted, channels that the heads do not
            divide, an unknown position, stride, resample or backend, a map without positions, `content=False`
            with no position, which leaves no logits, and "keep" with no table.
    """

    _told_of_rows = False

    def __init__(
        self,
        channels: int,
        map_size: int | tuple[int, int],
        *,
        heads: int = 4,
        position: Literal["relative", "absolute", "none"] | None = "relative",
        content: bool = True,
        stride: int = 1,
        resample: Resample = "stretch",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        for name, number in (("channels", channels), ("heads", heads), ("stride", stride)):
            whole(name, number)
        H, W = sides("map_size", map_size)
        if channels % heads:
            raise ValueError(
                f"{channels} channels do not split into {heads} heads; choose a divisor of {channels}"
            )
        position = "none" if position is None else position
        one_of("position", position, TABLES)
        flag("content", content)
        if position == "none" and not content:
            raise ValueError(
                "content=False with position 'none' leaves no logits; keep the content or a position"
            )
        if stride not in (1, 2):
            raise ValueError(f"stride {stride} is not supported; choose 1, or 2 for the 2x2 average pool")
        one_of("resample", resample, RESAMPLE)
        if position == "none" and resample != "stretch":
            raise ValueError(f"resample={resample!r} would change nothing without a table of positions")

        self.channels, self.heads, self.head_width = channels, heads, channels // heads
        self.map_size = (H, W)
        self.position, self.content, self.stride, self.resample = position, content, stride, resample
        self.backend = backend
        self.scale = self.head_width**-0.5
        self.qkv = nn.Conv2d(channels, (3 if content else 2) * channels, kernel_size=1, bias=False)
        if position == "relative":
            self.rel_h = nn.Parameter(torch.empty(2 * H - 1, self.head_width))
            self.rel_w = nn.Parameter(torch.empty(2 * W - 1, self.head_width))
        elif position == "absolute":
            self.abs_h = nn.Parameter(torch.empty(H, self.head_width))
            self.abs_w = nn.Parameter(torch.empty(W, self.head_width))
        self.reset_parameters()

    @property
    def backend(self) -> str:
        """How the layer is computed. Setting it raises ValueError for what this layer does not have."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        known = ("auto", *BACKENDS) if self.position == "relative" else ("auto", "plain")
        if name not in known:
            raise ValueError(
                f"backend {name!r} is none of a layer with position {self.position!r}; "
                f"choose one of {', '.join(known)}"
            )
        if self.shows_maps and name not in ("auto", "plain"):
            raise ValueError(f"backend {name!r} makes no map to show: choose 'plain', or show_maps(False)")
        self._backend = name

    @property
    def shows_maps(self) -> bool:
        """Whether `show_maps` is on."""
        return "attn_drop" in self._modules

    def show_maps(self, show: bool = True) -> None:
        """Let every forward pass make the attention maps [B, h, N, N], where tools find them; or no longer.

        They are the results of two more children, without parameters, by the names that timm's have:
        `attn.softmax`, and `attn_drop`, which hands them on. So timm's `AttentionExtract`, torchvision's
        feature extractors and hooks see them, and what they change there is what the values are weighted by.
        The memory is that of "plain", and the result is the same but for rounding.

        Raises:
            ValueError: a backend chosen by name that makes no map.
        """
        if not show:
            self._modules.pop("attn", None)
            self._modules.pop("attn_drop", None)
        elif self.backend not in ("auto", "plain"):
            raise ValueError(
                f"backend {self.backend!r} makes no map to show: set the layer's backend to 'plain' before"
            )
        else:
            self.attn = nn.Sequential(OrderedDict(softmax=nn.Softmax(dim=-1)))
            self.attn_drop = nn.Identity()
            for child in (self.attn, self.attn_drop):
                child.train(self.training)

    def reset_parameters(self) -> None:
        """Standard deviations: 0.01 for the projections, as in the authors' code, d**-0.5 for the tables.

        Of the tables that is what the authors say was meant: their code has it in the place of the mean, and
        drew them from N(d**-0.5, 1).
        """
        nn.init.normal_(self.qkv.weight, std=0.01)
        for name in TABLES[self.position]:
            nn.init.normal_(self.get_parameter(name), std=self.head_width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W], or [B, C, ceil(H/2), ceil(W/2)] at stride 2; channels_last stays so.

        Raises ValueError for anything but a batch of C-channel maps.
        """
        if self.shows_maps:
            return self._shown(x)
        if isinstance(x, fx.Proxy):
            return recorded(self, x)
        q, k, v = self._project(x)  # [B, h, N, d] each; k None without content
        H, W = x.shape[2:]
        if self.position == "relative":
            rel_h, rel_w = self._tables(H, W)  # [2H-1, d], [2W-1, d]
            out = relative_attention_2d(
                q, k, v, rel_h, rel_w, (H, W), self.stride == 2, self.backend, scale=self.scale
            )  # [B, h, N', d]
        else:
            keys = _position_keys(q, k, self._tables(H, W))  # [B, h, N, d]
            if self.backend == "plain" or transformed():
                weights = torch.matmul(q * self.scale, keys.transpose(-2, -1)).softmax(dim=-1)  # [B, h, N, N]
                out = torch.matmul(weights, v)  # [B, h, N, d]
            else:
                out = F.scaled_dot_product_attention(q, keys, v, scale=self.scale)  # [B, h, N, d]
            out = pool_tokens(out, (H, W)) if self.stride == 2 else out  # [B, h, N', d]
        return _as_map(out, H, W, self.stride, _in_channels_last(x))  # [B, C, H', W']

    def attention_maps(self, x: Tensor) -> Tensor:
        """The softmaxed weights that `forward` applies to the values, x [B, C, H, W] -> [B, h, N, N].

        Row y*W + x is what the query at (y, x) looks at, before any pooling; each row sums to one.
        """
        q, k, tables = self.terms(x)
        H, W = x.shape[2:]
        return _logits(q, k, tables, self.position, H, W).softmax(dim=-1)

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """What the logits of `attention_maps` are products of, x [B, C, H, W] -> queries, keys and tables.

        Queries [B, h, N, d] are scaled; keys [B, h, N, d], None without content; the position tables, of rows
        and of columns, are for this H and W: [2H-1, d] and [2W-1, d], [H, d] and [W, d], or none at all.
        """
        q, k, _ = self._project(x)  # [B, h, N, d] each
        return q * self.scale, k, self._tables(x.shape[2], x.shape[3])

    def extra_repr(self) -> str:
        H, W = self.map_size
        return (
            f"{self.channels}, map_size=({H}, {W}), heads={self.heads}, position={self.position!r}, "
            f"content={self.content}, stride={self.stride}"
            + (f", resample={self.resample!r}" if self.resample != "stretch" else "")
            + (f", backend={self.backend!r}" if self.backend != "auto" else "")
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """x [B, C, H, W] -> queries, keys (None without content) and values, views [B, h, N, d] each."""
        check_input(x, self.channels, self)
        return _split(self._tokens(x), self.heads, self.head_width)

    def _shown(self, x: Tensor) -> Tensor:
        """`forward`, its softmax a module that others see; every step is one node for a tracer.

        The steps are functions of tensors, since a graph cannot hold the layer as an argument.
        """
        check_input(x, self.channels, self)
        maps, heads, width = self.qkv(x), self.heads, self.head_width  # [B, 3C or 2C, H, W]
        tables = tuple(getattr(self, name) for name in TABLES[self.position])
        logits = shown_logits(
            maps, tables, self.position, self.resample, heads, width, self.scale
        )  # [B, h, N, N]
        weights = self.attn_drop(self.attn(logits))  # [B, h, N, N]
        return shown_result(weights, maps, x, heads, width, self.stride)  # [B, C, H', W']

    def _tables(self, H: int, W: int) -> tuple[Tensor, ...]:
        """The position tables for a map of H x W, in the order of TABLES; the parameters at `map_size`."""
        tables = tuple(getattr(self, name) for name in TABLES[self.position])
        if self.training and not self._told_of_rows and torch.is_grad_enabled() and not in_a_graph():
            self._tell_of_rows(tables, H, W)
        return _resampled(tables, self.position, self.resample, H, W)

    def _tell_of_rows(self, tables: tuple[Tensor, ...], H: int, W: int) -> None:
        """Warn, once, where a map of H x W leaves rows of a table without a gradient."""
        sizes = zip(tables, self.map_size, (H, W), strict=False)
        if any(table.requires_grad and leaves_rows(L, side, self.resample) for table, L, side in sizes):
            self._told_of_rows = True
            was = "x".join(map(str, self.map_size))
            warnings.warn(
                f"an MHSA2d with position tables for a map of {was} is trained on one of {H}x{W}, which "
                "leaves some rows without a gradient: if all maps are as small, make it for their size "
                "(image_size, or a layer's own map_size), or these rows stay as they are",
                stacklevel=2,
            )

    def _tokens(self, x: Tensor) -> Tensor:
        """The projections of x [B, C, H, W], token by token: [B, H, W, 3C or 2C].

        On the CPU the 1x1 convolution is computed as what it is, one matrix product.
        """
        qkv: nn.Module = self.qkv
        as_product = self.backend != "plain" and x.device.type == "cpu" and not being_exported()
        if as_product and is_bare_pointwise(qkv) and (in_a_graph() or not intercepted(x, qkv.weight)):
            return linear(x.permute(0, 2, 3, 1), qkv.weight.flatten(1), qkv.bias)
        result: Tensor = qkv(x)  # [B, 3C or 2C, H, W]
        return result.permute(0, 2, 3, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Resample the tables of another map size into this layer's, then load as every module does."""
        for name, side in zip(TABLES[self.position], self.map_size, strict=False):
            given = state_dict.get(prefix + name)
            # Whatever is no table at all is PyTorch's to refuse, with its own message.
            if given is not None and given.ndim == 2 and (self.position == "absolute" or given.shape[0] % 2):
                with torch.no_grad():
                    state_dict[prefix + name] = _loaded(given, self.position, self.resample, side)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _in_channels_last(x: Tensor) -> bool:
    """Whether the map lies in channels_last alone; vmap cannot tell, and no transform needs it."""
    return not transformed() and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _split(tokens: Tensor, heads: int, head_width: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """[B, H, W, 3C or 2C] -> queries, keys (None of 2C) and values, views [B, h, N, d] each."""
    parts = tokens.flatten(1, 2).unflatten(2, (-1, heads, head_width)).unbind(2)  # [B, N, h, d] each
    q, *k, v = (part.transpose(1, 2) for part in parts)  # [B, h, N, d] each
    return q, k[0] if k else None, v


def _one(table: Tensor, position: str, how: Resample, side: int) -> Tensor:
    """A table for a side of so many positions: [2L-1, d] -> [2*side-1, d], or [L, d] -> [side, d]."""
    return (resample_table if position == "relative" else resample_rows)(table, side, how)


def _loaded(table: Tensor, position: str, how: Resample, side: int) -> Tensor:
    """`_one`, also of a table that lies in parts, one a process (fully_shard), and does so afterwards."""
    rows = 2 * side - 1 if position == "relative" else side
    if table.shape[0] == rows or not hasattr(table, "full_tensor"):
        return _one(table, position, how, side)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(table, DTensor)
    whole = _one(table.full_tensor(), position, how, side)
    return distribute_tensor(whole, table.device_mesh, table.placements)


def _resampled(
    tables: tuple[Tensor, ...], position: str, how: Resample, H: int, W: int
) -> tuple[Tensor, ...]:
    """The tables, none or two, for a map of H x W."""
    return tuple(_one(table, position, how, side) for table, side in zip(tables, (H, W), strict=False))


def _logits(q: Tensor, k: Tensor | None, tables: tuple[Tensor, ...], position: str, H: int, W: int) -> Tensor:
    """What softmax is taken of, q [B, h, N, d] scaled already, tables of this map -> [B, h, N, N]."""
    if position != "relative":
        return q @ _position_keys(q, k, tables).transpose(-2, -1)  # [B, h, N, N]
    rel_h, rel_w = tables  # [2H-1, d], [2W-1, d]
    logits = relative_logits_2d(q, rel_h, rel_w, (H, W))
    return logits if k is None else logits + q @ k.transpose(-2, -1)  # [B, h, N, N]


def _position_keys(q: Tensor, k: Tensor | None, tables: tuple[Tensor, ...]) -> Tensor:
    """Keys plus their position's e, [B, h, N, d]: q (k + e)^T = q k^T + q e^T, one product for both."""
    if not tables:
        assert k is not None  # the constructor refuses neither content nor position
        return k
    abs_h, abs_w = tables  # [H, d], [W, d]
    e = (abs_h[:, None] + abs_w[None, :]).flatten(0, 1).to(q.dtype)  # [N, d]
    return e.expand_as(q) if k is None else k + e  # [B, h, N, d]


def _as_map(tokens: Tensor, H: int, W: int, stride: int, channels_last: bool) -> Tensor:
    """Tokens of all heads, pooled already, of a map of H x W: [B, h, N', d] -> [B, C, H', W']."""
    H, W = (H - 1) // stride + 1, (W - 1) // stride + 1  # as a pool says it, symbol for symbol
    if channels_last:
        return tokens.transpose(1, 2).flatten(2).unflatten(1, (H, W)).permute(0, 3, 1, 2)  # [B, C, H', W']
    return tokens.transpose(2, 3).flatten(1, 2).unflatten(2, (H, W)).contiguous()  # [B, C, H', W']


@fx.wrap
def shown_logits(
    maps: Tensor,
    tables: tuple[Tensor, ...],
    position: str,
    resample: Resample,
    heads: int,
    head_width: int,
    scale: float,
) -> Tensor:
    """The logits of the projections [B, 3C or 2C, H, W] -> [B, h, N, N]; one node for a tracer."""
    q, k, _ = _split(maps.permute(0, 2, 3, 1), heads, head_width)  # [B, h, N, d] each
    H, W = maps.shape[2:]
    return _logits(q * scale, k, _resampled(tables, position, resample, H, W), position, H, W)


@fx.wrap
def shown_result(
    weights: Tensor, maps: Tensor, x: Tensor, heads: int, head_width: int, stride: int
) -> Tensor:
    """The values weighted and pooled, weights [B, h, N, N] -> [B, C, H', W']; x's memory format is kept."""
    _, _, v = _split(maps.permute(0, 2, 3, 1), heads, head_width)  # [B, h, N, d]
    H, W = maps.shape[2:]
    out = weights @ v  # [B, h, N, d]
    out = pool_tokens(out, (H, W)) if stride == 2 else out  # [B, h, N', d]
    return _as_map(out, H, W, stride, _in_channels_last(x))
