"""Triton kernels of `relative_attention_2d`: forward, gradients of the queries, gradients of keys and values.

Letters: B batch, h heads, d head width (HEAD; D is the power of two that holds it), H x W map, N = H*W
tokens in row-major order, L = 2H-1 + 2W-1. A program owns M queries, or one patch of keys, of one head. Keys
come in *patches* of PH rows x PW columns of the map, both powers of two: one row of keys (PH = 1), or a few
short ones. EVEN says that nothing hangs over the map's edge, so that nothing needs a mask.

The bias of a query towards key (y, x) is rows[y] + columns[x]. A patch therefore needs PH + PW numbers a
query and not PH*PW: `columns` is read once for all patches below each other, `rows` is PH numbers a step,
and their gradients are sums along the other side of the patch inside one program. Both are read from `x`, the
product of the queries with the tables, [h, B, N, L], where a query's entries are ordered by offset: it
begins at its own row (column). `backward_queries` writes them down by position for `backward_keys`, which
adds them by a product with a patch's 0 and 1: what is spread over the tile then needs no layout of its own.
Nothing is gathered and nothing is added atomically: the same bits every time. Logits are in base 2, where
the exponential is one instruction; `lse` is the logarithm to base 2 of each query's sum of exponentials.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(base, n, stride, valid, HEAD: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr = False):
    """Tokens n of [N, d], zeros where not valid and beyond d: [len(n), D]."""
    c = tl.arange(0, D)
    pointers = base + n[:, None] * stride + c[None, :]
    if EVEN and HEAD == D:
        return tl.load(pointers)
    mask = valid[:, None] & (c < HEAD)[None, :] if HEAD < D else valid[:, None]
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _store(base, n, stride, valid, tokens, HEAD: tl.constexpr, D: tl.constexpr):
    """The reverse of `_load`, in the dtype of the memory."""
    c = tl.arange(0, D)
    mask = valid[:, None] & (c < HEAD)[None, :] if HEAD < D else valid[:, None]
    tl.store(base + n[:, None] * stride + c[None, :], tokens.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _bias(queries, valid, key, stride, length, EVEN: tl.constexpr):
    """Bias in base 2 of queries (pointers) towards key rows or columns, -inf off the map: [M, len(key)]."""
    inside = (key < length)[None, :]
    bias = tl.load(queries[:, None] + key[None, :] * stride, mask=valid[:, None] & inside, other=0.0)
    bias = bias.to(tl.float32) * LOG2E
    if EVEN:
        return bias
    return tl.where(inside, bias, float("-inf"))


@triton.jit
def _first(m, H, W, minus):
    """Where in a query's entries of x those of the first row and of the first column of keys are.

    `minus` is -1, and known at run time alone: Triton 3.6 takes a difference to be as divisible as its first
    number, would read two entries at once, and address an odd one (test_compile_ahead.py).
    """
    return (m // W) * minus + H - 1, (m % W) * minus + 2 * H + W - 2


@triton.jit
def _by_position(queries, valid, bias, N, length):
    """Write down each query's entries for all key rows or columns: [length, N]."""
    for start in range(0, length, 16):
        key = start + tl.arange(0, 16)
        mask = valid[:, None] & (key < length)[None, :]
        entries = tl.load(queries[:, None] + key[None, :], mask=mask, other=0.0)
        tl.store(bias[:, None] + key[None, :] * N, entries, mask=mask)


@triton.jit
def _by_offset(positions, valid, stride, own, queries, length):
    """Write down by offset what each query, whose own row or column is given, has by position."""
    for start in range(0, 2 * length - 1, 16):
        offset = start + tl.arange(0, 16)
        key = offset[None, :] - (length - 1) + own[:, None]  # [M, 16]
        mask = valid[:, None] & (key >= 0) & (key < length)
        entries = tl.load(positions[:, None] + key * stride, mask=mask, other=0.0)
        pointers = queries[:, None] + offset[None, :]
        mask = valid[:, None] & (offset < 2 * length - 1)[None, :]
        tl.store(pointers, entries.to(queries.dtype.element_ty), mask=mask)


