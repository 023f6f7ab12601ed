"""What each BAM and each MHSA of a network looks at in one image, as arrays.

Letters: C channels, H x W a layer's map, N = H*W places, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from attneck.errors import brief
from attneck.layers import BAM, MHSA2d
from attneck.layers.modes import evaluating
from attneck.models.origin import bare, is_detector

Part = Literal["both", "content", "position"]
PARTS = ("both", "content", "position")


class RunLike(Protocol):
    """What is wanted of an `attneck.Run`."""

    def model(self) -> nn.Module: ...

    def prepared(self, image: Any) -> Tensor: ...


@dataclass(frozen=True)
class BAMMaps:
    """What a BAM says of one image: H x W places, C channels.

    Attributes:
        name: the module's, with dots.
        channel: M_c, the channel branch's logits [C] (BAM eq. 3); None where it has no such branch.
        spatial: M_s, the spatial branch's logits [H, W] (BAM eq. 4); None likewise.
        attention: M, their combination after the sigmoid [C, H, W] (BAM eq. 2), from 0 to 1.
        before: what comes in, the mean over the channels of its magnitude [H, W].
        after: what goes out, likewise.
        call: 1 in its first pass over the image, 2 in its second.
        gain: of one that starts as the identity, what M is multiplied by [C]; None of others.
    """

    name: str
    channel: Tensor | None = field(repr=False)
    spatial: Tensor | None = field(repr=False)
    attention: Tensor = field(repr=False)
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    call: int = 1
    gain: Tensor | None = field(default=None, repr=False)

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.before.shape[0], self.before.shape[1]


def gain_of(bam: BAMMaps) -> str:
    """The least and the greatest gain of a channel, in words; "" of a BAM without one."""
    return "" if bam.gain is None else f"{float(bam.gain.min()):.2g} to {float(bam.gain.max()):.2g}"


@dataclass(frozen=True)
class MHSAMaps:
    """Where each head of an MHSA looks from each place of its map, computed when it is asked for.

    Attributes:
        name: the module's, with dots.
        map_size: (H, W) of the map that attention runs over; a stride's pool comes after it.
        heads: h.
        image_size: (height, width) of the input that the map covers.
        position: the layer's, "relative", "absolute" or "none".
        content: whether the logits have the term q k^T.
        tables: the learned positions at this map size, of rows and of columns: "relative" [2H-1, d] and
            [2W-1, d], row H-1 offset 0; "absolute" [H, d] and [W, d]; none.
        call: 1 in its first pass over the image, 2 in its second.
    """

    name: str
    map_size: tuple[int, int]
    heads: int
    image_size: tuple[int, int]
    position: str
    content: bool
    queries: Tensor = field(repr=False)  # [h, N, d], scaled
    keys: Tensor | None = field(repr=False)  # [h, N, d]
    tables: tuple[Tensor, ...] = field(repr=False)
    call: int = 1

    def row(self, y: int, x: int, part: Part = "both") -> Tensor:
        """The weights of the query at row y and column x of the map, over all places: [h, H, W].

        Those of each head sum to one.

        Args:
            part: "both" is what the layer applies. "content" and "position" are the softmax of that term of
                the logits alone.

        Raises:
            ValueError: a place outside the map, or a part that the layer does not have.
        """
        H, W = self.map_size
        for what, value, side in (("row y", y, H), ("column x", x, W)):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < side:
                raise ValueError(
                    f"{what}={brief(value)} is not on the {H}x{W} map of {self.name!r}: give 0 to {side - 1}"
                )
        return self._weights(y, slice(x, x + 1), part)[:, 0].unflatten(1, (H, W))  # [h, H, W]

    def log_row(self, y: int, x: int, part: Part) -> Tensor:
        """The logarithms of `row`, finite however small a weight is: [h, H, W]. Raises what it raises."""
        self.row(y, x, part)
        logits = self._logits(y, slice(x, x + 1), part)[:, 0]  # [h, N]
        return logits.log_softmax(-1).unflatten(1, self.map_size)

    def distance(self) -> Tensor:
        """Mean distance in pixels of the input from a query to what it looks at, by its weights: [h].

        The mean is over all queries. It is Euclidean, between the centres of places. One row of the map is
        in memory at a time.
        """
        H, W = self.map_size
        high, wide = self.image_size[0] / H, self.image_size[1] / W
        columns = torch.arange(W, device=self.queries.device, dtype=self.queries.dtype)
        rows = torch.arange(H, device=self.queries.device, dtype=self.queries.dtype)
        across = (wide * (columns[:, None] - columns)).square()  # [W, W], query and key
        total = self.queries.new_zeros(self.heads)
        for y in range(H):
            down = (high * (rows - y)).square()  # [H]
            apart = (down[None, :, None] + across[:, None, :]).sqrt().flatten(1)  # [W, N]
            total += (self._weights(y, slice(0, W), "both") * apart).sum((1, 2))
        return total / (H * W)

    def _weights(self, y: int, columns: slice, part: Part) -> Tensor:
        """Those of some queries of row y: [h, n, N]."""
        return self._logits(y, columns, part).softmax(-1)

    def _logits(self, y: int, columns: slice, part: Part) -> Tensor:
        """What they are the softmax of: [h, n, N]."""
        if part not in PARTS:
            raise ValueError(f"part={brief(part)}: choose one of {', '.join(PARTS)}")
        if part == "content" and self.keys is None:
            raise ValueError(f"{self.name!r} has no content term (content=False): ask for its position")
        if part == "position" and not self.tables:
            raise ValueError(f"{self.name!r} has no positions (position='none'): ask for its content")
        H, W = self.map_size
        q = self.queries.unflatten(1, (H, W))[:, y, columns]  # [h, n, d]
        logits: Tensor | float = 0.0
        if part != "position" and self.keys is not None:
            logits = q @ self.keys.transpose(1, 2)  # [h, n, N]
        if part != "content" and self.tables:
            logits = logits + self._of_places(q, y, columns)
        assert isinstance(logits, Tensor)  # no layer has neither term
        return logits

    def _of_places(self, q: Tensor, y: int, columns: slice) -> Tensor:
        """The position term of queries q [h, n, d] of row y, a sum over the two axes: [h, n, N]."""
        H, W = self.map_size
        by_row, by_column = self.tables
        if self.position == "relative":  # entry of offset key - query, see `MHSA2d`
            over_rows = q @ by_row[H - 1 - y : 2 * H - 1 - y].T  # [h, n, H]
            places = torch.arange(W, device=q.device)
            offset = places - places[columns, None] + W - 1  # [n, W]
            over_columns = (q @ by_column.T).gather(2, offset.expand(len(q), -1, -1))  # [h, n, W]
        else:
            over_rows, over_columns = q @ by_row.T, q @ by_column.T  # [h, n, H], [h, n, W]
        return (over_rows[..., :, None] + over_columns[..., None, :]).flatten(2)


@dataclass(frozen=True)
class Maps:
    """What `maps` found.

    Attributes:
        image_size: (height, width) of the network's input; of a detector, of the batch that it makes.
        seen: the part of it that the image fills, from the top left corner; less only in a detector.
        bams: of each BAM, in the order in which they ran.
        mhsas: of each MHSA, likewise.
        output: the network's, without the batch: logits [classes], or a detector's boxes, labels and scores;
            of a dictionary or list of tensors each one's.
        notes: a line for each layer of ours that has no map here, or more than one, and why.
    """

    image_size: tuple[int, int]
    seen: tuple[int, int]
    bams: tuple[BAMMaps, ...]
    mhsas: tuple[MHSAMaps, ...]
    output: Any = field(repr=False)
    notes: tuple[str, ...] = ()


@torch.no_grad()
def maps(model: nn.Module | RunLike, image: Tensor | str | PathLike[str] | Any) -> Maps:
    """What each BAM and each MHSA of a network looks at in an image.

    The network runs once, in evaluation mode, and is afterwards as it was. What an MHSA looks at is computed
    from its queries and keys, a row at a time, so no [N, N] map is made.

    Args:
        model: any module with `MHSA2d` or `BAM` in it: of the catalog, a detector, after surgery, your own;
            or an `attneck.Run`, whose weights are taken as `Run.model` does. What is inside `torch.compile`,
            an `AveragedModel` or DistributedDataParallel is looked at itself.
        image: what the model takes: [3, H, W] or [1, 3, H, W], of floating point, normalised (a detector
            takes values from 0 to 1). With a run also an image's path, or a PIL image: it is prepared as
            held-out images are.

    Raises:
        ValueError: a model without such a layer, or no such image.
    """
    if not isinstance(model, nn.Module):
        if not hasattr(model, "prepared"):
            raise ValueError(f"model is {brief(model)}: wanted a torch.nn.Module or an attneck.Run")
        run, model = model, model.model()
        image = run.prepared(image) if not isinstance(image, Tensor) else image
    network = bare(model)
    pixels = _checked(image)
    own = next((p for p in network.parameters() if p.is_floating_point()), pixels)
    pixels = pixels.to(own.device, own.dtype)  # [1, 3, H, W]
    layers = {name: one for name, one in network.named_modules() if isinstance(one, BAM | MHSA2d)}
    if not layers:
        raise ValueError(
            f"this {type(network).__name__} has no BAM and no MHSA2d: take a model that has, such as "
            "botnet50 or resnet50_bam, or put them in with attneck.surgery's attend, insert_bam or adopt"
        )
    detects = is_detector(network)
    with _watched(network, layers) as seen, evaluating(network):
        output = network([pixels[0]] if detects else pixels)
    one = output[0] if detects else tree_map_only(Tensor, lambda part: part[0] if part.ndim else part, output)
    return seen.maps((pixels.shape[2], pixels.shape[3]), one)


def _checked(image: Any) -> Tensor:
    """[1, 3, H, W]."""
    if not isinstance(image, Tensor):
        raise ValueError(
            f"image is {brief(image)}: wanted a tensor [3, H, W] as the model takes it; with an attneck.Run "
            "in place of the model a path or a PIL image will do"
        )
    pixels = image[None] if image.ndim == 3 else image
    if pixels.ndim != 4 or len(pixels) != 1 or 0 in pixels.shape:
        raise ValueError(f"image has shape {list(image.shape)}: wanted one image, [3, H, W] or [1, 3, H, W]")
    if not pixels.is_floating_point():
        raise ValueError(
            f"image is of {image.dtype}: wanted floating point, normalised as the model takes it"
        )
    return pixels


class _Watch:
    """What the layers do in one pass of the network."""

    def __init__(self, layers: dict[str, BAM | MHSA2d]) -> None:
        self.layers = layers
        self.ran: list[tuple[str, dict[str, Any]]] = []
        self.many: dict[str, int] = {}
        self.batch: tuple[tuple[int, int], tuple[int, int]] | None = None

    def layer(self, name: str, layer: BAM | MHSA2d, x: Tensor, result: Tensor) -> None:
        """A pass of a layer: x [B, C, H, W], and what it made of it."""
        if len(x) != 1 or name.startswith("roi_heads."):  # regions of an image, though it be one
            self.many[name] = len(x)
            return
        found: dict[str, Any]
        if isinstance(layer, BAM):
            found = {
                "channel": None if layer.channel_att is None else layer.channel_attention(x)[0],
                "spatial": None if layer.spatial_att is None else layer.spatial_attention(x)[0, 0],
                "attention": layer.attention(x)[0].contiguous(),
                "before": x[0].abs().mean(0),
                "after": result[0].abs().mean(0),
                "gain": None if layer.gain is None else layer.gain.detach().clone(),
            }
        else:
            q, k, tables = layer.terms(x)
            found = {
                "map_size": (x.shape[2], x.shape[3]),
                "heads": layer.heads,
                "position": layer.position,
                "content": layer.content,
                "queries": _wide(q[0]),
                "keys": None if k is None else _wide(k[0]),
                "tables": tuple(map(_wide, tables)),
            }
        self.ran.append((name, found))

    def maps(self, image_size: tuple[int, int], output: Any) -> Maps:
        """All of them; `output` is the network's."""
        size, seen = self.batch or (image_size, image_size)
        calls: dict[str, int] = {}
        bams, mhsas = [], []
        for name, found in self.ran:
            calls[name] = calls.get(name, 0) + 1
            if "before" in found:
                bams.append(BAMMaps(name=name, call=calls[name], **found))
            else:
                mhsas.append(MHSAMaps(name=name, call=calls[name], image_size=size, **found))
        notes = [
            f"{name!r} ran {count} times: its maps are told apart by `call`"
            for name, count in calls.items()
            if count > 1
        ]
        notes += [
            f"{name!r} ran on regions of the image ({count}), which have no one map"
            for name, count in self.many.items()
        ]
        notes += [
            f"{name!r} did not run" for name in self.layers if name not in calls and name not in self.many
        ]
        return Maps(size, seen, tuple(bams), tuple(mhsas), output, tuple(notes))


def _wide(part: Tensor) -> Tensor:
    """In float32 at least, and apart from what it is or is a view of: tables are trained on."""
    return part.detach().to(torch.promote_types(part.dtype, torch.float32), copy=True).contiguous()


@contextmanager
def _watched(network: nn.Module, layers: dict[str, BAM | MHSA2d]) -> Iterator[_Watch]:
    """Hooks on the layers, and on a detector's transform, for as long as this lasts."""
    watch = _Watch(layers)

    def layer_hook(name: str) -> Any:
        def hook(layer: Any, args: Any, kwargs: Any, result: Tensor) -> None:
            watch.layer(name, layer, args[0] if args else next(iter(kwargs.values())), result)

        return hook

    def transform_hook(transform: nn.Module, args: Any, result: Any) -> None:
        images = result[0]
        watch.batch = tuple(images.tensors.shape[2:]), tuple(images.image_sizes[0])

    handles = [
        layer.register_forward_hook(layer_hook(name), with_kwargs=True) for name, layer in layers.items()
    ]
    if is_detector(network):
        handles.append(network.get_submodule("transform").register_forward_hook(transform_hook))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
