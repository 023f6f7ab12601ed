"""The CUDA backends against the oracle: the Triton kernels in Triton's interpreter, SDPA as it runs here.

The interpreter is chosen when triton is first imported, so its cases run in a process of their own: this file
is also a program, `TRITON_INTERPRET=1 python tests/attention/cuda/test_cuda.py CASE...`, which prints the
errors as JSON. The interpreter has no products of bfloat16; float16 takes the same path through the kernels.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from attneck.attention import reference, relative_attention_2d, selfcheck, tiled
from attneck.attention.cuda import sdpa
from attneck.attention.cuda import triton as cuda
from attneck.attention.operands import rows_whole
from attneck.attention.tiled import tiled_attention_2d

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Norm of the error over the norm of the oracle's."""


@dataclass(frozen=True)
class Case:
    """One call with its gradients. `strided`: q, k, v are the three thirds of one product's tokens."""

    map_size: tuple[int, int]
    d: int = 16
    B: int = 1
    h: int = 1
    dtype: str = "float32"
    content: bool = True
    pool: bool = False
    strided: bool = False
    scale: float = 1.0

    def __str__(self) -> str:
        flags = [name for name in ("pool", "strided") if getattr(self, name)]
        flags += [] if self.content else ["positions_alone"]
        flags += [] if self.scale == 1 else [f"logits_x{self.scale:g}"]
        H, W = self.map_size
        return "-".join([f"{H}x{W}", f"B{self.B}h{self.h}d{self.d}", self.dtype, *flags])

    @property
    def tolerance(self) -> float:
        return TOLERANCE[getattr(torch, self.dtype)]


# Small maps pass through every branch: patches over the edge of the map on both sides (5x9), on one, more
# patches than one beside and below each other, more blocks of queries than one, d below its power of two.
FAST = [
    Case((5, 9), d=8, B=2, h=2),
    Case((5, 9), d=8, content=False, pool=True),
    Case((7, 7), d=16, h=2, strided=True, pool=True),
    Case((7, 7), d=24, dtype="float16"),
    Case((6, 20), d=16, dtype="float16"),
    Case((3, 34), d=16),
    Case((3, 4), d=256, dtype="float16"),
]
# With the patches of the papers' larger maps, several each way: 32 wide as 64 and 80, which a GPU runs below,
# and 24 as 40. The interpreter's time grows with the square of a map, so each map comes once.
SLOW = [
    *(Case(map_size, d=16) for map_size in [(20, 20), (16, 32)]),
    *(Case(map_size, d=16, dtype="float16", pool=True) for map_size in [(14, 14), (24, 24)]),
    Case((14, 14), d=128, h=2, strided=True, pool=True),
    Case((15, 15), d=64, content=False, pool=True),
    Case((7, 7), B=2, h=3, content=False),
    Case((16, 24), d=16, dtype="float16"),
]
FAR_OUT = [Case((7, 7), dtype=dtype, scale=3e3) for dtype in ("float32", "float16")]


def problem(case: Case, device: str = "cpu") -> list[Tensor]:
    """q (scaled), k, v, rel_h, rel_w with numbers of the case's dtype."""
    B, h, d, (H, W) = case.B, case.h, case.d, case.map_size
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, H * W, 3, h, d, generator=generator)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B, h, N, d], as a layer has them from one product
    tables = [torch.randn(2 * L - 1, d, generator=generator) for L in (H, W)]
    tensors = [q * (d**-0.5 * case.scale), k, v, *tables]
    tensors = [tensor.to(device, getattr(torch, case.dtype)) for tensor in tensors]
    return tensors if case.strided else [tensor.contiguous() for tensor in tensors]


def results(attend: Callable[..., Tensor], tensors: list[Tensor], case: Case) -> list[Tensor]:
    """The output, then the gradients of all that takes part, for a fixed random direction of the output."""
    q, k, v, rel_h, rel_w = leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    if attend is reference.relative_attention_2d:
        out = attend(q, k, v, rel_h, rel_w, case.map_size, case.pool, case.content)
    else:
        out = attend(q, k if case.content else None, v, rel_h, rel_w, case.map_size, case.pool)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    used = [leaf for leaf in leaves if case.content or leaf is not k]
    return [out.detach(), *torch.autograd.grad(out, used, direction.to(out))]


def errors(attend: Callable[..., Tensor], case: Case, device: str = "cpu") -> list[float]:
    """Norm of the error over the norm of the oracle's, for the result and each gradient; NaN stays NaN."""
    tensors = problem(case, device)
    oracle = reference.relative_attention_2d if device == "cpu" else plain
    exact = results(oracle, [tensor.double() for tensor in tensors], case)
    got = results(attend, tensors, case)
    assert [g.shape for g in got] == [e.shape for e in exact]
    return [float((g.double() - e).norm() / e.norm()) for g, e in zip(got, exact, strict=True)]


