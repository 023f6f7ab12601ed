"""FLOPs of the attention operators: each operator registers its formula with `torch.utils.flop_counter`.

Counted is the useful work: what the plain form of `relative_attention_2d` has, product by product, in the
same direction and for the same gradients. So a count is one, whatever computes it. What an operator does
beside that is left out (weights that are computed again for the backward pass), and so is what it saves (a
2x2 pool before the product with v).

The arguments are the operators', shapes for tensors. Letters: B batch, h heads, d head width, H x W map,
N = H*W tokens, L = 2H-1 + 2W-1 rows of both tables.
"""

from typing import Any

Shape = tuple[int, ...]


def relative_attention_flops(
    q: Shape, k: Shape | None, v: Shape, rel_h: Shape, rel_w: Shape, *_: Any, **__: Any
) -> int:
    """Of the forward pass, pooled or not: q, k, v [B, h, N, d], k None for no content term; both tables."""
    return sum(_products(q, k, rel_h[0] + rel_w[0]))


def relative_attention_backward_flops(
    grad: Shape, q: Shape, k: Shape | None, v: Shape, rel_h: Shape, rel_w: Shape, *rest: Any, **_: Any
) -> int:
    """Of the backward pass: each product of the forward pass, once for each operand that has a gradient."""
    for_q, for_k, for_v, for_table = rest[-4:]
    content, table, values = _products(q, k, rel_h[0] + rel_w[0])
    of_weights = for_q or for_k or for_table
    return content * (for_q + for_k) + table * (for_q + for_table) + values * (for_v + of_weights)


def joined_attention_flops(q: Shape, k: Shape | None, v: Shape, table: Shape, *_: Any, **__: Any) -> int:
    """Of the forward pass with both tables in one, [L, d]."""
    return sum(_products(q, k, table[0]))


def joined_attention_backward_flops(
    grad: Shape, q: Shape, k: Shape | None, v: Shape, table: Shape, *_: Any, **__: Any
) -> int:
    """Of a backward pass that computes every gradient."""
    return 2 * sum(_products(q, k, table[0]))


def linear_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    """Of x [M, K] times weight [O, K]."""
    return 2 * x[0] * weight[0] * weight[1]


def linear_backward_flops(
    grad: Shape, x: Shape, weight: Shape, for_x: bool, for_weight: bool, **_: Any
) -> int:
    """Of the gradients that are asked for."""
    return linear_flops(x, weight) * (for_x + for_weight)


def no_products(*_: Any, **__: Any) -> int:
    """Of an operator that has no product of matrices: PyTorch's counter takes others for nothing."""
    return 0


def _products(q: Shape, k: Shape | None, L: int) -> Shape:
    """Of q k^T (0 without k), of q times the tables, and of the weights times v."""
    B, h, N, d = q
    square = 2 * B * h * N * N * d
    return 0 if k is None else square, 2 * B * h * N * d * L, square
