"""Each way under torch.compile, autocast, DDP and gradient checkpointing: the numbers of eager's."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from attneck.layers import MHSA2d

WAYS = ["plain", "cpu", "tiled", "sdpa"]
"""Triton's are tried in its interpreter (cuda/test_cuda.py)."""


def layer_and_input(backend: str) -> tuple[MHSA2d, Tensor]:
    torch.manual_seed(0)
    layer = MHSA2d(16, (5, 6), heads=2, stride=2, backend=backend)
    nn.init.normal_(layer.qkv.weight, std=0.25)
    return layer, torch.randn(2, 16, 5, 6)


def results(layer: nn.Module, x: Tensor, behind: torch.dtype | None = None) -> list[Tensor]:
    """The result, and the gradients of x and of the parameters, by a backward pass.

    behind: autocast to this is on in the backward pass.
    """
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    loss = out.float().square().sum()
    with torch.autocast("cpu", behind, enabled=behind is not None):
        loss.backward()
    return [out.detach(), x.grad, *(one.grad.clone() for one in layer.parameters())]


def check_everywhere(backend: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Needs a process group, of one."""
    layer, x = layer_and_input(backend)
    want = results(layer, x)
    by_oracle, _ = layer_and_input("plain")

    def again(how: str) -> list[Tensor]:
        if how == "DDP":
            return results(DistributedDataParallel(layer), x)
        if how == "compiled":
            torch._dynamo.reset()
            return results(torch.compile(layer, backend="aot_eager", fullgraph=True), x)

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.layer, x, use_reentrant=how == "reentrant")

        return results(Checkpointed(), x)

    for one, right in zip(want, results(by_oracle, x), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-5)
    for how in ("DDP", "compiled", "reentrant", "checkpointed"):
        for one, right in zip(again(how), want, strict=True):
            torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-6, msg=how)
    for dtype in dtypes:
        with torch.autocast("cpu", dtype):
            found = results(layer, x)
        assert found[0].dtype == dtype
        for one, right in zip([*found, *results(layer, x, behind=dtype)], [*want, *want], strict=True):
            assert (one.float() - right).norm() < 0.05 * right.norm(), dtype


def begin() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    begin()
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("backend", WAYS)
def test_each_way_is_itself_everywhere(backend: str, one_process: None) -> None:
    check_everywhere(backend, (torch.bfloat16, torch.float16))