@triton.jit
def _patch(y, x, H, W, PH: tl.constexpr, PW: tl.constexpr):
    """The tokens of a patch whose first row and column are y and x, and which of them are on the map."""
    i = tl.arange(0, PH * PW)
    row, column = y + i // PW, x + i % PW
    return row * W + column, (row < H) & (column < W)


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, x_ptr, out_ptr, lse_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n,
    heads, H, W, N, minus,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    EVEN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries over all keys, by an online softmax: `out` and `lse`. k None leaves the content term out."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    valid = m < N
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    x_m = x_ptr + ((head * (tl.num_programs(1) // heads) + b) * N + m) * (2 * (H + W) - 2)
    first_row, first_column = _first(m, H, W, minus)
    rows_m, columns_m = x_m + first_row, x_m + first_column
    if k_ptr is not None:
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D)  # [M, D]
    largest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, D), tl.float32)
    for x in range(0, W, PW):
        column = x + tl.arange(0, PW)
        columns = _bias(columns_m, valid, column, 1, W, EVEN)  # [M, PW]
        for y in range(0, H, PH):
            n, inside = _patch(y, x, H, W, PH, PW)
            if PH == 1:  # one number a query: it needs no place in the tile
                logits = columns
                shift = tl.load(rows_m + y, mask=valid, other=0.0).to(tl.float32) * LOG2E  # [M]
            else:
                row = y + tl.arange(0, PH)
                rows = _bias(rows_m, valid, row, 1, H, EVEN)  # [M, PH]
                logits = tl.reshape(rows[:, :, None] + columns[:, None, :], (M, PH * PW))
                shift = tl.zeros((M,), tl.float32)
            if k_ptr is not None:
                k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D, EVEN)  # [PH*PW, D]
                logits += tl.dot(q, tl.trans(k), input_precision=DOT) * LOG2E  # [M, PH*PW]
            larger = tl.maximum(largest, tl.max(logits, 1) + shift)
            weights = tl.exp2(logits + (shift - larger)[:, None])  # [M, PH*PW]
            decay = tl.exp2(largest - larger)
            total = total * decay + tl.sum(weights, 1)
            v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D, EVEN)  # [PH*PW, D]
            mean = tl.dot(weights.to(v.dtype), v, mean * decay[:, None], input_precision=DOT)
            largest = larger
    _store(out_ptr + b * out_b + head * out_h, m, out_n, valid, mean / total[:, None], HEAD, D)
    tl.store(lse_ptr + (b * heads + head) * N + m, largest + tl.log2(total), mask=valid)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, x_ptr, out_ptr, lse_ptr, d_out_ptr,
    d_q_ptr, d_x_ptr, d_rows_ptr, d_columns_ptr, bias_ptr, delta_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n, d_out_b, d_out_h, d_out_n,
    heads, H, W, N, minus,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    EVEN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries over all keys: d_q by the content term (laid as `out`), and d_x (laid as x).

    For `backward_keys`: the bias by position, [B, h, H+W, N], and delta = sum(out * d_out), [B, h, N].
    The gradient of the bias by position is summed in float32: d_rows [B, h, H, N], d_columns [B, h, N, W].
    """
    m = tl.program_id(0) * M + tl.arange(0, M)
    valid = m < N
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    bh = b * heads + head
    x_at = ((head * (tl.num_programs(1) // heads) + b) * N + m) * (2 * (H + W) - 2)
    rows_m, d_rows_m = bias_ptr + bh * (H + W) * N + m, d_rows_ptr + bh * H * N + m
    columns_m, d_columns_m = rows_m + H * N, d_columns_ptr + (bh * N + m) * W
    first_row, first_column = _first(m, H, W, minus)
    _by_position(x_ptr + x_at + first_row, valid, rows_m, N, H)
    _by_position(x_ptr + x_at + first_column, valid, columns_m, N, W)
    tl.debug_barrier()  # what a program reads again, other threads of it wrote
    d_out = _load(d_out_ptr + b * d_out_b + head * d_out_h, m, d_out_n, valid, HEAD, D)  # [M, D]
    out = _load(out_ptr + b * out_b + head * out_h, m, out_n, valid, HEAD, D)  # [M, D]
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)  # [M]
    tl.store(delta_ptr + bh * N + m, delta, mask=valid)
    lse = tl.load(lse_ptr + bh * N + m, mask=valid, other=0.0)  # [M]
    if k_ptr is not None:
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D)  # [M, D]
        d_q = tl.zeros((M, D), tl.float32)
    for x in range(0, W, PW):
        column = x + tl.arange(0, PW)
        mask = valid[:, None] & (column < W)[None, :]
        columns = _bias(columns_m, valid, column, N, W, EVEN) - lse[:, None]
        d_columns = tl.zeros((M, PW), tl.float32)
        for y in range(0, H, PH):
            n, inside = _patch(y, x, H, W, PH, PW)
            if PH == 1:
                rows = tl.load(rows_m + y * N, mask=valid, other=0.0).to(tl.float32) * LOG2E  # [M]
                logits = columns + rows[:, None]
            else:
                row = y + tl.arange(0, PH)
                rows = _bias(rows_m, valid, row, N, H, EVEN)  # [M, PH]
                logits = tl.reshape(rows[:, :, None] + columns[:, None, :], (M, PH * PW))
            if k_ptr is not None:
                k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D, EVEN)  # [PH*PW, D]
                logits += tl.dot(q, tl.trans(k), input_precision=DOT) * LOG2E  # [M, PH*PW]
            v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D, EVEN)  # [PH*PW, D]
            d_weights = tl.dot(d_out, tl.trans(v), input_precision=DOT) - delta[:, None]
            d_logits = tl.exp2(logits) * d_weights  # [M, PH*PW]
            # Patches beside each other share their rows: the same program adds to what it wrote before.
            if PH == 1:
                d_columns += d_logits
                pointers = d_rows_m + y * N
                earlier = tl.load(pointers, mask=valid & (x > 0), other=0.0)
                tl.store(pointers, earlier + tl.sum(d_logits, 1), mask=valid)
            else:
                apart = tl.reshape(d_logits, (M, PH, PW))
                d_columns += tl.sum(apart, 1)
                pointers, mask_rows = (
                    d_rows_m[:, None] + row[None, :] * N,
                    valid[:, None] & (row < H)[None, :],
                )
                earlier = tl.load(pointers, mask=mask_rows & (x > 0), other=0.0)
                tl.store(pointers, earlier + tl.sum(apart, 2), mask=mask_rows)
            if k_ptr is not None:
                d_q = tl.dot(d_logits.to(k.dtype), k, d_q, input_precision=DOT)
        tl.store(d_columns_m[:, None] + column[None, :], d_columns, mask=mask)
        tl.debug_barrier()
    _by_offset(d_rows_m, valid, N, m // W, d_x_ptr + x_at, H)
    _by_offset(d_columns_m, valid, 1, m % W, d_x_ptr + x_at + 2 * H - 1, W)
    if k_ptr is not None:
        _store(d_q_ptr + b * out_b + head * out_h, m, out_n, valid, d_q, HEAD, D)


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, bias_ptr, lse_ptr, delta_ptr, d_out_ptr, d_k_ptr, d_v_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, out_b, out_h, out_n, d_out_b, d_out_h, d_out_n,
    heads, H, W, N,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    EVEN: tl.constexpr, DOT: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """One patch of keys under all queries, M at a time: d_k and d_v, laid as `out`. Keys lead every product:
    what is summed over the queries then needs no transposition.

    E, a power of two that the matrix units take, holds the PH + PW entries of a patch's bias.
    """
    wide = tl.cdiv(W, PW)
    y, x = (tl.program_id(0) // wide) * PH, (tl.program_id(0) % wide) * PW
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    bh = b * heads + head
    n, inside = _patch(y, x, H, W, PH, PW)
    v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D)  # [PH*PW, D]
    d_v = tl.zeros((PH * PW, D), tl.float32)
    if k_ptr is not None:
        k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D)  # [PH*PW, D]
        d_k = tl.zeros((PH * PW, D), tl.float32)
    e, i = tl.arange(0, E), tl.arange(0, PH * PW)
    of_row, of_column = e < PH, (e >= PH) & (e < PH + PW)
    own = tl.where(of_row[None, :], (i // PW)[:, None], (i % PW)[:, None] + PH)
    chosen = (own == e[None, :]).to(v.dtype)  # [PH*PW, E]: 1 at a key's row and at its column
    there = (of_row & (y + e < H)) | (of_column & (x + e - PH < W))
    bias_e = bias_ptr + (bh * (H + W) + tl.where(of_row, y + e, H + x + e - PH)) * N
    for start in range(0, N, M):
        m = start + tl.arange(0, M)
        valid = m < N
        lse = tl.load(lse_ptr + bh * N + m, mask=valid, other=0.0)  # [M]
        delta = tl.load(delta_ptr + bh * N + m, mask=valid, other=0.0)  # [M]
        bias = tl.load(
            bias_e[:, None] + m[None, :], mask=there[:, None] & valid[None, :], other=0.0
        )  # [E, M]
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D, EVEN)  # [M, D]
        if k_ptr is not None:  # first: added to the bias, each of its d numbers would be rounded with that
            logits = tl.dot(k, tl.trans(q), input_precision=DOT)  # [PH*PW, M]
            logits = tl.dot(chosen, bias, logits, input_precision=DOT)
        else:
            logits = tl.dot(chosen, bias, input_precision=DOT)
        weights = tl.exp2(logits * LOG2E - lse[None, :])  # [PH*PW, M]
        d_out = _load(d_out_ptr + b * d_out_b + head * d_out_h, m, d_out_n, valid, HEAD, D, EVEN)  # [M, D]
        d_v = tl.dot(weights.to(d_out.dtype), d_out, d_v, input_precision=DOT)
        if k_ptr is not None:
            d_weights = tl.dot(v, tl.trans(d_out), input_precision=DOT) - delta[None, :]
            d_k = tl.dot((weights * d_weights).to(q.dtype), q, d_k, input_precision=DOT)
    _store(d_v_ptr + b * out_b + head * out_h, n, out_n, inside, d_v, HEAD, D)
    if k_ptr is not None:
        _store(d_k_ptr + b * out_b + head * out_h, n, out_n, inside, d_k, HEAD, D)
