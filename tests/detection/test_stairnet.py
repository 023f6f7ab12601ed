"""StairNet: where its BAMs stand, what flows from the top down, and what its options do."""

import pytest
import torch
from torch import nn

from attneck.detection.stairnet import Stairs, StepDown
from attneck.layers import BAM
from attneck.models.catalog import create_model, find, list_detectors
from attneck.models.detector_options import StairNetOptions

WITH_BAM = ["stairnet_vgg16_bam", "stairnet_mobilenet_bam"]
SIZES = {"vgg16": (38, 19, 10, 5, 3, 1), "mobilenet": (19, 10, 5, 3, 2, 1)}
SMALL = (4, 8, 4, 2, 2, 2)


def stairs(trunk: str, **options) -> Stairs:
    return Stairs(SMALL, SIZES[trunk], StairNetOptions(trunk=trunk, **options))


def maps_of(trunk: str, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        str(index): torch.randn(batch, width, side, side, generator=generator)
        for index, (width, side) in enumerate(zip(SMALL, SIZES[trunk], strict=True))
    }


@pytest.mark.parametrize("name", [name for name in list_detectors() if name.startswith(("ssd", "stair"))])
def test_six_bams_or_none(name):
    with torch.device("meta"):
        model = create_model(name)
    bams = [module for module in model.modules() if isinstance(module, BAM)]
    assert len(bams) == (6 if name.endswith("_bam") else 0)
    width = 256 if "vgg16" in name else 128
    assert all((bam.channels, bam.reduction, bam.dilation) == (width, 16, 4) for bam in bams)


@pytest.mark.parametrize("name", WITH_BAM)
def test_bam_is_the_last_thing_before_every_classifier(name):
    """What a BAM returns is what the classifier and the regressor of its map are given: the tensor itself."""
    with torch.device("meta"):
        model = create_model(name).eval()
    refined, given = [], {"classification_head": [], "regression_head": []}
    for module in model.modules():
        if isinstance(module, BAM):
            module.register_forward_hook(lambda module, inputs, out: refined.append(out))
    for head, seen in given.items():
        for conv in getattr(model.head, head).module_list:
            conv.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
    model(torch.empty(1, 3, 300, 300, device="meta"))
    assert len(refined) == 6
    for seen in given.values():
        assert [id(x) for x in seen] == [id(x) for x in refined]


@pytest.mark.parametrize("trunk", SIZES)
def test_every_map_depends_on_all_coarser_ones(trunk):
    neck = stairs(trunk).eval()
    maps = maps_of(trunk, batch=1)
    with torch.no_grad():
        before = neck(maps)
        assert list(before) == list(maps)
        for (name, out), side in zip(before.items(), SIZES[trunk], strict=True):
            assert out.shape == (1, 256 if trunk == "vgg16" else 128, side, side)
            changed = neck(maps | {name: maps[name] + 1})
            moved = {other for other in before if not torch.equal(changed[other], before[other])}
            assert moved == {str(index) for index in range(int(name) + 1)}


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(("coarse", "fine"), [(1, 3), (1, 2), (2, 3), (3, 5), (5, 10), (10, 19), (19, 38)])
def test_a_step_down_reaches_the_finer_map(coarse, fine, depthwise):
    step = StepDown(4, padding=0 if fine == 2 * coarse + 1 else 1, depthwise=depthwise).eval()
    assert step(torch.randn(1, 4, coarse, coarse), (fine, fine)).shape == (1, 4, fine, fine)
    assert (step.deconv.bias is None) == depthwise


@pytest.mark.parametrize("trunk", SIZES)
def test_the_neck_by_the_equations(trunk):
    """The neck written out again, a few lines for each map."""
    torch.manual_seed(0)
    neck = stairs(trunk, bam="stages").eval()
    for module in neck.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    maps = maps_of(trunk)
    with torch.no_grad():
        merged = None
        for index, (name, out) in reversed(list(enumerate(neck(maps).items()))):
            lateral = neck.laterals[index].norm(neck.laterals[index].conv(maps[name]))
            if merged is None:
                merged = lateral
            else:
                step = neck.steps[index]
                down = step.norm(step.deconv(merged, output_size=lateral.shape[2:]))
                merged = lateral + (step.mix.norm(step.mix.conv(down)) if trunk == "mobilenet" else down)
            post = neck.posts[index]
            features = post.norm(post.conv(merged)).clamp(min=0)
            torch.testing.assert_close(out, features + features * post.bam.attention(features))


@pytest.mark.parametrize(
    "change",
    [
        {"bam_reduction": 4},
        {"bam_dilation": 1},
        {"bam_combine": "max"},
        {"bam_branches": "spatial"},
        {"bam_variant": "official"},
        {"bam_gate": False},
        {"bam": "none"},
    ],
)
def test_every_option_of_bam_has_an_effect(change):
    if change != {"bam": "none"}:
        with pytest.raises(ValueError, match="would change nothing without a BAM"):
            find("stairnet_mobilenet", change)

    def made(**options):
        torch.manual_seed(0)
        neck = stairs("mobilenet", **{"bam": "stages"} | options)
        with torch.no_grad():
            for parameter in neck.parameters():
                if parameter.ndim == 1:
                    parameter.normal_()
            return [parameter.shape for parameter in neck.parameters()], neck(maps_of("mobilenet"))["0"]

    shapes, result = made()
    torch.testing.assert_close(made()[1], result)
    new_shapes, new_result = made(**change)
    assert new_shapes != shapes or not torch.allclose(new_result, result, rtol=1e-3)


def test_no_option_is_forgotten():
    fields = set(StairNetOptions.model_fields)
    bam = {"bam", "bam_reduction", "bam_dilation", "bam_combine", "bam_branches", "bam_variant", "bam_gate"}
    assert fields == {"trunk", "dropout", "global_pool", "bn_momentum", "bn_eps"} | bam
    assert StairNetOptions(trunk="vgg16").channels == 256
    assert StairNetOptions(trunk="mobilenet").channels == 128


@pytest.mark.parametrize("bam", ["none", "stages"])
def test_one_image_does_not_train(bam):
    """Its coarsest map is one value a channel; one image is fine in evaluation, and two are in training."""
    neck = stairs("mobilenet", bam=bam)
    with pytest.raises(ValueError, match=r"batch of one image in training.* two images or more") as caught:
        neck(maps_of("mobilenet", batch=1))
    assert "\n" not in str(caught.value)
    neck(maps_of("mobilenet", batch=2))
    neck.eval()(maps_of("mobilenet", batch=1))


def test_a_reduction_that_leaves_no_channel_is_refused():
    with torch.device("meta"), pytest.raises(ValueError, match="1 to 128"):
        create_model("stairnet_mobilenet_bam", bam_reduction=129)
