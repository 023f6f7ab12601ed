"""Networks after surgery take any image: odd, oblong, in channels_last, of changing size when compiled."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from attneck.surgery import attend, insert_attention_block, insert_bam, insert_se

THIN: dict[str, Any] = {"layers": (1, 2, 2, 2), "channels": (16, 16, 16, 32), "num_classes": 5}
SIZES = ((65, 97), (64, 96), (99, 70))
OF_32 = ((64, 96), (96, 64), (96, 128))
"""For networks that add maps of several scales, and so take multiples of 32 only, also without BAM."""


def everything(model: nn.Module) -> nn.Module:
    """All four operations on one network."""
    attend(model, image_size=64)
    insert_attention_block(model, "bot", image_size=64)
    insert_attention_block(model, "non_local", -3, image_size=64)
    insert_bam(model, reduction=4, image_size=64)
    insert_se(model, reduction=4, image_size=64)
    return model


def bam(name: str, **options: Any) -> nn.Module:
    return insert_bam(timm.create_model(name, **options), reduction=4).model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "all of it": lambda: everything(ResNet(Bottleneck, **THIN)),
    "an averaged shortcut": lambda: everything(ResNet(Bottleneck, **THIN, avg_down=True)),
    "an anti-aliasing pool": lambda: everything(ResNet(Bottleneck, **THIN, aa_layer=timm.layers.BlurPool2d)),
    "a stride on the 1×1": lambda: attend(timm.create_model("legacy_seresnext26_32x4d"), image_size=64).model,
    "torchvision's": lambda: (
        attend(
            torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1]), image_size=64
        ).model
    ),
    "groups": lambda: attend(timm.create_model("regnetx_002"), image_size=64).model,
    "BAM after children in a row": lambda: bam("regnetx_002", depth=6, wa=60),
    "BAM after a dense block": lambda: bam("densenet121", block_config=(1, 1, 1, 1)),
    "BAM after an activation": lambda: bam("vgg11_bn", mlp_ratio=1 / 64),
    "BAM on one of several maps": lambda: bam("hrnet_w18_small"),
    "features": lambda: bam("test_resnet", features_only=True),
}


def sizes_of(name: str) -> tuple[tuple[int, int], ...]:
    return OF_32 if "several maps" in name else SIZES


def lively(model: nn.Module) -> nn.Module:
    """Gains, and last BatchNorms of branches, that do not hide what stands before them."""
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.5 if name.endswith(("gain", "weight")) else 0.1)
    return model.eval()


def last(result: Any) -> torch.Tensor:
    return result[-1] if isinstance(result, list) else result


@pytest.mark.parametrize("name", NETWORKS)
def test_odd_and_oblong_images_in_either_format(name: str) -> None:
    torch.manual_seed(0)
    model = lively(NETWORKS[name]())
    for size in sizes_of(name):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            want = last(model(x))
            assert torch.isfinite(want).all()
            # Other kernels in channels_last, and so another order of the sums.
            got = last(model(x.to(memory_format=torch.channels_last)))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize(
    "name",
    [
        "all of it",
        *(
            pytest.param(f"BAM {where}", marks=pytest.mark.slow)
            for where in ("after children in a row", "after a dense block", "on one of several maps")
        ),
    ],
)
def test_one_graph_for_sizes_that_change(name: str) -> None:
    """In training: results and gradients. `tests/layers/test_compile.py` has the layers' backward passes.

    In float64: a compiled gate is its formula and so rounds elsewhere, and BatchNorms over small maps
    make much of a float32's last bit.
    """
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = lively(NETWORKS[name]()).train().double()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stance = "default"
    for size in sizes_of(name):
        x, results = torch.randn(4, 3, *size, dtype=torch.float64), []
        for network in (model, compiled):
            model.load_state_dict(state)
            with torch.compiler.set_stance(stance):
                out = last(network(x))
            results.append([out, *torch.autograd.grad(out.square().mean(), list(model.parameters()))])
        stance = "fail_on_recompile"
        (one, other), *gradients = zip(*results, strict=True)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-10 * float(one.detach().abs().max()))
        largest = max(float(one.abs().max()) for one, _ in gradients)
        for one, other in gradients:
            torch.testing.assert_close(other, one, rtol=0, atol=1e-10 * largest)


def test_a_checkpoint_loads_at_another_size() -> None:
    torch.manual_seed(0)
    small, large = (
        lively(attend(ResNet(Bottleneck, **THIN), image_size=size).model) for size in (64, (96, 128))
    )
    large.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x))


@pytest.mark.slow
def test_a_network_is_exported_with_its_sizes_open() -> None:
    torch.manual_seed(0)
    model = lively(everything(ResNet(Bottleneck, **THIN)))
    side = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=(side,), strict=False)
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-4)
