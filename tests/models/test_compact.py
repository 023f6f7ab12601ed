"""MobileNet v1 and SqueezeNet 1.1: against torchvision's, and BAM's places in them."""

import pytest
import torch
from torchvision.models import squeezenet1_1

from attneck.layers import BAM
from attneck.models import create_model


def test_squeezenet_is_torchvision_s() -> None:
    torch.manual_seed(0)
    ours, peer = create_model("squeezenet1_1", num_classes=10).eval(), squeezenet1_1(num_classes=10).eval()
    peer.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 99, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images))
    for (name, one), other in zip(ours.named_parameters(), peer.parameters(), strict=True):
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.25), name  # how they start


def test_squeezenet_with_bam_takes_the_plain_weights() -> None:
    plain, with_bam = create_model("squeezenet1_1"), create_model("squeezenet1_1_bam")
    result = with_bam.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert {key.split(".")[1] for key in result.missing_keys} == {"bam3", "bam5"}
    order = [name for name, _ in with_bam.features.named_children()]
    assert order[order.index("bam3") - 1 : order.index("bam3") + 2] == ["4", "bam3", "5"]  # fire3, BAM, pool
    assert order[order.index("bam5") - 1 : order.index("bam5") + 2] == ["7", "bam5", "8"]  # fire5, BAM, pool


def test_squeezenet_s_other_maps_and_pool() -> None:
    with torch.device("meta"):
        model = create_model("squeezenet1_1", stem_padding=1).eval()
        _, maps = model.forward_intermediates(torch.empty(1, 3, 224, 224))
    assert [m.shape[-1] for m in maps] == [112, 56, 28, 14]
    torch.manual_seed(0)
    model = create_model("squeezenet1_1", num_classes=10, pool="features").eval()
    images = torch.randn(2, 3, 64, 64)
    pooled = model.forward_features(images).mean(dim=(2, 3), keepdim=True)
    want = model.classifier[1](pooled).relu().flatten(1)
    torch.testing.assert_close(model(images), want)


@pytest.mark.parametrize(
    ("name", "widths"), [("mobilenet", [64, 128, 256, 512, 1024]), ("mobilenet_0_7", [44, 89, 179, 358, 716])]
)
def test_mobilenet_s_stages(name: str, widths: list[int]) -> None:
    with torch.device("meta"):
        model = create_model(f"{name}_bam").eval()
        _, maps = model.forward_intermediates(torch.empty(1, 3, 224, 224))
    assert [tuple(m.shape[1:3]) for m in maps] == list(zip(widths, [112, 56, 28, 14, 7], strict=True))
    found = {key: module.channels for key, module in model.named_modules() if isinstance(module, BAM)}
    assert found == {"layer2.2": widths[1], "layer3.2": widths[2], "layer4.6": widths[3]}


def test_mobilenet_s_blocks() -> None:
    with torch.device("meta"):
        model = create_model("mobilenet")
    blocks = [block for index in range(1, 6) for block in model.get_submodule(f"layer{index}")]
    assert len(blocks) == 13
    assert all(block.conv1.groups == block.conv1.in_channels for block in blocks)
    assert [index for index, block in enumerate(blocks) if block.conv1.stride == (2, 2)] == [1, 3, 5, 11]
