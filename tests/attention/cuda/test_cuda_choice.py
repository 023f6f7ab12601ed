"""What `auto` takes and why: the rule by fakes of a GPU's facts, and what overrides it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from attneck import cli
from attneck.attention import Choice, choice, choose, relative_attention_2d, selfcheck
from attneck.attention.cuda import choice as rule
from attneck.attention.cuda import limits


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process; what a test asks for is forgotten after it."""
    monkeypatch.setattr(choice, "_asked", None)
    monkeypatch.setattr(choice, "_settled", {})
    monkeypatch.delenv(choice.VARIABLE, raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An A100 with Triton whose kernels are all right; the tensors are on the CPU all the same."""
    monkeypatch.setattr(choice, "platform", lambda device: "cuda")
    for module in (rule, selfcheck):
        monkeypatch.setattr(module, "capability", lambda device: (8, 0))
    monkeypatch.setattr(rule, "HAS_TRITON", True)
    monkeypatch.setattr(selfcheck, "_wrong", lambda case: "")
    return monkeypatch


def queries(
    H: int,
    W: int | None = None,
    d: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    grad: bool = True,
    h: int = 1,
) -> tuple[Tensor, tuple[int, int]]:
    W = H if W is None else W
    one = torch.empty((), dtype=dtype, requires_grad=grad)
    return one.expand(1, h, H * W, d), (H, W)


def chosen(*args: Any, **kwargs: Any) -> str:
    return choose(*queries(*args, **kwargs)).name


def test_the_rule_by_size(gpu: pytest.MonkeyPatch) -> None:
    for grad in (False, True):
        assert [chosen(side, grad=grad) for side in (7, 19, 20, 32, 64, 65, 128)] == [
            *["plain"] * 2, *["sdpa"] * 3, *["triton"] * 2
        ]  # fmt: skip
    assert chosen(8, 50) == "sdpa"  # 400 positions
    assert chosen(8, 49) == "plain"
    assert chosen(8, 120) == "sdpa"
    assert chosen(8, 121) == "triton"  # a head of 257


def test_on_an_h100_triton_s_kernels_are_the_fastest(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(rule, "capability", lambda device: (9, 0))
    assert [chosen(side) for side in (7, 14, 20, 32, 64, 128)] == ["plain"] * 2 + ["triton"] * 4
    assert [chosen(side, grad=False) for side in (6, 7, 14, 64)] == ["plain"] + ["triton"] * 3


def test_the_rule_by_head_width_and_dtype(gpu: pytest.MonkeyPatch) -> None:
    assert [chosen(40, d=d) for d in (16, 24, 64, 128, 176, 192, 256)] == [*["sdpa"] * 5, *["triton"] * 2]
    assert [chosen(80, d=d) for d in (16, 64, 128, 136, 256, 264)] == [*["triton"] * 5, "tiled"]
    assert [chosen(80, d=d, dtype=torch.float32) for d in (128, 136)] == ["triton", "tiled"]
    assert [chosen(40, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.float64)] == [
        "sdpa", "sdpa", "tiled",
    ]  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(40, dtype=torch.float32) == "sdpa"
    assert chosen(1024, d=64, h=16) == "tiled"  # beyond 32-bit offsets
    assert "too large for its offsets" in choose(*queries(1024, d=64, h=16)).reason


def test_the_same_bits_each_time_are_triton_s(gpu: pytest.MonkeyPatch) -> None:
    with choice.in_same_bits():
        assert choose(*queries(32)) == Choice(
            "triton", "a map up to 64x64; not sdpa: gradients must be the same bits each time"
        )
        assert chosen(32, d=256) == "triton"
        assert chosen(32, d=264) == "tiled"
        assert chosen(32, grad=False) == "sdpa"
        assert choose(*queries(32, grad=False), gradients=True).name == "triton"
        with torch.no_grad():
            assert chosen(32) == "sdpa"
        gpu.setattr(rule, "HAS_TRITON", False)
        assert chosen(33) == "tiled"
        assert chosen(10) == "plain"
        gpu.setattr(rule, "HAS_TRITON", True)
    assert chosen(32) == "sdpa"
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen(32) == "triton"
    finally:
        torch.use_deterministic_algorithms(False)


def test_where_neither_kernel_can_it_is_tiled(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(rule, "HAS_TRITON", False)
    assert choose(*queries(80)) == Choice(
        "tiled",
        "a map above 64x64; not sdpa: its head, d + H + W, is wider than 256; not triton: triton is not "
        "installed",
    )
    assert chosen(80, d=64) == "sdpa"
    gpu.setattr(rule, "HAS_TRITON", True)
    gpu.setattr(rule, "capability", lambda device: (7, 5))
    assert chosen(40) == chosen(80) == "tiled"
    assert chosen(14) == "plain"
    for kind in ("mps", "xpu", "rocm"):
        gpu.setattr(choice, "platform", lambda device, kind=kind: kind)
        assert chosen(20) == "tiled"
        assert choose(*queries(19)).name == "plain"
        assert kind in choose(*queries(20)).reason


def test_a_gpu_of_another_make_is_not_nvidia_s(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    assert choice.platform(device) == "cuda"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choice.platform(device) == "rocm"
    assert choice.platform(torch.device("cpu")) == "cpu"


def test_a_row_of_the_table_is_its_gpu_s(gpu: pytest.MonkeyPatch) -> None:
    gpu.setitem(limits.LIMITS, ("8.0", "training"), limits.Limits(plain_below=30, sdpa_up_to=30))
    assert [chosen(side) for side in (29, 30, 31)] == ["plain", "sdpa", "triton"]
    assert chosen(29, grad=False) == "sdpa"
    gpu.setattr(rule, "capability", lambda device: (8, 9))
    gpu.setattr(choice, "_settled", {})
    assert chosen(29) == "sdpa"


def test_other_devices_and_graphs(gpu: pytest.MonkeyPatch) -> None:
    q, map_size = queries(32)
    names: list[str] = []

    def asks(x: Tensor) -> Tensor:
        names.append(choose(q, map_size).name)
        return x.sin()

    torch.func.grad(lambda x: asks(x).sum())(torch.ones(2))
    with forward_ad.dual_level():
        asks(torch.ones(2))
    torch.jit.trace(asks, torch.ones(2), check_trace=False)
    assert names == ["plain"] * 3
    gpu.undo()
    assert choose(q, map_size).name == "cpu"
    assert choose(q.to("meta"), map_size).name == "plain"
    with FakeTensorMode():
        q = torch.empty(1, 1, 1024, 64, device="cuda")
        found = choose(q, map_size)
        assert found.name == ("tiled" if not torch.cuda.is_available() else "sdpa")
        assert (
            relative_attention_2d(q, q, q, *torch.empty(2, 63, 64, device="cuda"), map_size).shape == q.shape
        )


@pytest.mark.parametrize("how", ["variable", "setter"])
def test_an_override_comes_before_the_rule_and_a_name_before_it(how: str, gpu: pytest.MonkeyPatch) -> None:
    gpu.undo()
    gpu.setattr(choice, "_asked", None)
    tensors = [torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4)]
    tensors = [one.requires_grad_() for one in (*tensors, torch.randn(3, 4), torch.randn(5, 4))]

    def way(**named: str) -> str:
        return relative_attention_2d(*tensors, (2, 3), **named).grad_fn.name()

    if how == "variable":
        gpu.setenv(choice.VARIABLE, "tiled")
    else:
        choice.set_attention("tiled")
    assert choose(tensors[0], (2, 3)).name == "tiled"
    assert choice.VARIABLE in choose(tensors[0], (2, 3)).reason
    assert "tiled" in way()
    assert "cpu" in way(backend="cpu")
    assert choose(tensors[0].to("meta"), (2, 3)).name == "plain"
    torch.func.grad(lambda q: relative_attention_2d(q, *tensors[1:], (2, 3)).sum())(tensors[0])  # plain
    choice.set_attention("auto")
    assert "cpu" in way()
    choice.set_attention("triton")
    with pytest.raises((ValueError, ImportError), match=r"triton"):
        way()


def test_an_unknown_name_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(choice.VARIABLE, "flash")
    q, map_size = queries(2, d=4)
    for ask in (choice.attention, lambda: choose(q, map_size), lambda: choice.set_attention("flash")):
        with pytest.raises(ValueError, match=r"^unknown backend 'flash'.*auto, plain.*ATTNECK_ATTENTION"):
            ask()
    assert cli.main(["bench", "attention", "--size", "2", "--channels", "8", "--no-memory"]) == 2
    said = capsys.readouterr().err
    assert "unknown backend 'flash'" in said
    assert said.count("\n") == 1


def test_the_cpu_s_operator_refuses_another_device_in_one_line() -> None:
    with FakeTensorMode():
        q, table = torch.empty(1, 1, 4, 2, device="cuda"), torch.empty(3, 2, device="cuda")
        with pytest.raises(ValueError, match=r'^the cpu backend wants.*on cuda:0; pass backend="auto"'):
            relative_attention_2d(q, q, q, table, table, (2, 2), backend="cpu")


def test_the_interpreter_s_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from attneck.attention.cuda import triton as kernels

    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    monkeypatch.setattr(kernels, "_attention", lambda *_: pytest.fail("it was computed"))
    q, k, v = torch.randn(3, 1, 1, 4, 8, dtype=torch.bfloat16)
    tables = torch.randn(2, 3, 8, dtype=torch.bfloat16).unbind()
    with pytest.raises(ValueError, match="wrong numbers in bfloat16: give float32 or float16"):
        kernels.triton_attention_2d(q, k, v, *tables, (2, 2), False)
