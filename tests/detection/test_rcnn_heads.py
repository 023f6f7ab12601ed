"""Anchors, the RPN's head and the regions of masks: what differs from torchvision's."""

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from attneck.detection.heads import (
    Anchors,
    BoxPredictor,
    MaskPredictor,
    MaskRoIAlign,
    PlainMaskPredictor,
    PlainRPNHead,
    RoIAlign,
    RPNHead,
)

C, SIDE, STRIDES = 8, 256, (4, 8, 16, 32, 64)


S1 = {"0": 4, "1": 8, "2": 16, "3": 16}
"""The strides of BoTNet-S1's maps."""


def maps_of(dtype: torch.dtype = torch.float32, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, C, SIDE // stride, SIDE // stride, generator=generator).to(dtype)
        for stride in STRIDES
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_anchors_are_as_torchvisions_and_no_coarser_in_bfloat16(dtype):
    images = ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)])
    (anchors,) = Anchors([[32], [64], [128], [256], [512]])(images, maps_of(dtype))
    sizes = tuple((8 * stride,) for stride in STRIDES)
    (wanted,) = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)(images, maps_of())
    assert anchors.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(anchors, wanted.to(anchors.dtype), rtol=0, atol=0)
    # Three to a cell, of areas near (8 · stride)², one cell apart.
    assert len(anchors) == 3 * sum((SIDE // stride) ** 2 for stride in STRIDES)
    first = anchors[:3]
    areas = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    torch.testing.assert_close(areas, torch.full_like(areas, 32.0**2), rtol=0.05, atol=0)
    torch.testing.assert_close(anchors[3:6] - first, first.new_tensor([[4.0, 0, 4, 0]]).expand(3, 4))


def test_levels_share_convolutions_and_not_statistics():
    torch.manual_seed(0)
    head = RPNHead(C, 3, convs=2, levels=5)
    maps = maps_of()
    logits, offsets = head(maps)
    assert [tuple(x.shape) for x in logits] == [(2, 3, SIDE // s, SIDE // s) for s in STRIDES]
    assert [tuple(x.shape) for x in offsets] == [(2, 12, SIDE // s, SIDE // s) for s in STRIDES]
    sum(x.square().mean() for x in [*logits, *offsets]).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())

    def changed(parameter: torch.nn.Parameter) -> list[bool]:
        with torch.no_grad():
            parameter.mul_(2)
            found = head(maps)[0]
            parameter.div_(2)
        return [not torch.equal(one, other) for one, other in zip(found, logits, strict=True)]

    assert changed(head.cls_logits.weight) == [True] * 5
    assert changed(head.norms[2][1].weight) == [False, False, True, False, False]
    # What is learnt of each level's statistics is that level's own: evaluation gives what training gave.
    for norm in head.norms.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        shifted = [x + level for level, x in enumerate(maps)]
        trained = head(shifted)[0]
        evaluated = head.eval()(shifted)[0]
    for one, other in zip(trained[:3], evaluated[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "shape"),
    [
        (RPNHead(C, 3, convs=1, levels=1), None),
        (PlainRPNHead(C, 3), None),
        (BoxPredictor(C, 5), (2, C)),
        (MaskPredictor(C, 5), (2, C, 14, 14)),
        (PlainMaskPredictor(C, C, 5), (2, C, 14, 14)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_logits_and_offsets_are_float32_in_bfloat16(head, shape):
    given = [torch.rand(1, C, 4, 4)] if shape is None else torch.rand(shape)
    with torch.autocast("cpu", torch.bfloat16):
        found = tree_leaves(head(given))
    assert [each.dtype for each in found] == [torch.float32] * len(found)


def test_a_mask_s_last_layers_begin_as_torchvisions():
    """He's initialisation by what a layer gives, and no offset."""
    torch.manual_seed(0)
    logits = MaskPredictor(64, 1000).mask_fcn_logits
    assert float(logits.weight.detach().std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.05)
    assert not logits.bias.any()


@pytest.mark.parametrize("first", [(SIDE, SIDE), (SIDE // 3, SIDE), (SIDE, SIDE // 3), (9, 9)])
def test_regions_lie_where_they_do_whatever_images_came_first(first):
    """Also after images that fill a small part of the canvas, of which torchvision infers other scales."""
    maps = dict(zip("0123", maps_of(), strict=False))
    boxes = [torch.tensor([[10.0, 10, 50, 90], [0, 0, 250, 250]]), torch.tensor([[3.0, 4, 9, 8]])]
    ours, theirs = RoIAlign(list("0123"), 7, [4, 8, 16, 32]), MultiScaleRoIAlign(list("0123"), 7, 2)
    ours(maps, boxes, [first] * 2)
    wanted = theirs(maps, boxes, [(SIDE, SIDE)] * 2)
    torch.testing.assert_close(ours(maps, boxes, [first] * 2), wanted, rtol=0, atol=0)


def test_regions_of_half_precision_are_those_that_autocast_cuts_out():
    """To the bit, and of boxes in float32."""
    maps = dict(zip("0123", (one.bfloat16() for one in maps_of()), strict=False))
    boxes = [torch.tensor([[10.3, 10.1, 50.7, 90.2], [0, 0, 250, 250]])]
    ours, theirs = RoIAlign(list("0123"), 7, [4, 8, 16, 32]), MultiScaleRoIAlign(list("0123"), 7, 2)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = theirs(maps, boxes, [(SIDE, SIDE)])
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            cut = ours(maps, boxes, [(SIDE, SIDE)])
        assert cut.dtype == wanted.dtype == torch.bfloat16
        assert torch.equal(cut, wanted)


def test_the_second_of_two_maps_of_one_stride_has_the_regions_twice_as_large():
    """c5 of BoTNet-S1 is as fine as its c4, and p5's regions are the same as where it is not."""
    sides = (56, 112, 224, 448, 1000)  # pixels; by FPN's equation 1, p2 to p6, of which there is no map
    boxes = [torch.tensor([[0.0, 0, side, side] for side in sides])]
    maps = {name: torch.full((1, 1, 1024 // s, 1024 // s), float(s + int(name))) for name, s in S1.items()}
    cut = RoIAlign(list(S1), 7, list(S1.values()))(maps, boxes, [(1024, 1024)])
    assert cut[:, 0, 3, 3].tolist() == [4.0, 9.0, 18.0, 19.0, 19.0]


def test_regions_are_torchvisions_where_there_are_any():
    maps = dict(zip("0123", maps_of(), strict=False))
    sizes = [(SIDE, SIDE // 2), (SIDE, SIDE)]
    boxes = [torch.tensor([[10.0, 10, 50, 90]]), torch.zeros(0, 4)]
    ours, theirs = MaskRoIAlign(list("0123"), 14, [4, 8, 16, 32]), MultiScaleRoIAlign(list("0123"), 14, 2)
    torch.testing.assert_close(ours(maps, boxes, sizes), theirs(maps, boxes, sizes), rtol=0, atol=0)

    none = [torch.zeros(0, 4)] * 2
    assert ours.eval()(maps, none, sizes).shape == (0, C, 14, 14)
    one = ours.train()(maps, none, sizes)
    whole = [torch.tensor([[0.0, 0, SIDE // 2, SIDE]]), torch.zeros(0, 4)]
    torch.testing.assert_close(one, theirs(maps, whole, sizes), rtol=0, atol=0)
    assert [len(of_image) for of_image in none] == [0, 0]
