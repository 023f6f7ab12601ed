"""BAM's gate (arXiv 1807.06514, eq. 1 and 2): a map plus itself times its attention.

Letters: B batch, C channels, H x W map. Inside, a map is a stack of matrices [B, O, I] as it lies in memory,
O outer and I inner: C x HW, or HW x C in channels_last. One branch then speaks for the rows and the other for
the columns, so one formula does for both formats.

The gate keeps x and what the branches said, and computes its weights again for backward. On the CPU it works
in one compiled pass each way (`cpu/gate_passes.py`), which a compiler's graph has as one operator; without
these, in pieces that stay in the cache, and a compiler is given the formula, which it fuses by itself. So are
`torch.func`'s transforms, forward-mode derivatives and second derivatives, which need PyTorch's operations.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attneck.attention import twice
from attneck.attention.cpu import gate_passes
from attneck.attention.cpu.build import DTYPES
from attneck.attention.cpu.passes import passes
from attneck.attention.flops import no_products
from attneck.attention.graph import (
    being_exported,
    in_a_graph,
    intercepted,
    no_second_derivative,
    transformed,
)
from attneck.checks import one_of

COMBINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "max": torch.maximum,
}
"""How the two branches meet (BAM, Table 1); the paper settles on the sum."""

PIECE = 1 << 18
"""Numbers in a piece: 1 MiB in float32."""


BACKENDS = ("auto", "plain")


class Handover(threading.local):
    """Where the gate's backward leaves x's gradient for `squeeze`'s, which adds to it in place.

    What autograd passes can be kept by others: by hooks, or by a caller who asked for it. Nobody else sees
    this gradient; autograd passes its number in `left`, from 1, or 0 for none. Each thread has its own list.
    It is a list because a backward can run inside another.
    """

    def __init__(self) -> None:
        self.left: list[Tensor] = []

    def leave(self, gradient: Tensor) -> Tensor:
        """The number to pass on, a tensor [1]."""
        self.left.append(gradient)
        return torch.tensor([len(self.left)], dtype=torch.float32, device="cpu")

    def take(self, number: Tensor) -> Tensor | None:
        """The gradient of this number, and away with any left later, by a backward that was broken off."""
        place = int(number) - 1
        if place < 0:
            return None
        gradient = self.left[place]
        del self.left[place:]
        return gradient


def gate(
    x: Tensor,
    c: Tensor | None,
    p: Tensor | None,
    combine: str = "sum",
    *,
    backend: Literal["auto", "plain"] = "auto",
) -> Tensor:
    """x + x * sigmoid(combine(c, p)), the branches broadcast over the map; x's memory format is kept.

    Args:
        x: [B, C, H, W].
        c: channel logits [B, C], or None for the spatial branch alone.
        p: spatial logits [B, 1, H, W], or None for the channel branch alone.
        combine: "sum", "prod" or "max"; unused with one branch.
        backend: "plain" is ordinary PyTorch, for every derivative and transform. "auto" is less memory and
            time where the tensors are computed at once, and "plain" elsewhere, inside a dispatch mode too and
            for tensors of a class of their own; second derivatives are right with both.

    Returns:
        [B, C, H, W], of the dtype that the three promote to.

    Raises:
        ValueError: for shapes that do not fit, no branch at all, or an unknown `combine` or `backend`.
    """
    _check(x, c, p, combine)
    check_backend(backend)
    if backend == "plain" or transformed() or x.numel() == 0:
        return _plain(x, c, p, combine)
    if not in_a_graph() and intercepted(x, c, p):
        return _plain(x, c, p, combine)
    if in_a_graph() and (being_exported() or not _passes_are_compiled(x, c, p)):
        return _plain(x, c, p, combine)
    made: Tensor
    made = _operator(x, c, p, combine) if in_a_graph() else _Gate.apply(x, c, p, combine, None, None)
    return made


def gate_handing_over(
    x: Tensor, c: Tensor | None, p: Tensor | None, combine: str, token: Tensor, handover: Handover
) -> Tensor:
    """`gate`, whose backward leaves x's gradient in `handover` for the node that made the token [1]."""
    _check(x, c, p, combine)
    out: Tensor = _Gate.apply(x, c, p, combine, token, handover)
    return out


