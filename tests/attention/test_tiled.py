"""`tiled` against the oracle: tiles of every kind, dtypes, head widths, and memory that grows as the map."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attneck.attention import plain, reference, relative_attention_2d, tiled

TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def problem(B: int, h: int, d: int, map_size: tuple[int, int]) -> list[Tensor]:
    """q (scaled), k, v, rel_h, rel_w in float64, logits of order one."""
    H, W = map_size
    q, k, v = torch.randn(3, B, h, H * W, d, dtype=torch.float64).unbind()
    tables = [torch.randn(2 * side - 1, d, dtype=torch.float64) for side in (H, W)]
    return [q * d**-0.5, k, v, *tables]


def results(
    tensors: list[Tensor], map_size: tuple[int, int], pool: bool, content: bool, way: str
) -> list[Tensor]:
    """The output, then the gradients of all that takes part."""
    q, k, v, rel_h, rel_w = leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    if way == "reference":
        out = reference.relative_attention_2d(q, k, v, rel_h, rel_w, map_size, pool, content)
    else:
        out = relative_attention_2d(q, k if content else None, v, rel_h, rel_w, map_size, pool, way)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = [leaf for leaf in leaves if content or leaf is not k]
    return [out.detach(), *torch.autograd.grad(out, used, direction.to(out.dtype))]


def assert_right(
    tensors: list[Tensor],
    map_size: tuple[int, int],
    dtype: torch.dtype,
    pool: bool = False,
    content: bool = True,
) -> None:
    """Norm of the error, over the norm of what the oracle says of these numbers, within the tolerance."""
    given = [tensor.to(dtype) for tensor in tensors]
    exact = results([tensor.double() for tensor in given], map_size, pool, content, "reference")
    for one, right in zip(results(given, map_size, pool, content, "tiled"), exact, strict=True):
        assert one.dtype == dtype
        assert one.shape == right.shape
        assert (one.double() - right).norm() <= TOLERANCE[dtype] * right.norm() + 1e-12, (map_size, dtype)


@pytest.mark.parametrize("logits", [1, 700, 1 << 24], ids=["rows", "several rows", "several heads"])
def test_tiles_of_every_kind_are_the_oracle_s(logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiled, "LOGITS", logits)
    for map_size in [(1, 1), (1, 6), (6, 1), (5, 8), (7, 7)]:
        tensors = problem(2, 3, 4, map_size)
        for pool, content in ((False, True), (True, True), (True, False)):
            assert_right(tensors, map_size, torch.float64, pool, content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [16, 24, 128, 256])
def test_every_dtype_and_head_width(d: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiled, "LOGITS", 2000)
    assert_right(problem(1, 2, d, (9, 6)), (9, 6), dtype, pool=d == 24)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("way", ["plain", "cpu", "tiled", "sdpa"])
def test_a_batch_of_none(way: str, pool: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(0, 2, 4, (3, 5))]
    out = relative_attention_2d(*tensors, (3, 5), pool, way)
    assert out.shape == (0, 2, 6 if pool else 15, 4)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert [one.shape for one in gradients] == [one.shape for one in tensors]
    assert not any(one.any() for one in gradients)


class Peak(TorchDispatchMode):
    """The most bytes that the results of operators have held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self._hold(one.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if size and key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def peaks(H: int, W: int) -> tuple[int, int, int]:
    """Bytes on a map: kept for the backward pass, the peak of both passes, and plain's of one."""
    given = [tensor.float() for tensor in problem(1, 2, 16, (H, W))]
    q, k, v, rel_h, rel_w = given
    table = torch.cat((rel_h, rel_w))
    kept: list[int] = []

    def keep(one: Tensor) -> Tensor:
        kept.append(one.nbytes)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        results(given, (H, W), False, True, "tiled")
    # A mode does not see inside an operator, so the functions that it calls are run themselves.
    with torch.no_grad(), Peak() as peak:
        out = tiled._attend._init_fn(q, k, v, table, H, W)
        tiled._attend_backward._init_fn(out, q, k, v, table, H, W)
    with torch.no_grad(), Peak() as quadratic:
        plain.plain_attention_2d(q, k, v, rel_h, rel_w, (H, W), False)
    return sum(kept), peak.most, quadratic.most


@pytest.mark.parametrize(("small", "large"), [((16, 16), (32, 32)), ((256, 1), (1024, 1))])
def test_memory_grows_with_the_map_and_not_with_its_square(
    small: tuple[int, int], large: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times the positions; a wide map is computed as a high one."""
    monkeypatch.setattr(tiled, "LOGITS", 1 << 14)
    (kept, peak, plain_peak), (kept_4, peak_4, plain_peak_4) = peaks(*small), peaks(*large)
    assert kept_4 < 4.5 * kept
    assert peak_4 < 4.5 * peak
    assert peak_4 < 32**4 * 2 * 4 / 3  # a third of the logits alone
    assert plain_peak_4 > 12 * plain_peak  # the meter works


def test_autocast_s_dtype_is_the_product_s_and_float64_stays() -> None:
    torch.manual_seed(0)
    tensors = problem(1, 1, 8, (3, 4))
    half = [tensor.float() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        out = relative_attention_2d(*half, (3, 4), backend="tiled")
        exact = relative_attention_2d(*tensors, (3, 4), backend="tiled")
    assert out.dtype == torch.bfloat16
    want = reference.relative_attention_2d(*tensors, (3, 4))
    torch.testing.assert_close(out.double(), want, rtol=0, atol=0.05)
    torch.testing.assert_close(exact, want, rtol=1e-12, atol=1e-12)


def test_the_op_is_registered_as_torch_wants_it() -> None:
    torch.manual_seed(0)
    q, k, v, rel_h, rel_w = (tensor.requires_grad_() for tensor in problem(1, 2, 3, (2, 3)))
    table = torch.cat((rel_h, rel_w)).detach().requires_grad_()
    torch.library.opcheck(tiled._attend, (q, k, v, table, 2, 3))