def plain(*arguments: Any) -> Tensor:
    """The plain backend, which its own tests hold to the oracle: N*N*d of the oracle's is 40 GiB at 80x80."""
    return relative_attention_2d(*arguments, backend="plain")


def interpreted(*arguments: str) -> dict[str, Any]:
    """What this file as a program prints under Triton's interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """All that one such process says: `errors` of the kernels, and how the op is registered."""
    return interpreted(*map(str, [*FAST, *FAR_OUT]), "registration")


def assert_near(found: dict[str, Any], cases: list[Case]) -> None:
    near = {str(case): all(error <= case.tolerance for error in found[str(case)]) for case in cases}
    assert all(near.values()), {name: found[name] for name in near if not near[name]}


def assert_rounded_as_plain(found: list[float], ordinary: list[float], name: str) -> None:
    """Far out the softmax is all but a maximum, and the rounding of logits decides: held to the plain form.

    Logits of 1e4 are 1e-3 off in float32, and what makes the weights again from them takes that twice.
    """
    allowed = [4 * error + 1e-2 for error in ordinary]
    assert all(error <= most for error, most in zip(found, allowed, strict=True)), (name, found, ordinary)


needs_triton = pytest.mark.skipif(not cuda.HAS_TRITON, reason="triton is not installed")


@needs_triton
def test_kernels_in_the_interpreter_are_the_oracle_s(found: dict[str, Any]) -> None:
    assert_near(found, FAST)


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter_are_the_oracle_s_on_larger_maps() -> None:
    assert_near(interpreted(*map(str, SLOW)), SLOW)


@needs_triton
def test_logits_far_out_overflow_nowhere(found: dict[str, Any]) -> None:
    for case in FAR_OUT:
        assert_rounded_as_plain(found[str(case)], errors(plain, case), str(case))


@needs_triton
def test_the_op_is_registered_as_torch_wants_it_and_itself_everywhere(found: dict[str, Any]) -> None:
    assert found["registration"] == ["as torch wants it", "the same elsewhere"]


@pytest.mark.parametrize(
    "case",
    [
        Case((7, 7), d=16, B=2, h=2, strided=True),
        Case((5, 9), d=8, content=False, pool=True),
        Case((14, 14), d=64, pool=True),
        Case((6, 20), d=32, dtype="bfloat16", pool=True),
        Case((32, 32), d=16, dtype="float16"),
        Case((16, 16), d=128, dtype="bfloat16"),
        Case((20, 20), d=40, dtype="bfloat16", content=False),
        Case((5, 6), d=256, dtype="float16"),
    ],
    ids=str,
)
def test_sdpa_with_a_longer_head_is_the_oracle_s(case: Case) -> None:
    found = errors(sdpa.augmented_attention_2d, case)
    assert all(error <= case.tolerance for error in found), found


@pytest.mark.parametrize("dtype", [torch.float64])
def test_sdpa_with_a_longer_head_is_exact(dtype: torch.dtype) -> None:
    case = Case((5, 9), d=8, B=2, h=2, pool=True)
    tensors = [tensor.to(dtype) for tensor in problem(case)]
    got = results(sdpa.augmented_attention_2d, tensors, case)
    want = results(reference.relative_attention_2d, tensors, case)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * float(other.abs().max()))


def test_on_cuda_sdpa_is_pinned_to_fused_kernels_and_says_so_where_none_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case((6, 5), d=8, dtype="bfloat16", pool=True)
    tensors = problem(case)
    want = results(sdpa.augmented_attention_2d, tensors, case)
    enabled: list[bool] = []

    def takes(*_: Tensor) -> bool:
        flags = torch.backends.cuda
        enabled.extend(
            [flags.flash_sdp_enabled(), flags.mem_efficient_sdp_enabled(), flags.math_sdp_enabled()]
        )
        return True

    monkeypatch.setattr(sdpa, "_is_pinned", lambda q: True)
    monkeypatch.setattr(sdpa, "_a_kernel_takes", takes)
    got = results(sdpa.augmented_attention_2d, tensors, case)
    assert enabled == [True, True, False]
    assert torch.backends.cuda.math_sdp_enabled()
    torch._dynamo.reset()
    compiled = torch.compile(sdpa.augmented_attention_2d, fullgraph=True, backend="aot_eager")
    for found in (got, results(lambda *arguments: compiled(*arguments), tensors, case)):
        for one, other in zip(found, want, strict=True):
            torch.testing.assert_close(one, other)
    monkeypatch.setattr(sdpa, "_a_kernel_takes", lambda *_: False)
    with pytest.raises(sdpa.NoFusedKernelError, match=r"^none of .* 32 wide.*backend='tiled'[^\n]*$"):
        sdpa.augmented_attention_2d(*tensors, case.map_size, False)
    assert torch.backends.cuda.math_sdp_enabled()
    monkeypatch.setattr(sdpa, "_a_kernel_takes", lambda *_: time.sleep(0.05) or True)
    with ThreadPoolExecutor(2) as threads:  # the pin is the whole process's
        arguments = (*tensors, case.map_size, case.pool)
        both = [threads.submit(sdpa.augmented_attention_2d, *arguments) for _ in "ab"]
        assert all(torch.equal(one.result(), got[0]) for one in both)
    assert torch.backends.cuda.math_sdp_enabled()
    monkeypatch.undo()
    with FakeTensorMode():
        assert sdpa._is_pinned(torch.empty(1, device="cuda"))
    assert not sdpa._is_pinned(torch.empty(1))


def test_autocast_s_dtype_is_the_product_s() -> None:
    tensors = problem(Case((3, 4), d=8))
    with torch.autocast("cpu", torch.bfloat16):
        assert sdpa.augmented_attention_2d(*tensors, (3, 4), False).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kernel", "map_size", "keys", "wanted"),
    [
        ("forward", (64, 64), 64, (1, 64)),
        ("forward", (80, 80), 64, (4, 16)),
        ("forward", (40, 40), 64, (8, 8)),
        ("forward", (32, 32), 64, (2, 32)),
        ("backward_keys", (64, 64), 64, (8, 8)),
        ("backward_keys", (32, 32), 32, (8, 4)),
    ],
)
def test_patches_cover_the_maps_of_the_papers_with_nothing_left_over(
    kernel: str, map_size: tuple[int, int], keys: int, wanted: tuple[int, int]
) -> None:
    high, wide = cuda.patch(kernel, keys, map_size)
    assert (high, wide) == wanted
    assert map_size[0] % high == map_size[1] % wide == 0


def test_what_cannot_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = problem(Case((3, 4), d=8))
    monkeypatch.setattr(cuda, "HAS_TRITON", True)
    monkeypatch.setattr(cuda, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r'wants tensors on a CUDA device, q is on cpu; pass backend="auto"'):
        cuda.triton_attention_2d(*tensors, (3, 4), False)
    monkeypatch.setattr(cuda, "HAS_TRITON", False)
    with pytest.raises(ImportError, match=r"not installed: pip install triton"):
        cuda.triton_attention_2d(*tensors, (3, 4), False)


def test_the_package_imports_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None; import attneck.attention.cuda.triton as cuda, torch; "
        "assert 'attneck.attention.cuda.kernels' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_32_bits_do_not_count_is_refused_or_laid_anew() -> None:
    many = torch.zeros(1).expand(2**16, 1, 4, 16)  # heads in a grid
    with pytest.raises(ValueError, match='want more: pass backend="tiled"'):
        cuda._attention(many, many, many, torch.zeros(6, 16), 2, 2)
    for step, taken in ((2**31 - 5, True), (2**31 - 4, False)):  # from the first to the last of 4 numbers
        tokens = torch.empty_strided((1, 2, 1, 4), (0, step, 4, 1), device="meta")
        assert (rows_whole(tokens) is tokens) == taken
        assert rows_whole(tokens).is_contiguous() != taken


ON_GPU = [
    Case((n, n), d=d, B=2, h=2, dtype=dtype, pool=pool, strided=True)
    for n, d in ((14, 128), (20, 64), (32, 128), (64, 128))
    for dtype in ("float32", "float16", "bfloat16")
    for pool in (False, True)
]
ON_GPU += [
    Case((5, 9), d=24, B=2, h=2, dtype="bfloat16"),
    Case((15, 15), d=128, content=False, pool=True, dtype="bfloat16"),
    Case((80, 80), d=128, dtype="bfloat16"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", ON_GPU, ids=str)
@pytest.mark.parametrize(
    "attend",
    [cuda.triton_attention_2d, sdpa.augmented_attention_2d, tiled_attention_2d, relative_attention_2d],
)
def test_on_a_gpu_they_are_the_oracle_s(attend: Callable[..., Tensor], case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # no kernel may be left out
        found = errors(attend, case, "cuda")
    # By tiles the logits are rounded too, as in the plain form.
    most = case.tolerance * (4 if attend is tiled_attention_2d or max(case.map_size) < 20 else 1)
    # Sums over thousands of keys: at most twice as far off as the plain form in float32 is itself.
    ordinary = errors(plain, case, "cuda") if case.dtype == "float32" else [0.0] * len(found)
    assert all(error <= max(most, 2 * other) for error, other in zip(found, ordinary, strict=True)), (
        found,
        ordinary,
    )


@pytest.mark.gpu
def test_on_a_gpu_what_was_checked_before_is_captured_in_a_graph() -> None:
    case = Case((32, 32), d=64, B=2, h=2, dtype="bfloat16")
    tensors = problem(case, "cuda")
    want = relative_attention_2d(*tensors, case.map_size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = relative_attention_2d(*tensors, case.map_size)
    graph.replay()
    torch.testing.assert_close(out, want)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [14, 64, 80])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_the_same_input_gives_the_same_bits(size: int, dtype: str) -> None:
    case = Case((size, size), d=128, B=2, h=4, dtype=dtype, pool=True)
    tensors = problem(case, "cuda")
    first = results(cuda.triton_attention_2d, tensors, case)
    for _ in range(3):
        again = results(cuda.triton_attention_2d, tensors, case)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_logits_far_out_overflow_nowhere(dtype: str) -> None:
    far = Case((14, 14), d=64, dtype=dtype, scale=1e4 if dtype != "float16" else 1e3)
    assert all(t.isfinite().all() for t in results(cuda.triton_attention_2d, problem(far, "cuda"), far))
    # So far out the right gradients of q, k and the tables vanish, and what rounding leaves has no measure.
    for case, held in ((replace(far, scale=100.0), range(6)), (far, (0, 3))):
        found, ordinary = (errors(attend, case, "cuda") for attend in (cuda.triton_attention_2d, plain))
        assert_rounded_as_plain([found[i] for i in held], [ordinary[i] for i in held], str(case))


@pytest.mark.gpu
@pytest.mark.skipif(Version(torch.__version__) < Version("2.13"), reason="it can't be traced whole there")
def test_on_a_gpu_a_compiled_model_keeps_the_kernels() -> None:
    case = Case((14, 14), d=64, B=2, h=2, dtype="bfloat16", pool=True)
    tensors = problem(case, "cuda")
    compiled = torch.compile(cuda.triton_attention_2d, fullgraph=True)
    got = results(lambda *arguments: compiled(*arguments), tensors, case)
    for one, other in zip(got, results(cuda.triton_attention_2d, tensors, case), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(other.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa", "triton"])
def test_on_a_gpu_memory_grows_with_the_map_and_not_with_its_square(backend: str) -> None:
    attend = partial(relative_attention_2d, backend=backend)

    def peak(size: int) -> int:
        case = Case((size, size), d=64, h=4, dtype="bfloat16")
        tensors = problem(case, "cuda")
        results(attend, tensors, case)  # kernels are compiled and checked, once
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results(attend, tensors, case)
        return torch.cuda.max_memory_allocated() - before

    # 4 times the tokens, and tables twice as long; and the logits of a tile, in a few tensors.
    assert peak(80) < 9 * peak(40) + (8 * tiled.LOGITS if backend == "tiled" else 0)


def check_registration() -> str:
    """`torch.library.opcheck`, and the whole function through dynamo and AOT autograd."""
    for case in (Case((3, 4), d=8, h=2, strided=True, pool=True), Case((2, 3), d=4, content=False)):
        q, k, v, rel_h, rel_w = problem(case)
        table = torch.cat((rel_h, rel_w))
        operands = [q, k if case.content else None, v, table]
        operands = [None if t is None else t.detach().requires_grad_() for t in operands]
        torch.library.opcheck(cuda._attention, (*operands, *case.map_size))
        compiled = torch.compile(cuda.triton_attention_2d, fullgraph=True, backend="aot_eager")
        got = results(lambda *arguments, compiled=compiled: compiled(*arguments), problem(case), case)
        want = results(cuda.triton_attention_2d, problem(case), case)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        # As torch.autograd.graph.save_on_cpu does: what was kept comes back laid otherwise.
        with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.contiguous, lambda kept: kept):
            got = results(cuda.triton_attention_2d, problem(case), case)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    return "as torch wants it"


def check_elsewhere() -> str:
    """What `test_ways` asks of each way; the check at first use; a batch of none."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_ways import begin, check_everywhere

    begin()
    check_everywhere("triton", (torch.float16,))
    kernel = selfcheck.Kernel("triton", torch.float16, 16, torch.device("cpu"))
    small = selfcheck.Case(kernel, (5, 8), content=True, gradients=True)
    assert not selfcheck._wrong(small)
    assert small in selfcheck._right
    case = Case((2, 3), B=0)
    assert results(cuda.triton_attention_2d, problem(case), case)[0].shape == (0, 1, 6, 16)
    return "the same elsewhere"


if __name__ == "__main__":
    torch.set_num_threads(1)
    known = {str(case): case for case in [*FAST, *SLOW, *FAR_OUT]}
    said: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "SCRATCH", 2**14)  # two images are computed one by one, as on large maps
        for name in known.keys() & sys.argv[1:]:
            said[name] = errors(cuda.triton_attention_2d, known[name])
    if "registration" in sys.argv:
        said["registration"] = [check_registration(), check_elsewhere()]
    print(json.dumps(said))