def check_backend(backend: str) -> None:
    """ValueError for an unknown one."""
    one_of("backend", backend, BACKENDS)


def gate_weights(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str = "sum") -> Tensor:
    """sigmoid(combine(c, p)), broadcastable to x: [B, C, H, W], [B, C, 1, 1] (no p) or [B, 1, H, W] (no c).

    Arguments and errors as `gate`; of x only the shape is read.
    """
    _check(x, c, p, combine)
    c = None if c is None else c[:, :, None, None]  # [B, C, 1, 1]
    return _sigmoid(c, p, combine)


def _check(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str) -> None:
    for name, tensor in (("x", x), ("c", c), ("p", p)):
        if tensor is None and name != "x":
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}: wanted a tensor")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and x on {x.device}: put all on one device")
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}, wanted a batch of maps [B, C, H, W]")
    B, C, H, W = x.shape
    if c is not None and c.shape != (B, C):
        raise ValueError(f"c has shape {list(c.shape)}, wanted one logit a channel, [B, C] = [{B}, {C}]")
    if p is not None and p.shape != (B, 1, H, W):
        raise ValueError(
            f"p has shape {list(p.shape)}, wanted one logit a position, [B, 1, H, W] = [{B}, 1, {H}, {W}]"
        )
    one_of("combine", combine, COMBINES)
    if c is None and p is None:
        raise ValueError(
            "c and p are both None; a gate needs the channel logits, the spatial logits, or both"
        )


def _sigmoid(a: Tensor | None, b: Tensor | None, combine: str) -> Tensor:
    """Of both logits, which broadcast to each other, or of the only one."""
    if a is not None and b is not None:
        return COMBINES[combine](a, b).sigmoid()
    only = a if b is None else b
    assert only is not None  # _check refuses neither
    return only.sigmoid()


def _plain(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str) -> Tensor:
    """`gate` by ordinary PyTorch."""
    # x stands first: where operands disagree about the memory format, PyTorch follows the first.
    return torch.addcmul(x, x, gate_weights(x, c, p, combine))  # [B, C, H, W]


class _Gate(torch.autograd.Function):
    """`gate`, whose docstring has the arguments; the last two are those of `gate_handing_over`, or None.

    Without a `setup_context`: PyTorch would read forward's signature at each call, which takes longer than a
    small map. It is for `torch.func`, under which nobody comes here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        c: Tensor | None,
        p: Tensor | None,
        combine: str,
        token: Tensor | None,
        handover: Handover | None,
    ) -> Tensor:
        ctx.combine, ctx.handover = combine, handover
        ctx.save_for_backward(x, c, p)
        return _forward(x, c, p, combine)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, c, p), wanted = ctx.saved_tensors, ctx.needs_input_grad[:3]
        if twice.is_asked_twice(grad):
            of_all = twice.gradients(lambda x, c, p: _plain(x, c, p, ctx.combine), (x, c, p), grad, wanted)
            return *of_all, None, None, None
        gradients = _backward(grad, x, c, p, ctx.combine, wanted)
        dx, dc, dp = (g if asked else None for g, asked in zip(gradients, wanted, strict=True))
        if dx is not None and ctx.needs_input_grad[4] and _goes_on(ctx):
            return None, dc, dp, None, ctx.handover.leave(dx), None
        return dx, dc, dp, None, None, None


def _goes_on(ctx: Any) -> bool:
    """Whether this backward comes to the node that made the token, the last tensor; it may stop before."""
    node, _ = ctx.next_functions[-1]
    return bool(torch._C._will_engine_execute_node(node))


@torch.library.custom_op("attneck::gate_cpu", mutates_args=(), device_types="cpu")
def _operator(x: Tensor, c: Tensor, p: Tensor, combine: str) -> Tensor:
    """`gate` on the CPU with both branches, in a compiler's graph."""
    return _forward(x, c, p, combine)


@_operator.register_fake
def _(x: Tensor, c: Tensor, p: Tensor, combine: str) -> Tensor:
    return _result(x, _dtype(x, c, p))


