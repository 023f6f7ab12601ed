"""EfficientNet, ViT and DeiT are timm's, weight for weight."""

import pytest
import timm
import torch

from attneck.models import create_model


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        *(
            (f"efficientnet_b{n}", size)
            for n, size in enumerate((5.29, 7.79, 9.11, 12.23, 19.34, 30.39, 43.04, 66.35))
        ),
        ("vit_base_patch16_384", 86.86),
        ("vit_large_patch16_384", 304.72),
        ("deit_small_patch16_224", 22.05),
        ("deit_base_patch16_224", 86.57),
        ("deit_base_patch16_384", 86.86),
    ],
)
def test_timm_s_checkpoints_fit(name: str, millions: float) -> None:
    with torch.device("meta"):
        ours, peer = create_model(name), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in peer.state_dict().items()
    }
    assert round(sum(p.numel() for p in ours.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("side", [(48, 64), (50, 33)])
def test_vit_takes_any_size(side: tuple[int, int]) -> None:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 1, "heads": 2, "num_classes": 5}
    model = create_model("vit_base_patch16_384", image_size=32, **small).eval()
    assert model(torch.randn(2, 3, *side)).shape == (2, 5)
    made_for_it = create_model("vit_base_patch16_384", image_size=side, **small).eval()
    assert made_for_it(torch.randn(2, 3, *side)).shape == (2, 5)
