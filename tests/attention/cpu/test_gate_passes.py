"""The compiled passes of BAM's gate: the oracle's numbers in both formats; left out where they are wrong."""

import itertools
from pathlib import Path

import pytest
import torch

from attneck.attention import gate, reference
from attneck.attention.cpu import build, gate_passes, passes
from attneck.attention.cpu.squeeze import squeeze
from attneck.layers import BAM

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Compiled passes; what a test chooses is forgotten after it."""
    monkeypatch.setattr(passes, "_passes", None)
    monkeypatch.delenv(passes.VARIABLE, raising=False)


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    B, C, H, W = shape
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    return [x, 2 * torch.randn(B, C).to(dtype), 2 * torch.randn(B, 1, H, W).to(dtype)]


def results(leaves: list[torch.Tensor], combine: str, function=gate) -> list[torch.Tensor]:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*leaves, combine)
    torch.manual_seed(1)
    above = torch.randn(out.shape).to(leaves[0].dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, above)]


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("combine", ["sum", "prod", "max"])
def test_they_give_the_oracle_s_numbers_on_any_map(combine: str, memory_format: torch.memory_format) -> None:
    passes.set_passes("fused")
    for shape in ((1, 1, 1, 1), (2, 5, 3, 7), (3, 16, 8, 4), (2, 70, 9, 9), (1, 3, 13, 16)):
        for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            leaves = problem(shape, dtype, memory_format)
            want = results([leaf.double() for leaf in leaves], combine, reference.gate)
            for one, other in zip(results(leaves, combine), want, strict=True):
                assert one.dtype == dtype
                error = (one.double() - other).norm() / other.norm().clamp(min=1e-3)
                assert error < bound, (shape, dtype, float(error))


@needs_compiler
def test_they_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In both formats; not for float64, one branch, or a map of a narrower dtype than its logits."""
    passes.set_passes("fused")
    called: list[str] = []
    real = gate_passes._call
    monkeypatch.setattr(gate_passes, "_call", lambda name, *rest: (called.append(name), real(name, *rest)))
    x, c, p = problem((2, 16, 4, 4), torch.float32, torch.channels_last)
    for map_ in (x, x.contiguous()):
        results([map_, c, p], "sum")
        assert [called.pop(0) for _ in range(2)] == ["weigh_Sum", "gradients_Sum"]
    gate(x.double(), c.double(), p.double())
    gate(x, c, None)
    gate(x.bfloat16(), c, p)
    assert called == []
    passes.set_passes("operators")
    results([x, c, p], "sum")
    assert called == []


@needs_compiler
def test_both_ways_agree_and_threads_change_no_bit() -> None:
    leaves = problem((3, 20, 15, 13), torch.float32, torch.channels_last)
    found = {}
    for way in ("operators", "fused"):
        passes.set_passes(way)
        found[way] = results(leaves, "sum")
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, results(leaves, "sum"), found["fused"]))
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_logits_without_bound_saturate_and_nan_is_told() -> None:
    passes.set_passes("fused")
    x, c, p = (
        torch.ones(1, 4, 2, 2),
        torch.tensor([[1e4, -1e4, float("inf"), -float("inf")]]),
        torch.zeros(1, 1, 2, 2),
    )
    assert gate(x, c, p)[0, :, 0, 0].tolist() == [2, 1, 2, 1]
    for combine in ("sum", "prod", "max"):
        assert gate(x, c[:, :1].repeat(1, 4) * float("nan"), p, combine).isnan().all()
        assert gate(x, torch.zeros(1, 4), p * float("nan"), combine).isnan().all()


@needs_compiler
def test_only_the_gradients_that_are_needed_are_given() -> None:
    passes.set_passes("fused")
    every = results(problem((2, 6, 5, 4), torch.float32, torch.channels_last), "sum")[1:]
    for wanted in itertools.product([False, True], repeat=3):
        if not any(wanted):
            continue
        leaves = problem((2, 6, 5, 4), torch.float32, torch.channels_last)
        asked = [leaf.requires_grad_() for leaf, want in zip(leaves, wanted, strict=True) if want]
        out = gate(*leaves)
        torch.manual_seed(1)
        found = torch.autograd.grad(out, asked, torch.randn(out.shape))
        assert all(map(torch.equal, found, itertools.compress(every, wanted)))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_exact_to_float32(dtype: torch.dtype) -> None:
    passes.set_passes("fused")
    torch.manual_seed(0)
    x = (torch.randn(2, 16, 30, 29) + 5).to(dtype).contiguous(memory_format=torch.channels_last)
    mean = squeeze(x, torch.randn(4, 16, 1, 1).to(dtype), torch.zeros(4)).mean
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=1e-6, atol=0)


@needs_compiler
def test_second_derivatives_of_the_module_are_those_of_plain() -> None:
    passes.set_passes("fused")
    torch.manual_seed(0)
    bam = BAM(16, reduction=4).eval()
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    found = []
    for backend in ("auto", "plain"):
        bam.backend = backend
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(bam(leaf).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_a_wrong_one_is_left_out_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = gate_passes.SOURCE.read_text()
    assert text.count("s * (1.0f - s)") == 1
    (tmp_path / "gate.cpp").write_text(text.replace("s * (1.0f - s)", "s * (1.0f + s)"))
    (tmp_path / "floats.h").write_bytes(gate_passes.SOURCE.with_name("floats.h").read_bytes())
    monkeypatch.setattr(gate_passes, "SOURCE", tmp_path / "gate.cpp")
    passes.trouble.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match="attention and BAM take PyTorch's operators.*gives wrong numbers"
        ):
            assert passes.passes() == "operators"
    finally:
        passes.trouble.cache_clear()


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", ["fused", "operators"])
def test_in_a_compiler_s_graph_they_are_one_operator(way: str, memory_format: torch.memory_format) -> None:
    passes.set_passes(way)
    torch._dynamo.reset()
    graphs = []

    def kept(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    leaves = problem((2, 6, 5, 4), torch.float32, memory_format)
    compiled = torch.compile(gate, backend=kept, fullgraph=True)
    results_of_both = [results(leaves, "sum", function) for function in (gate, compiled)]
    for one, other in zip(*results_of_both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.stride() == other.stride()
    ours = any("attneck" in str(node.target) for node in graphs[0].graph.nodes)
    assert ours == (way == "fused")


def test_the_operator_is_as_pytorch_wants_it() -> None:
    """Its shapes, strides and gradients, for any dtypes."""
    for dtype in (torch.float32, torch.float64):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            given = [leaf.to(dtype).requires_grad_() for leaf in problem((2, 3, 4, 5), dtype, memory_format)]
            torch.library.opcheck(torch.ops.attneck.gate_cpu.default, (*given, "sum"))
