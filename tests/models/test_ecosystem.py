"""Libraries that build on timm take the catalog's networks: segmentation_models_pytorch and transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from awake import awake
from torch import Tensor, nn

import attneck


def assert_learns(model: nn.Module, loss: Tensor) -> None:
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or name.endswith("bias"), name  # one before a norm has none
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("kind", "encoder", "options"),
    [
        ("Unet", "botnet50", {"widths": [16, 16, 16, 32]}),
        ("FPN", "resnet18_bam", {"in_channels": 4}),
        ("Unet", "cifar_resnet20_bot_bam", {"encoder_depth": 2, "decoder_channels": (16, 8)}),
        ("Unet", "squeezenet1_1_bam", {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 8)}),
    ],
)
def test_an_encoder_of_a_segmentation_model(kind: str, encoder: str, options: dict[str, Any]) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = awake(getattr(smp, kind)(f"tu-attneck_{encoder}", encoder_weights=None, classes=3, **options))
    masks = model(torch.randn(2, options.get("in_channels", 3), 64, 96))
    assert masks.shape == (2, 3, 64, 96)
    assert_learns(model, masks.square().mean())


@pytest.mark.parametrize("encoder", ["botnet50", "resnet50_bam"])
@pytest.mark.parametrize(("kind", "stride"), [("DeepLabV3", 8), ("DeepLabV3", 16), ("DeepLabV3Plus", 16)])
def test_deeplab_at_its_output_strides(encoder: str, kind: str, stride: int) -> None:
    """Forward and backward; an odd map; and the encoder on odd images, which smp pads for the decoder."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = getattr(smp, kind)(
        f"tu-attneck_{encoder}",
        encoder_weights=None,
        classes=3,
        encoder_output_stride=stride,
        widths=[16, 24, 32, 48],
        decoder_channels=16,
        decoder_atrous_rates=(2, 4, 6),
    )
    awake(model)
    with torch.no_grad():
        assert model.encoder(torch.randn(2, 3, 64, 96))[-1].shape[-2:] == (64 // stride, 96 // stride)
    masks = model(torch.randn(2, 3, 64, 96))
    assert masks.shape == (2, 3, 64, 96)
    assert_learns(model, masks.square().mean())
    sides = 5 * stride, 7 * stride
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, *sides)).shape == (1, 3, *sides)
        maps = model.encoder(torch.randn(1, 3, 65, 71))
    assert maps[-1].shape[-2:] == (-(-65 // stride), -(-71 // stride))


def test_the_backbone_of_a_transformers_model() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.TimmBackboneConfig(
        backbone="attneck_botnet50", use_pretrained_backbone=False, out_indices=[2, 4]
    )
    backbone = awake(transformers.TimmBackbone(config))
    maps = backbone(torch.randn(2, 3, 64, 64)).feature_maps
    assert [features.shape for features in maps] == [(2, 512, 8, 8), (2, 2048, 2, 2)]
    assert backbone.channels == [512, 2048]
    assert_learns(backbone, sum(features.square().mean() for features in maps))
    every = backbone(torch.randn(2, 3, 64, 64), output_hidden_states=True)
    assert len(every.hidden_states) == 5


def test_transformers_read_what_was_saved(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = attneck.create_model("cifar_resnet20_bot_bam", num_classes=3, depths=[1, 1, 1]).eval()
    attneck.hub.save(model, tmp_path, label_names=["cat", "dog", "fox"])
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, model(images))
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "fox"}
