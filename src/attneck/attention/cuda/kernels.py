"""Triton kernels of `relative_attention_2d`: forward, gradients of the queries, gradients of keys and values.

Letters: B batch, h heads, d head width (HEAD; D is the power of two that holds it), H x W map, N = H*W
tokens in row-major order. A program owns M queries, or one patch of keys, of one head. Keys come in *patches*
of PH rows x PW columns of the map, both powers of two: one row of keys (PH = 1), or a few short ones.

The bias of query m towards key (y, x) is rows[m, y] + columns[m, x]. A patch therefore needs PH + PW numbers
a query and not PH*PW: `columns` is read once for all patches below each other, `rows` is PH numbers a step,
and their gradients are sums along the other side of the patch inside one program. Nothing is gathered and
nothing is added atomically: the same bits every time. Logits are in base 2, where the exponential is one
instruction; `lse` is the logarithm to base 2 of each query's sum of exponentials.

A bias lies at base + b*bias_b + head*bias_h + m*bias_m + key*bias_key, for the key's row (column) of the map.
With SKEW, a query's entries are ordered by offset: the query's own row (column) is subtracted from the key's,
so the product with the tables is read as it is.
"""
# mypy: disable-error-code="no-untyped-def,import-untyped"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(base, n, stride, valid, HEAD: tl.constexpr, D: tl.constexpr):
    """Tokens n of [N, d], zeros where not valid and beyond d: [len(n), D]."""
    c = tl.arange(0, D)
    mask = valid[:, None] & (c < HEAD)[None, :] if HEAD < D else valid[:, None]
    return tl.load(base + n[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _store(base, n, stride, valid, tokens, HEAD: tl.constexpr, D: tl.constexpr):
    """The reverse of `_load`, in the dtype of the memory."""
    c = tl.arange(0, D)
    mask = valid[:, None] & (c < HEAD)[None, :] if HEAD < D else valid[:, None]
    tl.store(base + n[:, None] * stride + c[None, :], tokens.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _bias(queries, valid, key, length, bias_key):
    """Bias of each query (pointers) towards key rows or columns `key`, -inf off the map: [M, len(key)]."""
    inside = (key < length)[None, :]
    pointers = queries[:, None] + key[None, :] * bias_key
    bias = tl.load(pointers, mask=valid[:, None] & inside, other=0.0).to(tl.float32) * LOG2E
    return tl.where(inside, bias, float("-inf"))


@triton.jit
def _patch(y, x, H, W, PH: tl.constexpr, PW: tl.constexpr):
    """The tokens of a patch whose first row and column are y and x, and which of them are on the map."""
    i = tl.arange(0, PH * PW)
    row, column = y + i // PW, x + i % PW
    return row * W + column, (row < H) & (column < W)


@triton.jit
def forward(
    q_ptr, k_ptr, v_ptr, rows_ptr, columns_ptr, out_ptr, lse_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, bias_m, bias_key, out_b, out_h, out_n,
    heads, H, W,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    SKEW: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries over all keys, by an online softmax: `out` and `lse`. k None leaves the content term out."""
    N = H * W
    m = tl.program_id(0) * M + tl.arange(0, M)
    valid = m < N
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    bias = b * bias_b + head * bias_h + m * bias_m
    rows_m = rows_ptr + bias - SKEW * (m // W) * bias_key
    columns_m = columns_ptr + bias - SKEW * (m % W) * bias_key
    if k_ptr is not None:
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D)  # [M, D]
    largest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    mean = tl.zeros((M, D), tl.float32)
    for x in range(0, W, PW):
        columns = _bias(columns_m, valid, x + tl.arange(0, PW), W, bias_key)  # [M, PW]
        for y in range(0, H, PH):
            rows = _bias(rows_m, valid, y + tl.arange(0, PH), H, bias_key)  # [M, PH]
            n, inside = _patch(y, x, H, W, PH, PW)
            logits = rows[:, :, None] + columns[:, None, :]  # [M, PH, PW]
            if k_ptr is not None:
                k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D)  # [PH*PW, D]
                content = tl.dot(q, tl.trans(k), input_precision=DOT) * LOG2E
                logits += tl.reshape(content, (M, PH, PW))
            logits = tl.reshape(logits, (M, PH * PW))
            larger = tl.maximum(largest, tl.max(logits, 1))
            weights = tl.exp2(logits - larger[:, None])  # [M, PH*PW]
            decay = tl.exp2(largest - larger)
            total = total * decay + tl.sum(weights, 1)
            v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D)  # [PH*PW, D]
            mean = tl.dot(weights.to(v.dtype), v, mean * decay[:, None], input_precision=DOT)
            largest = larger
    _store(out_ptr + b * out_b + head * out_h, m, out_n, valid, mean / total[:, None], HEAD, D)
    tl.store(lse_ptr + (b * heads + head) * N + m, largest + tl.log2(total), mask=valid)


@triton.jit
def backward_queries(
    q_ptr, k_ptr, v_ptr, rows_ptr, columns_ptr, out_ptr, lse_ptr,
    d_out_ptr, d_q_ptr, d_rows_ptr, d_columns_ptr, delta_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, bias_m, bias_key, out_b, out_h, out_n,
    d_out_b, d_out_h, d_out_n,
    heads, H, W,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    SKEW: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """M queries over all keys: d_q by the content term (laid as `out`), the gradient of the bias (laid as the
    bias, float32), and delta = sum(out * d_out) [B, h, N], which `backward_keys` reads."""
    N = H * W
    m = tl.program_id(0) * M + tl.arange(0, M)
    valid = m < N
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    bias = b * bias_b + head * bias_h + m * bias_m
    rows_at, columns_at = bias - SKEW * (m // W) * bias_key, bias - SKEW * (m % W) * bias_key
    d_out = _load(d_out_ptr + b * d_out_b + head * d_out_h, m, d_out_n, valid, HEAD, D)  # [M, D]
    out = _load(out_ptr + b * out_b + head * out_h, m, out_n, valid, HEAD, D)  # [M, D]
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)  # [M]
    tl.store(delta_ptr + (b * heads + head) * N + m, delta, mask=valid)
    lse = tl.load(lse_ptr + (b * heads + head) * N + m, mask=valid, other=0.0)  # [M]
    if k_ptr is not None:
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D)  # [M, D]
        d_q = tl.zeros((M, D), tl.float32)
    for x in range(0, W, PW):
        column = x + tl.arange(0, PW)
        columns = _bias(columns_ptr + columns_at, valid, column, W, bias_key)  # [M, PW]
        columns -= lse[:, None]
        d_columns = tl.zeros((M, PW), tl.float32)
        for y in range(0, H, PH):
            row = y + tl.arange(0, PH)
            rows = _bias(rows_ptr + rows_at, valid, row, H, bias_key)  # [M, PH]
            n, inside = _patch(y, x, H, W, PH, PW)
            logits = rows[:, :, None] + columns[:, None, :]  # [M, PH, PW]
            if k_ptr is not None:
                k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D)  # [PH*PW, D]
                content = tl.dot(q, tl.trans(k), input_precision=DOT) * LOG2E
                logits += tl.reshape(content, (M, PH, PW))
            v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D)  # [PH*PW, D]
            d_weights = tl.dot(d_out, tl.trans(v), input_precision=DOT) - delta[:, None]
            d_logits = tl.exp2(logits) * tl.reshape(d_weights, (M, PH, PW))  # [M, PH, PW]
            d_columns += tl.sum(d_logits, 1)
            # Patches beside each other share their rows: the same program adds to what it wrote before.
            pointers = d_rows_ptr + rows_at[:, None] + row[None, :] * bias_key
            mask = valid[:, None] & (row < H)[None, :]
            earlier = tl.load(pointers, mask=mask & (x > 0), other=0.0)
            tl.store(pointers, earlier + tl.sum(d_logits, 2), mask=mask)
            if k_ptr is not None:
                d_logits = tl.reshape(d_logits, (M, PH * PW)).to(k.dtype)
                d_q = tl.dot(d_logits, k, d_q, input_precision=DOT)
        pointers = d_columns_ptr + columns_at[:, None] + column[None, :] * bias_key
        tl.store(pointers, d_columns, mask=valid[:, None] & (column < W)[None, :])
        tl.debug_barrier()  # d_rows is read by other threads of the program than wrote it
    if k_ptr is not None:
        _store(d_q_ptr + b * out_b + head * out_h, m, out_n, valid, d_q, HEAD, D)


@triton.jit
def backward_keys(
    q_ptr, k_ptr, v_ptr, rows_ptr, columns_ptr, lse_ptr, delta_ptr, d_out_ptr, d_k_ptr, d_v_ptr,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, bias_m, bias_key, out_b, out_h, out_n,
    d_out_b, d_out_h, d_out_n,
    heads, H, W,
    HEAD: tl.constexpr, D: tl.constexpr, M: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    SKEW: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One patch of keys under all queries, M at a time: d_k and d_v, laid as `out`. Keys lead every product:
    what is summed over the queries then needs no transposition."""
    N = H * W
    wide = tl.cdiv(W, PW)
    y, x = (tl.program_id(0) // wide) * PH, (tl.program_id(0) % wide) * PW
    b, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    n, inside = _patch(y, x, H, W, PH, PW)
    row, column = y + tl.arange(0, PH), x + tl.arange(0, PW)
    bias = b * bias_b + head * bias_h
    v = _load(v_ptr + b * v_b + head * v_h, n, v_n, inside, HEAD, D)  # [PH*PW, D]
    d_v = tl.zeros((PH * PW, D), tl.float32)
    if k_ptr is not None:
        k = _load(k_ptr + b * k_b + head * k_h, n, k_n, inside, HEAD, D)  # [PH*PW, D]
        d_k = tl.zeros((PH * PW, D), tl.float32)
    for start in range(0, N, M):
        m = start + tl.arange(0, M)
        valid = m < N
        at = bias + m * bias_m
        rows_m = rows_ptr + at - SKEW * (m // W) * bias_key
        columns_m = columns_ptr + at - SKEW * (m % W) * bias_key
        lse = tl.load(lse_ptr + (b * heads + head) * N + m, mask=valid, other=0.0)  # [M]
        delta = tl.load(delta_ptr + (b * heads + head) * N + m, mask=valid, other=0.0)  # [M]
        rows = tl.trans(_bias(rows_m, valid, row, H, bias_key))  # [PH, M]
        columns = tl.trans(_bias(columns_m, valid, column, W, bias_key)) - lse[None, :]  # [PW, M]
        logits = rows[:, None, :] + columns[None, :, :]  # [PH, PW, M]
        q = _load(q_ptr + b * q_b + head * q_h, m, q_n, valid, HEAD, D)  # [M, D]
        if k_ptr is not None:
            content = tl.dot(k, tl.trans(q), input_precision=DOT) * LOG2E
            logits += tl.reshape(content, (PH, PW, M))
        weights = tl.exp2(tl.reshape(logits, (PH * PW, M)))  # [PH*PW, M]
        d_out = _load(d_out_ptr + b * d_out_b + head * d_out_h, m, d_out_n, valid, HEAD, D)  # [M, D]
        d_v = tl.dot(weights.to(d_out.dtype), d_out, d_v, input_precision=DOT)
        if k_ptr is not None:
            d_weights = tl.dot(v, tl.trans(d_out), input_precision=DOT) - delta[None, :]
            d_k = tl.dot((weights * d_weights).to(q.dtype), q, d_k, input_precision=DOT)
    _store(d_v_ptr + b * out_b + head * out_h, n, out_n, inside, d_v, HEAD, D)
    if k_ptr is not None:
        _store(d_k_ptr + b * out_b + head * out_h, n, out_n, inside, d_k, HEAD, D)
