"""BAM where other things than PyTorch's kernels take the operations: modes, tracers, tensor classes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import convert_splitbn_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from attneck.attention.cpu import choice, passes
from attneck.attention.gate import gate
from attneck.layers import BAM

aten = torch.ops.aten
VARIANTS = ["paper", "official"]


def problem(variant: str = "paper", channels_last: bool = False) -> tuple[BAM, Tensor]:
    """It was called once, so that which passes compute it is settled."""
    torch.manual_seed(0)
    module = BAM(64, variant=variant).eval()  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 64, 8, 8)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    module(x)
    return module, x


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "kept",
    [[aten.mm.default], [aten.sum.dim_IntList, aten.add.Tensor], [aten.mm.default, aten.convolution.default]],
)
def test_selective_checkpointing_changes_no_gradient(
    variant: str, channels_last: bool, kept: list[Callable[..., Tensor]]
) -> None:
    module, x = problem(variant, channels_last)
    policy = partial(create_selective_checkpoint_contexts, kept)
    right = torch.autograd.grad(module(x).square().sum(), [*module.parameters()])
    again = checkpoint(module, x, use_reentrant=False, context_fn=policy)
    found = torch.autograd.grad(again.square().sum(), [*module.parameters()])
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_traced_graph_computes_it(variant: str) -> None:
    module, x = problem(variant)
    with torch.no_grad():
        torch.testing.assert_close(make_fx(module)(x)(x + 1), module(x + 1))


class Stored(Tensor):
    """A quantizer's weight: its numbers are in other tensors, and what `float` gives of it is no float32."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not Tensor.float
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func is Tensor.detach else result

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [], None


def test_a_quantizer_s_weights_in_half_precision_are_its_own() -> None:
    module = problem()[0].bfloat16()
    x = torch.randn(2, 64, 8, 8, dtype=torch.bfloat16)
    reduce = module.channel_att.reduce
    reduce.weight = nn.Parameter(reduce.weight.detach().as_subclass(Stored))  # type: ignore[arg-type]
    found = module(x)
    module.backend = "plain"
    torch.testing.assert_close(found, module(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_graph_has_no_casts_that_change_nothing(variant: str) -> None:
    """Between a convolution and its norm one keeps quantizers from folding the two."""
    module, x = problem(variant)
    program = torch.export.export(module, (x,))
    names = {str(node.target) for node in program.graph.nodes}
    assert "aten.conv2d.default" in names
    assert not any("aten.to" in name or "assert_tensor_metadata" in name for name in names)


def test_fake_tensors_and_tensors_of_a_class() -> None:
    module, x = problem()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = module(mode.from_tensor(x))
        gated = gate(mode.from_tensor(x), torch.empty(2, 64), torch.empty(2, 1, 8, 8))
    assert found.shape == gated.shape == x.shape
    with torch.no_grad():
        both = module(TwoTensor(x, x.clone()))
        torch.testing.assert_close(both.a, module(x))


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_the_first_call_of_a_process_counts_as_any_other(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the compiled passes are right is found out at the first use, which is nobody's product."""
    module = BAM(64, backend=backend).eval()  # type: ignore[arg-type]
    x, found = torch.randn(1, 64, 8, 8), []
    for settled in (None, None, passes.passes()):
        passes.trouble.cache_clear()
        monkeypatch.setattr(passes, "_passes", settled)
        monkeypatch.setattr(choice, "_products", None)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
            passes.passes()
            choice.onednn_works()
        found.append(counter.get_total_flops())
    assert len(set(found)) == 1


@pytest.mark.parametrize("function", ["bam", "gate"])
def test_jacobians_of_many_rows_at_once(function: str) -> None:
    """PyTorch's older vmap, which `torch.func` does not know of."""
    torch.manual_seed(0)
    module = BAM(8, reduction=2).double().eval()
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    c, p = torch.randn(1, 8).double(), torch.randn(1, 1, 2, 3).double()
    of: Callable[[Tensor], Tensor] = module if function == "bam" else lambda x: gate(x, c, p)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(of, x, vectorize=True), jacobian(of, x))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_norms_of_split_batches(variant: str) -> None:
    """timm's norms for AugMix and AdvProp: each part of a batch by its own, as in a BAM of its own."""
    torch.manual_seed(0)
    module = BAM(16, reduction=4, variant=variant)  # type: ignore[arg-type]
    parts = [copy.deepcopy(module).train() for _ in range(2)]
    split = convert_splitbn_model(module, num_splits=2).train()
    x = torch.randn(6, 16, 4, 4)
    wanted = torch.cat([part(rows) for part, rows in zip(parts, x.chunk(2), strict=True)])
    torch.testing.assert_close(split(x), wanted)
