"""`variant="cloud_tpu"`: pyramid, anchors, losses and least score of BoTNet's code base, by slow formulas."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from attneck.detection import cloud_tpu
from attneck.detection.rcnn import RCNN, faster_rcnn, mask_rcnn
from attneck.models.catalog import create_model

SIDE, K = 128, 4
SMALL = {"channels": 8, "box_features": 8, "proposals": 32, "rois": 16}


def made(masks: bool = True, **options: Any) -> RCNN:
    torch.manual_seed(0)
    body = create_model(
        "botnet50", num_classes=0, image_size=SIDE, depths=[1, 1, 1, 1], widths=[4, 8, 16, 32], heads=2
    )
    return (mask_rcnn if masks else faster_rcnn)(
        body, K, SIDE, **{"variant": "cloud_tpu", **SMALL, **options}
    )


def batch(count: int = 2) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(1)
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    masks[0, 10:70, 20:60], masks[1, 30:120, 50:110] = 1, 1
    boxes = torch.tensor([[20.0, 10, 60, 70], [50, 30, 110, 120]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    return [torch.rand(3, SIDE, SIDE) for _ in range(count)], [dict(target) for _ in range(count)]


def test_the_pyramid_has_biases_a_norm_a_map_and_a_strided_p6() -> None:
    fpn = made().backbone
    assert all(
        conv[0].bias is not None and len(conv) == 1 for conv in [*fpn.fpn.inner_blocks, *fpn.fpn.layer_blocks]
    )
    last = fpn.fpn.extra_blocks
    assert len(last.norms) == 5
    assert {(norm.eps, norm.momentum) for norm in last.norms} == {(1e-4, 0.003)}
    assert not last.p6.bias.any()
    bound = (3 / (9 * 8)) ** 0.5  # torchvision's pyramid has the same
    assert 0.9 * bound < float(last.p6.weight.detach().abs().max()) <= bound
    for norm in last.norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_mean, -1, 1)
    seen: dict[str, Tensor] = {}
    fpn.fpn.layer_blocks[3].register_forward_hook(lambda module, args, result: seen.update(p5=result))
    with torch.no_grad():
        maps = fpn.eval()(torch.rand(1, 3, SIDE, SIDE))
    assert [tuple(one.shape[1:]) for one in maps.values()] == [(8, side, side) for side in (32, 16, 8, 4, 2)]
    # TensorFlow's "same": of an even side nothing is padded before, one after.
    padded = nn.functional.pad(seen["p5"], (0, 1, 0, 1))
    p6 = nn.functional.conv2d(padded, last.p6.weight, last.p6.bias, stride=2)
    torch.testing.assert_close(maps["pool"], last.norms[4](p6))
    torch.testing.assert_close(maps["3"], last.norms[3](seen["p5"]))


def test_anchors_lie_in_the_middle_of_their_pixels() -> None:
    anchors = made().rpn.anchor_generator
    maps = [torch.zeros(1, 8, *sides) for sides in ((32, 48), (16, 24), (8, 12), (4, 6), (2, 3))]
    (boxes,) = anchors(ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)]), maps)
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    at = 0
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        H, W = maps[level].shape[2:]
        own = slice(at, at + 3 * H * W)
        places = [
            [stride * (x + 0.5), stride * (y + 0.5)] for y in range(H) for x in range(W) for _ in range(3)
        ]
        torch.testing.assert_close(centres[own], torch.tensor(places))
        area = sizes[own].prod(dim=1).sqrt()
        assert (area - 8 * stride).abs().max() < 0.06 * stride  # torchvision rounds sides to pixels
        at += 3 * H * W
    assert at == len(boxes)


def huber(difference: float, delta: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 if size <= delta else delta * (size - 0.5 * delta)


def test_losses_of_proposals_by_a_loop() -> None:
    regions = made().rpn
    torch.manual_seed(2)
    levels, B = [9, 6, 3], 2
    N = sum(levels)
    logits, found = torch.randn(B * N, 1, dtype=torch.float64), torch.randn(B * N, 4, dtype=torch.float64) / 3
    labels = [torch.tensor([1.0, 0, -1] * 6, dtype=torch.float64) for _ in range(B)]
    labels[0][:9] = 0  # nothing on the first map of the first image
    wanted = [torch.randn(N, 4, dtype=torch.float64) / 3 for _ in range(B)]
    regions._of_levels = levels
    regions.fg_bg_sampler = lambda labels: (  # of what there is, every second
        [(one == 1) & (torch.arange(N) % 2 == 0) for one in labels],
        [(one == 0) & (torch.arange(N) % 2 == 0) for one in labels],
    )
    regions.fg_bg_sampler.batch_size_per_image = 256
    score, boxes = regions.compute_loss(logits, found, labels, wanted)

    asked = 0.0
    for image in range(B):
        for at in range(0, N, 2):
            label, logit = float(labels[image][at]), float(logits[image * N + at])
            if label >= 0:
                asked += math.log1p(math.exp(-logit)) if label == 1 else math.log1p(math.exp(logit))
    assert float(score) == pytest.approx(asked / (B * 256))
    total, first = 0.0, 0
    for count in levels:
        of_level = [
            huber(float(found[image * N + at][side] - wanted[image][at][side]), 1 / 9)
            for image in range(B)
            for at in range(first, first + count)
            if labels[image][at] == 1
            for side in range(4)
        ]
        total += sum(of_level) / len(of_level)
        first += count
    assert float(boxes) == pytest.approx(total)


def test_loss_of_boxes_by_a_loop() -> None:
    torch.manual_seed(3)
    offsets = 2 * torch.randn(6, 4 * K, dtype=torch.float64)
    labels, wanted = torch.tensor([0, 2, 0, 3, 1, 0]), torch.randn(6, 4, dtype=torch.float64)
    all_of = [
        huber(float(offsets[row, 4 * label + side] - wanted[row, side]), 1.0)
        for row, label in enumerate(labels.tolist())
        if label
        for side in range(4)
    ]
    assert float(cloud_tpu.box_loss(offsets, labels, wanted)) == pytest.approx(sum(all_of) / len(all_of))
    none = cloud_tpu.box_loss(offsets.requires_grad_(), torch.zeros_like(labels), wanted)
    none.backward()
    assert none.item() == 0
    assert not offsets.grad.any()


def test_it_trains_with_the_loss_of_the_regions_that_it_sampled() -> None:
    """Once with objects, once with an image that has none: every weight learns, and nothing is kept."""
    model = made()
    images, targets = batch()
    chosen, predicted = [], []
    select = model.roi_heads.select_training_samples
    model.roi_heads.select_training_samples = lambda *given: chosen.append(select(*given)) or chosen[-1]
    model.roi_heads.box_predictor.register_forward_hook(
        lambda module, args, result: predicted.append(result[1])
    )
    losses = model(images, targets)
    labels, wanted = (torch.cat(part) for part in chosen[0][2:])
    torch.testing.assert_close(losses["loss_box_reg"], cloud_tpu.box_loss(predicted[0], labels, wanted))
    assert float(losses["loss_box_reg"]) > 0
    sum(losses.values()).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert silent == []
    assert not hasattr(model.roi_heads, "_sampled")
    assert len(model.roi_heads.box_predictor._forward_hooks) == 1  # the one above
    del model.roi_heads.select_training_samples
    nothing = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0).long(),
        "masks": torch.zeros(0, SIDE, SIDE),
    }
    empty = model(images, [nothing, dict(nothing)])
    assert float(empty["loss_box_reg"]) == float(empty["loss_rpn_box_reg"]) == 0
    assert all(loss.isfinite() for loss in empty.values())


def test_copies_have_it_and_other_variants_have_not() -> None:
    model = made(masks=False).eval()
    images, targets = batch()
    assert model.roi_heads.score_thresh == 0
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(images)[0]["boxes"], model(images)[0]["boxes"])
        torch.manual_seed(4)
        theirs = other.train()(images, targets)
        torch.manual_seed(4)
        ours = copy.deepcopy(model).train()(images, targets)
        torch.testing.assert_close(theirs, ours)
    for variant in ("botnet", "torchvision"):
        plain = made(masks=False, variant=variant)
        assert not plain.rpn.anchor_generator.centred
        assert type(plain.rpn) is not cloud_tpu.Regions
        assert type(plain.roi_heads) is not cloud_tpu.Heads
        assert plain.roi_heads.score_thresh == 0.05


def test_box_predictors_start_as_there() -> None:
    predictor = made(box_features=512).roi_heads.box_predictor
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize("side", [30, 300, 895, 897, 1500])
def test_regions_are_cut_by_one_point_a_bin_of_the_map_of_their_size(side: int) -> None:
    """By the formulas of that code base: level = floor(log2(side / 224)) + 4, and the bins' middles."""
    torch.manual_seed(0)
    maps = {name: torch.randn(1, 3, 2048 >> level, 2048 >> level) for level, name in enumerate(NAMES, 2)}
    left, top = 101.3, 57.9
    for pool, bins in ((made().roi_heads.box_roi_pool, 7), (made().eval().roi_heads.mask_roi_pool, 14)):
        cut = pool(maps, [torch.tensor([[left, top, left + side, top + side / 2]])], [(2048, 2048)])
        level = min(6, max(2, math.floor(math.log2(side * 0.5**0.5 / 224)) + 4))
        one, found = maps[NAMES[level - 2]][0], torch.empty(3, bins, bins)
        for row in range(bins):
            for column in range(bins):
                y = (top + (row + 0.5) * side / 2 / bins) / 2**level
                x = (left + (column + 0.5) * side / bins) / 2**level
                found[:, row, column] = between(one, y, x)
        torch.testing.assert_close(cut[0], found, rtol=1e-4, atol=1e-4)


NAMES = ["0", "1", "2", "3", "pool"]


def between(one: Tensor, y: float, x: float) -> Tensor:
    """The map [C, H, W] at a point, bilinear; the outermost positions go on beyond the border."""
    down, right = int(y), int(x)
    below, beside = min(down + 1, one.shape[1] - 1), min(right + 1, one.shape[2] - 1)
    high = one[:, down, right] * (1 - x % 1) + one[:, down, beside] * (x % 1)
    low = one[:, below, right] * (1 - x % 1) + one[:, below, beside] * (x % 1)
    return high * (1 - y % 1) + low * (y % 1)
