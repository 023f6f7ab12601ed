"""The two papers' equations, written to be read: the oracle of every test.

Nothing here is fast, nothing here imports the rest of the package, and every function runs in the dtype it
is given (the tests use float64). Shapes stand on every line.

Letters: B batch, C channels, H x W map, N = H*W tokens in row-major order, h heads, d = C/h head width,
m = C // reduction. "BoTNet" is arXiv 2101.11605, "BAM" is arXiv 1807.06514.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _coordinates(map_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each of the N tokens, two [N] integer tensors."""
    H, W = map_size
    n = torch.arange(H * W, device=device)  # [N]
    return n // W, n % W  # [N], [N]


def average_pool_2x2(tokens: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Mean of each 2x2 window, [B, h, H*W, d] -> [B, h, ceil(H/2)*ceil(W/2), d] (BoTNet, appendix A.4).

    On an odd side the last window holds what is inside the map only.
    """
    H, W = map_size
    maps = tokens.unflatten(2, (H, W))  # [B, h, H, W, d]
    windows = [
        maps[:, :, y : y + 2, x : x + 2].mean(dim=(2, 3))  # [B, h, d]
        for y in range(0, H, 2)
        for x in range(0, W, 2)
    ]
    return torch.stack(windows, dim=2)  # [B, h, ceil(H/2)*ceil(W/2), d]


def _attend(logits: Tensor, v: Tensor, map_size: tuple[int, int], pool: bool) -> Tensor:
    """Softmax over the keys, weighted mean of the values: [B, h, N, N], [B, h, N, d] -> [B, h, N', d]."""
    weights = torch.softmax(logits, dim=-1)  # [B, h, N, N]
    out = torch.einsum("bhnm,bhmd->bhnd", weights, v)  # [B, h, N, d]
    return average_pool_2x2(out, map_size) if pool else out


def content_logits(q: Tensor, k: Tensor) -> Tensor:
    """q k^T: [B, h, N, d] twice -> [B, h, N, N] (BoTNet, Fig. 4)."""
    return torch.einsum("bhnd,bhmd->bhnm", q, k)


def relative_logits_2d(q: Tensor, rel_h: Tensor, rel_w: Tensor, map_size: tuple[int, int]) -> Tensor:
    """q r^T with r of the query-key offset: -> [B, h, N, N] (BoTNet, Fig. 4).

    q [B, h, N, d]; rel_h [2H-1, d] with row y'-y+H-1 for query row y and key row y'; rel_w [2W-1, d]
    likewise.
    """
    H, W = map_size
    y, x = _coordinates(map_size, q.device)  # [N], [N]
    dy = y[None, :] - y[:, None]  # [N, N], key row minus query row
    dx = x[None, :] - x[:, None]  # [N, N]
    r = rel_h[dy + H - 1] + rel_w[dx + W - 1]  # [N, N, d]
    return torch.einsum("bhnd,nmd->bhnm", q, r)


def absolute_logits_2d(q: Tensor, abs_h: Tensor, abs_w: Tensor, map_size: tuple[int, int]) -> Tensor:
    """q (Eh[y'] + Ew[x'])^T with the key's position: -> [B, h, N, N] (BoTNet, Tables 4 and 19).

    q [B, h, N, d]; abs_h [H, d]; abs_w [W, d].
    """
    y, x = _coordinates(map_size, q.device)  # [N], [N]
    e = abs_h[y] + abs_w[x]  # [N, d]
    return torch.einsum("bhnd,md->bhnm", q, e)


def relative_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool = False,
    content: bool = True,
) -> Tensor:
    """softmax(q k^T + q r^T) v, BoTNet's Fig. 4; `content=False` leaves q k^T out (Table 4) and reads no k.

    q (already scaled by d**-0.5), k, v [B, h, N, d] -> [B, h, N, d], or its 2x2 average pool.
    """
    logits = relative_logits_2d(q, rel_h, rel_w, map_size)  # [B, h, N, N]
    if content:
        assert k is not None, "content=True needs k"
        logits = logits + content_logits(q, k)  # [B, h, N, N]
    return _attend(logits, v, map_size, pool)


def absolute_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    abs_h: Tensor,
    abs_w: Tensor,
    map_size: tuple[int, int],
    pool: bool = False,
    content: bool = True,
) -> Tensor:
    """softmax(q k^T + q e^T) v with absolute positions; arguments and result as `relative_attention_2d`."""
    logits = absolute_logits_2d(q, abs_h, abs_w, map_size)  # [B, h, N, N]
    if content:
        assert k is not None, "content=True needs k"
        logits = logits + content_logits(q, k)  # [B, h, N, N]
    return _attend(logits, v, map_size, pool)


def content_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, map_size: tuple[int, int], pool: bool = False
) -> Tensor:
    """softmax(q k^T) v, no positions (BoTNet, Table 4 "qk only"): [B, h, N, d] thrice -> [B, h, N', d]."""
    return _attend(content_logits(q, k), v, map_size, pool)


def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """BatchNorm of x [B, C, ...] over all but C, by the batch's statistics or the mean and var [C] given."""
    others = [axis for axis in range(x.ndim) if axis != 1]
    per_channel = (1, -1) + (1,) * (x.ndim - 2)
    if mean is None or var is None:
        mean = x.mean(dim=others)  # [C]
        var = x.var(dim=others, correction=0)  # [C]
    normal = (x - mean.view(per_channel)) / (var.view(per_channel) + eps).sqrt()  # [B, C, ...]
    return gamma.view(per_channel) * normal + beta.view(per_channel)  # [B, C, ...]


