"""`Pyramid`: the maps at the ends of stages, as the next stage sees them."""

import copy

import pytest
import torch
from awake import awake

from attneck.models import create_model
from attneck.models.features import Pyramid


@pytest.mark.parametrize("name", ["resnet50_bam", "resnet50_bot_c4"])
def test_c2_to_c5_behind_everything_in_the_stage(name: str) -> None:
    torch.manual_seed(0)
    model = awake(create_model(name, widths=[16, 16, 16, 16], num_classes=5, image_size=64)).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        want = [x := stage(x) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
        pyramid = Pyramid(model)
        got = pyramid(images)
    assert pyramid.channels == [64] * 4
    assert pyramid.reductions == [4, 8, 16, 32]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not any(name.startswith("model.fc") for name in pyramid.state_dict())


def test_s1_has_two_maps_at_stride_16() -> None:
    with torch.device("meta"):
        pyramid = Pyramid(create_model("botnet_s1_50"))
        maps = pyramid(torch.empty(1, 3, 224, 224))
    assert pyramid.reductions == [4, 8, 16, 16]
    assert [features.shape[-1] for features in maps] == [56, 28, 14, 14]


def test_which_stages() -> None:
    with torch.device("meta"):
        images = torch.empty(1, 3, 64, 64)
        for stages, reductions in (
            (2, [16, 32]),
            ([1, -1], [4, 32]),
            ([0, 2], [2, 8]),
            (9, [2, 4, 8, 16, 32]),
        ):
            pyramid = Pyramid(create_model("mobilenet_bam").eval(), stages)
            assert pyramid.reductions == reductions
            assert [64 // features.shape[-1] for features in pyramid(images)] == reductions
        # What stands behind the last of them is gone.
        pyramid = Pyramid(create_model("mobilenet"), [0, 2])
        assert {name.split(".")[1] for name in pyramid.state_dict()} == {
            "conv1",
            "bn1",
            "layer1",
            "layer2",
            "layer3",
        }


def test_a_pyramid_can_be_copied() -> None:
    """As an average of weights is: the copy's maps are its own."""
    torch.manual_seed(0)
    pyramid = Pyramid(create_model("cifar_resnet20_bam", num_classes=5)).eval()
    twin = copy.deepcopy(pyramid)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = pyramid(images)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(twin(images)[0], before[0])
        torch.testing.assert_close(pyramid(images), before, rtol=0, atol=0)


def test_what_has_no_features_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature_info"):
        Pyramid(torch.nn.Linear(1, 1))
    for stages in (0, [], [7]):
        with pytest.raises(ValueError, match=r"stages=.*this model has 3"):
            Pyramid(create_model("cifar_resnet20"), stages)


def test_intermediates_by_timm_s_names() -> None:
    model = create_model("cifar_preresnet110", depths=[1, 1, 1]).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        torch.testing.assert_close(last, model.forward_features(images))
        only = model.forward_intermediates(images, indices=[-2], intermediates_only=True)
    assert len(maps) == 3
    torch.testing.assert_close(only, maps[1:2])
    with pytest.raises(ValueError, match="of 3 features"):
        model.forward_intermediates(images, indices=4)