@torch.library.custom_op("attneck::gate_cpu_backward", mutates_args=(), device_types="cpu")
def _operator_backward(
    grad: Tensor, x: Tensor, c: Tensor, p: Tensor, combine: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, c and p from the result's."""
    return _backward(grad, x, c, p, combine, (True, True, True))


@_operator_backward.register_fake
def _(grad: Tensor, x: Tensor, c: Tensor, p: Tensor, combine: str) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(x, c, p, (True, True, True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.combine = inputs
    ctx.save_for_backward(*tensors)


def _of_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_operator_backward(grad, *ctx.saved_tensors, ctx.combine), None


_operator.register_autograd(_of_operator, setup_context=_save)
_operator_backward.register_autograd(no_second_derivative)
register_flop_formula(torch.ops.attneck.gate_cpu)(no_products)
register_flop_formula(torch.ops.attneck.gate_cpu_backward)(no_products)


def _result(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the gated map, in x's format."""
    return torch.empty_like(x, dtype=dtype, memory_format=_format(_in_channels_last(x)))


def _forward(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str) -> Tensor:
    channels_last, dtype = _in_channels_last(x), _dtype(x, c, p)
    out = _result(x, dtype)
    maps, results = _matrices(x, channels_last), _matrices(out, channels_last)  # [B, O, I] each
    rows, columns = _sides(c, p, channels_last, dtype)  # [B, O, 1], [B, 1, I]
    if _passes_are_compiled(x, c, p):
        assert rows is not None
        assert columns is not None
        gate_passes.weigh(maps, rows[:, :, 0], columns[:, 0], combine, results)
        return out
    for b, o in _pieces(maps):
        piece = maps[b, o].to(dtype)  # [n, o, I]
        weights = _sigmoid(_cut(rows, b, o), _cut(columns, b), combine)  # [n, o, I], [n, o, 1] or [n, 1, I]
        torch.addcmul(piece, piece, weights, out=results[b, o])
    return out


def _backward(
    grad: Tensor, x: Tensor, c: Tensor | None, p: Tensor | None, combine: str, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, c and p from the result's; nothing [0] where none is `wanted`."""
    channels_last, dtype = _in_channels_last(x), _dtype(x, c, p)
    dx, dc, dp = _gradients(x, c, p, wanted)
    maps, above = _matrices(x, channels_last), _matrices(grad, channels_last)  # [B, O, I] each
    to_maps = _matrices(dx, channels_last) if wanted[0] else None
    rows, columns = _sides(c, p, channels_last, dtype)  # [B, O, 1], [B, 1, I]
    to_rows: Tensor | None
    to_columns: Tensor | None
    if _passes_are_compiled(x, c, p):
        assert rows is not None
        assert columns is not None
        to_maps = torch.empty_like(maps) if to_maps is None else to_maps
        logits = rows[:, :, 0], columns[:, 0]
        to_rows, to_columns = gate_passes.gradients(maps, *logits, combine, above.to(dtype), to_maps)
    else:
        of_logits = wanted[1] or wanted[2]
        to_rows, to_columns = _backward_in_pieces(maps, above, rows, columns, combine, to_maps, of_logits)
    to_c, to_p = (to_columns, to_rows) if channels_last else (to_rows, to_columns)
    if to_c is not None and wanted[1]:
        dc.copy_(to_c.view_as(dc))
    if to_p is not None and wanted[2]:
        dp.copy_(to_p.view_as(dp))
    return dx, dc, dp


def _backward_in_pieces(
    maps: Tensor,
    above: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    combine: str,
    to_maps: Tensor | None,
    of_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of `maps` [B, O, I] into `to_maps`; those of rows and columns, if asked for."""
    dtype = next(side for side in (rows, columns) if side is not None).dtype
    sums = torch.promote_types(dtype, torch.float32)
    to_rows, to_columns = (
        None if side is None else torch.zeros_like(side, dtype=sums) for side in (rows, columns)
    )
    for b, o in _pieces(maps):
        g, row, column = above[b, o], _cut(rows, b, o), _cut(columns, b)
        weights = _sigmoid(row, column, combine)
        if to_maps is not None:
            torch.addcmul(g, g, weights, out=to_maps[b, o])
        if not of_logits:
            continue
        of_weights = g * maps[b, o].to(dtype)  # [n, o, I]
        if to_rows is None or to_columns is None:
            if to_rows is not None:
                to_rows[b, o] = _sigmoid_backward(of_weights.sum(2, keepdim=True), weights)
            if to_columns is not None:
                to_columns[b] += _sigmoid_backward(of_weights.sum(1, keepdim=True), weights)
            continue
        of_both = _sigmoid_backward(of_weights, weights)  # [n, o, I]
        of_rows, of_columns = _split(of_both, row, column, combine)
        to_rows[b, o] = of_rows.sum(2, keepdim=True)
        to_columns[b] += of_columns.sum(1, keepdim=True)
    return to_rows, to_columns


def _passes_are_compiled(x: Tensor, c: Tensor | None, p: Tensor | None) -> bool:
    """Whether `gate_passes` computes it: with both branches, on the CPU, where the result is of x's dtype."""
    if c is None or p is None or x.device.type != "cpu":
        return False
    return x.dtype in DTYPES and x.dtype == _dtype(x, c, p) and passes() == "fused"


def _in_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _matrices(x: Tensor, channels_last: bool) -> Tensor:
    """A map [B, C, H, W] as it is to lie in memory, [B, HW, C] or [B, C, HW]; a view if it lies so."""
    if channels_last:
        return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
    return x.flatten(2).contiguous()


def _dtype(x: Tensor, c: Tensor | None, p: Tensor | None) -> torch.dtype:
    """What all of them promote to."""
    dtype = x.dtype
    for branch in (c, p):
        dtype = dtype if branch is None else torch.promote_types(dtype, branch.dtype)
    return dtype


def _sides(
    c: Tensor | None, p: Tensor | None, channels_last: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What is said of the rows and of the columns of `_matrices`: [B, O, 1] and [B, 1, I], or None."""
    c = None if c is None else c.to(dtype)  # [B, C]
    p = None if p is None else p.to(dtype).flatten(1)  # [B, HW]
    rows, columns = (p, c) if channels_last else (c, p)
    return None if rows is None else rows[:, :, None], None if columns is None else columns[:, None, :]


def _pieces(maps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts of [B, O, I] along B, and along O where one sample is more than a PIECE; one on an accelerator."""
    B, O, I = maps.shape  # noqa: E741 - as above
    piece = PIECE if maps.device.type == "cpu" else maps.numel()
    samples, rows = max(1, piece // max(1, O * I)), max(1, piece // max(1, I))
    for b in range(0, B, samples):
        for o in range(0, O, rows):
            yield slice(b, b + samples), slice(o, o + rows)


def _cut(side: Tensor | None, *cuts: slice) -> Tensor | None:
    return None if side is None else side[cuts]


def _sigmoid_backward(grad: Tensor, sigmoid: Tensor) -> Tensor:
    """grad * sigmoid * (1 - sigmoid)."""
    result: Tensor = torch.ops.aten.sigmoid_backward(grad, sigmoid)
    return result


def _split(grad: Tensor, a: Tensor | None, b: Tensor | None, combine: str) -> tuple[Tensor, Tensor]:
    """The gradients of a and b, not yet summed, from that of their combination; a tie is shared."""
    assert a is not None
    assert b is not None
    if combine == "sum":
        return grad, grad
    if combine == "prod":
        return grad * b, grad * a
    of_a = grad * ((a > b).to(grad.dtype) + (a == b).to(grad.dtype) / 2)
    return of_a, grad - of_a


def _gradients(
    x: Tensor, c: Tensor | None, p: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of x, in its format, of c and of p; [0] where none is `wanted`."""
    dx = torch.empty_like(x, memory_format=_format(_in_channels_last(x))) if wanted[0] else x.new_empty(0)
    dc, dp = (
        branch.new_empty(branch.shape) if branch is not None and asked else x.new_empty(0)
        for branch, asked in zip((c, p), wanted[1:], strict=True)
    )
    return dx, dc, dp