def convolution_1x1(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A matrix at every position: x [B, C, H, W], weight [O, C, 1, 1], bias [O] -> [B, O, H, W]."""
    y = torch.einsum("bchw,oc->bohw", x, weight[:, :, 0, 0])  # [B, O, H, W]
    return y if bias is None else y + bias[None, :, None, None]


def convolution_3x3(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Nine shifted matrices, zeros outside: x [B, C, H, W], weight [O, C, 3, 3], bias [O] -> [B, O, H, W]."""
    B, C, H, W = x.shape
    padded = x.new_zeros(B, C, H + 2 * dilation, W + 2 * dilation)
    padded[:, :, dilation : dilation + H, dilation : dilation + W] = x
    y = bias[None, :, None, None].expand(B, -1, H, W)  # [B, O, H, W]
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i * dilation : i * dilation + H, j * dilation : j * dilation + W]
            y = y + torch.einsum("bchw,oc->bohw", shifted, weight[:, :, i, j])  # [B, O, H, W]
    return y


def bam_channel(
    x: Tensor,
    w0: Tensor,
    b0: Tensor,
    w1: Tensor,
    b1: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """BAM's channel branch, eq. 3: BN(W1 relu(W0 mean(F) + b0) + b1): x [B, C, H, W] -> [B, C].

    w0 [m, C], b0 [m], w1 [C, m], b1 [C]; the ReLU is the "one hidden layer" of section 3.
    """
    pooled = x.mean(dim=(2, 3))  # [B, C]
    hidden = torch.relu(pooled @ w0.T + b0)  # [B, m]
    return batch_norm(hidden @ w1.T + b1, gamma, beta, mean, var)  # [B, C]


def bam_spatial(
    x: Tensor,
    convolutions: list[tuple[Tensor, Tensor]],
    dilation: int,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> Tensor:
    """BAM's spatial branch, eq. 4: BN(f3 relu f2 relu f1 relu f0 F): x [B, C, H, W] -> [B, 1, H, W].

    `convolutions` holds weight and bias of f0 (1x1, C -> m), f1 and f2 (3x3 dilated, m -> m), f3 (1x1, m ->
    1).
    """
    f0, f1, f2, f3 = convolutions
    y = torch.relu(convolution_1x1(x, *f0))  # [B, m, H, W]
    y = torch.relu(convolution_3x3(y, *f1, dilation))  # [B, m, H, W]
    y = torch.relu(convolution_3x3(y, *f2, dilation))  # [B, m, H, W]
    return batch_norm(convolution_1x1(y, *f3), gamma, beta, mean, var)  # [B, 1, H, W]


def gate(x: Tensor, c: Tensor | None, p: Tensor | None, combine: str = "sum") -> Tensor:
    """BAM's eq. 1 and 2, F + F*sigmoid(Mc + Ms), or with their product or maximum (Table 1).

    x [B, C, H, W], c [B, C] or None, p [B, 1, H, W] or None -> [B, C, H, W].
    """
    B, C, H, W = x.shape
    combines: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sum": torch.add,
        "prod": torch.mul,
        "max": torch.maximum,
    }
    parts = []
    if c is not None:
        parts.append(c[:, :, None, None].expand(B, C, H, W))  # [B, C, H, W]
    if p is not None:
        parts.append(p.expand(B, C, H, W))  # [B, C, H, W]
    logits = parts[0] if len(parts) == 1 else combines[combine](*parts)  # [B, C, H, W]
    return x + x / (1 + torch.exp(-logits))  # [B, C, H, W]


def squeeze_excite(
    x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor | None = None, b1: Tensor | None = None
) -> Tensor:
    """x * sigmoid(W1 relu(W0 mean(x))), arXiv 1709.01507; x [B, C, H, W], w0 [m, C, 1, 1], w1 [C, m, 1, 1]"""
    pooled = x.mean(dim=(2, 3), keepdim=True)  # [B, C, 1, 1]
    hidden = torch.relu(convolution_1x1(pooled, w0, b0))  # [B, m, 1, 1]
    return x * torch.sigmoid(convolution_1x1(hidden, w1, b1))  # [B, C, H, W]


def non_local(
    x: Tensor,
    theta: Tensor,
    phi: Tensor,
    out: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    value: Tensor | None = None,
) -> Tensor:
    """x + BN(W softmax(theta phi^T / sqrt(C/2)) x), the block of BoTNet's Table 8 (arXiv 1711.07971).

    x [B, C, H, W], theta and phi [C/2, C, 1, 1], out [C, C, 1, 1] -> [B, C, H, W]. With `value`
    [C/2, C, 1, 1] its projection of x is averaged in place of x (BoTNet A.5), and out is [C, C/2, 1, 1].
    """
    q = convolution_1x1(x, theta).flatten(2)  # [B, C/2, N]
    k = convolution_1x1(x, phi).flatten(2)  # [B, C/2, N]
    logits = torch.einsum("bcn,bcm->bnm", q, k) / q.shape[1] ** 0.5  # [B, N, N]
    weights = torch.softmax(logits, dim=-1)  # [B, N, N]
    v = x if value is None else convolution_1x1(x, value)  # [B, C or C/2, H, W]
    y = torch.einsum("bnm,bcm->bcn", weights, v.flatten(2)).view_as(v)  # [B, C or C/2, H, W]
    return x + batch_norm(convolution_1x1(y, out), gamma, beta, mean, var)  # [B, C, H, W]
