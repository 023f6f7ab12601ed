"""A kernel that fails, or is wrong, is left out with one warning, and the numbers are right all the same.

The tensors are on the CPU, which passes for an H100; `sdpa` runs there, and Triton's kernels fail.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dispatched import Seen
from torch import Tensor

from attneck.attention import choice, choose, relative_attention_2d, selfcheck
from attneck.attention.backends import BACKENDS
from attneck.attention.cuda import choice as rule
from attneck.attention.cuda.sdpa import NoFusedKernelError
from attneck.attention.cuda.triton import KERNELS, constants

MAP = (20, 20)
SDPA, TILED = BACKENDS["sdpa"], BACKENDS["tiled"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(choice, "platform", lambda device: "cuda")
    for module in (rule, selfcheck):
        monkeypatch.setattr(module, "capability", lambda device: (8, 0))
    monkeypatch.setattr(rule, "HAS_TRITON", True)
    monkeypatch.setattr(choice, "_settled", {})
    monkeypatch.setattr(choice, "_asked", "auto")
    for name, empty in (("_right", set()), ("_not_taken", {}), ("_left_out", {}), ("_waiting", {})):
        monkeypatch.setattr(selfcheck, name, empty)
    monkeypatch.setitem(BACKENDS, "triton", TILED)  # right, unless a test breaks it
    return monkeypatch


def problem(dtype: torch.dtype = torch.float32, d: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    H, W = MAP
    shapes = [(1, 2, H * W, d)] * 3 + [(2 * H - 1, d), (2 * W - 1, d)]
    q, *rest = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [tensor.detach().requires_grad_() for tensor in (q * d**-0.5, *rest)]


def results(backend: str, tensors: list[Tensor]) -> list[Tensor]:
    out = relative_attention_2d(*tensors, MAP, backend=backend)
    direction = torch.linspace(-1, 1, out.numel()).view_as(out).to(out)
    return [out.detach(), *torch.autograd.grad(out, tensors, direction)]


def assert_right(tensors: list[Tensor]) -> None:
    for one, right in zip(results("auto", tensors), results("plain", tensors), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


def wrong_numbers(*given: Any) -> Tensor:
    out = SDPA(*given)
    return torch.cat((out[:, :, :-1], 0 * out[:, :, -1:]), dim=2)  # the last query alone


def wrong_gradients(*given: Any) -> Tensor:
    out = SDPA(*given)
    return out + 0.2 * (out - out.detach())


def not_a_number(*given: Any) -> Tensor:
    return SDPA(*given) * float("nan")


def raises(*given: Any) -> Tensor:
    raise RuntimeError("out of resource: shared memory\nand much more")


BROKEN = {
    wrong_numbers: "a small case is wrong, the result by ",
    wrong_gradients: "a small case is wrong, the gradient of q by 0.",
    not_a_number: "a small case is wrong, the result by nan",
    raises: "it fails with RuntimeError: out of resource: shared memory; ",
}


@pytest.mark.parametrize("kernel", BROKEN, ids=lambda kernel: kernel.__name__)
def test_a_broken_kernel_is_left_out_with_one_warning(
    kernel: Callable[..., Tensor], gpu: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    gpu.setitem(BACKENDS, "sdpa", lambda *given: calls.append(1) or kernel(*given))
    tensors = problem()
    with pytest.warns(RuntimeWarning) as told:
        assert_right(tensors)
    (said,) = (str(one.message) for one in told)
    assert said.startswith("relative attention leaves out sdpa for torch.float32, head width 8, on cpu: ")
    assert BROKEN[kernel] in said
    assert said.endswith("; triton is taken instead")
    assert "\n" not in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_right(tensors)
        found = choose(tensors[0], MAP)
        assert choose(tensors[0], (30, 21)).name == "triton"  # whatever the map
    assert calls == [1]
    assert found.name == "triton"
    assert BROKEN[kernel].removesuffix("; ") in found.reason


def one_key_is_dropped(*given: Any) -> Tensor:
    q, k, v, *others = given
    return SDPA(q, k, v * (torch.arange(v.shape[2]) != 17)[:, None], *others)


def logits_are_scaled(*given: Any) -> Tensor:
    return SDPA(1.03 * given[0], *given[1:])


def result_is_scaled(*given: Any) -> Tensor:
    return 1.03 * SDPA(*given)


def gradients_of_tables_are_scaled(*given: Any) -> Tensor:
    tables = (table + 0.1 * (table - table.detach()) for table in given[3:5])
    return SDPA(*given[:3], *tables, *given[5:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kernel",
    [one_key_is_dropped, logits_are_scaled, result_is_scaled, gradients_of_tables_are_scaled],
    ids=lambda kernel: kernel.__name__,
)
def test_what_is_wrong_by_a_few_percent_is_left_out_in_every_dtype(
    kernel: Callable[..., Tensor], dtype: torch.dtype, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setitem(BACKENDS, "sdpa", kernel)
    with pytest.warns(RuntimeWarning, match="triton is taken instead"):  # sums in another order are right
        assert choose(problem(dtype)[0], MAP).name == "triton"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "sdpa", "tiled"])
@pytest.mark.parametrize("content", [True, False])
def test_what_rounds_otherwise_than_the_plain_form_is_right(
    name: str, dtype: torch.dtype, content: bool
) -> None:
    for d, map_size in ((8, (2, 30)), (64, (15, 17)), (16, (4, 128))):
        kernel = selfcheck.Kernel(name, dtype, d, torch.device("cpu"))
        assert not selfcheck._wrong(selfcheck.Case(kernel, map_size, content, gradients=True))


def one_token_is_short(*given: Any) -> Tensor:
    out = SDPA(*given)
    return torch.cat((0.6 * out[:, :, :1], out[:, :, 1:]), dim=2)


@pytest.mark.parametrize(
    ("kernel", "what"), [(one_token_is_short, "a token of the result"), (result_is_scaled, "the result")]
)
def test_what_the_whole_hides_and_what_each_token_hides_is_found(
    kernel: Callable[..., Tensor], what: str, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setitem(BACKENDS, "sdpa", kernel)
    sdpa = selfcheck.Kernel("sdpa", torch.bfloat16, 64, torch.device("cpu"))
    case = selfcheck.Case(sdpa, (16, 32), content=True, gradients=False)
    far = [name for name, (error, most) in selfcheck._errors(case).items() if error > most]
    assert far == [what]


def test_where_all_are_broken_it_is_tiled(gpu: pytest.MonkeyPatch) -> None:
    gpu.setitem(BACKENDS, "sdpa", raises)
    gpu.setitem(BACKENDS, "triton", wrong_gradients)
    tensors = problem()
    with pytest.warns(RuntimeWarning, match="tiled is taken instead") as told:
        assert_right(tensors)
    assert len(told) == 2
    # Another dtype or head width is another kernel.
    gpu.setitem(BACKENDS, "sdpa", SDPA)
    assert choose(problem(torch.bfloat16)[0], MAP).name == "sdpa"
    assert choose(problem(d=16)[0], MAP).name == "sdpa"
    assert choose(tensors[0], MAP).name == "tiled"


def test_a_kernel_wrong_in_its_gradients_is_not_taken_for_inference_after_that(
    gpu: pytest.MonkeyPatch,
) -> None:
    gpu.setitem(BACKENDS, "sdpa", wrong_gradients)
    tensors = problem()
    with torch.inference_mode():
        assert choose(tensors[0], MAP).name == "sdpa"
    with pytest.warns(RuntimeWarning):
        assert choose(tensors[0], MAP).name == "triton"
    with torch.inference_mode():
        assert choose(tensors[0], MAP).name == "triton"


def test_what_pytorch_has_no_kernel_for_is_passed_over_without_a_warning(gpu: pytest.MonkeyPatch) -> None:
    def only_forward(*given: Any) -> Tensor:
        if given[0].requires_grad:
            raise NoFusedKernelError("none of PyTorch's")
        return SDPA(*given)

    gpu.setitem(BACKENDS, "sdpa", only_forward)
    tensors = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose(tensors[0], MAP).name == "triton"
        assert "PyTorch has no fused kernel for it" in choose(tensors[0], MAP).reason
        assert choose(tensors[0].detach(), MAP).name == "sdpa"


def test_it_is_checked_once_and_draws_nothing_from_pytorch_s_generator(gpu: pytest.MonkeyPatch) -> None:
    checked: list[selfcheck.Case] = []
    errors = selfcheck._errors
    gpu.setattr(selfcheck, "_errors", lambda case: checked.append(case) or errors(case))
    tensors = problem()
    state = torch.get_rng_state()
    for _ in range(3):
        assert_right(tensors)
    threads = [threading.Thread(target=choose, args=(problem(d=16)[0], MAP)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    assert [case.kernel.d for case in checked] == [8, 16]


def test_it_is_safe_wherever_the_first_use_is(gpu: pytest.MonkeyPatch) -> None:
    checked: list[bool] = []
    gpu.setattr(
        selfcheck, "_errors", lambda case, errors=selfcheck._errors: checked.append(1) or errors(case)
    )
    tensors = problem()
    q = tensors[0]

    def first() -> str:
        selfcheck._right.clear()
        choice._settled.clear()
        checked.clear()
        name = choose(q, MAP, gradients=True).name
        assert checked == [1]
        return name

    for place in (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda one: pytest.fail("kept"), lambda one: one),
        torch.device("meta"),
    ):
        with place:
            assert first() == "sdpa"
    with Seen() as seen:
        assert first() == "sdpa"
    assert not seen.operators
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        real, q = q, fake.from_tensor(q)
        assert first() == "sdpa"
        q = real
    assert not selfcheck._left_out
    # A compiler asks while it traces, and writes down the answer.
    selfcheck._right.clear()
    torch._dynamo.reset()
    compiled = torch.compile(relative_attention_2d, backend="aot_eager", fullgraph=True)
    out = compiled(*tensors, MAP)
    assert selfcheck._right
    torch.testing.assert_close(out, relative_attention_2d(*tensors, MAP, backend="plain"))
    gpu.setitem(BACKENDS, "sdpa", wrong_numbers)
    selfcheck._right.clear()
    torch._dynamo.reset()
    with pytest.warns(RuntimeWarning, match="triton is taken instead"):
        out = compiled(*tensors, MAP)
    torch.testing.assert_close(out, relative_attention_2d(*tensors, MAP, backend="plain"))


def test_a_compiler_knows_no_size_so_maps_of_both_kinds_are_checked(gpu: pytest.MonkeyPatch) -> None:
    def ragged_is_wrong(*given: Any) -> Tensor:
        (H, W), out = given[5], TILED(*given)
        return out if H % 16 == W % 16 == 0 else 0 * out

    gpu.setattr(rule, "capability", lambda device: (9, 0))  # where Triton's kernels come first
    gpu.setitem(BACKENDS, "triton", ragged_is_wrong)
    torch._dynamo.reset()
    compiled = torch.compile(relative_attention_2d, backend="aot_eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="leaves out triton"):
        compiled(*problem(), MAP)


def test_where_nothing_can_be_run_what_was_not_checked_waits(gpu: pytest.MonkeyPatch) -> None:
    q = problem()[0]
    found: list[choice.Choice] = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda grad: found.append(choose(q, MAP)))
    (2 * x).backward()
    assert found[0].name == "tiled"
    assert "it was not checked before a backward pass" in found[0].reason
    gpu.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert selfcheck._not_now(torch.device("cuda")) == "it was not checked before a CUDA graph was captured"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=str,
)
def test_no_memory_is_no_fault_of_the_kernel_and_is_not_tried_at_each_call(
    error: Exception, gpu: pytest.MonkeyPatch
) -> None:
    q, tries = problem()[0], []
    gpu.setattr(selfcheck, "PATIENCE", 3)
    right = selfcheck._errors

    def full(case: selfcheck.Case) -> dict[str, float]:
        tries.append(case)
        raise error

    gpu.setattr(selfcheck, "_errors", full)
    for _ in range(4):
        choice_ = choose(q, MAP)
        assert "there was no memory" in choice_.reason
        assert choice_.name == "tiled"
    assert len(tries) == 2  # sdpa and triton, once each
    assert not selfcheck._left_out
    gpu.setattr(selfcheck, "_errors", right)
    assert choose(q, MAP).name == "sdpa"


def test_after_that_it_is_checked_all_the_same(gpu: pytest.MonkeyPatch) -> None:
    q = problem()[0]
    with gpu.context() as patch:
        patch.setattr(selfcheck, "_not_now", lambda device: "not now")
        assert choose(q, MAP).name == "tiled"
    assert choose(q, MAP).name == "sdpa"
    with gpu.context() as patch:
        patch.setattr(selfcheck, "_not_now", lambda device: "not now")
        assert choose(q, MAP).name == "sdpa"  # it is known by now


@pytest.mark.parametrize("map_size", [(64, 64), (80, 80), (40, 40), (65, 65), (128, 96), (1, 900), (37, 91)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_small_case_is_cut_as_the_map_is(map_size: tuple[int, int], dtype: torch.dtype) -> None:
    small = selfcheck._cut_alike(map_size, 128, dtype, (9, 0))
    assert small[0] * small[1] <= 1024
    for kernel in KERNELS:
        assert constants(kernel, small, 128, dtype, (9, 0)) == constants(kernel, map_size, 128, dtype, (9, 0))
