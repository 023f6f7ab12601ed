"""A detector as a function of one tensor, in operators that torch.export and ONNX have.

torchvision's detectors choose boxes by loops and branches on what is found, which no graph holds. Here the
same choices are products, top-k, `where` and `torchvision.ops.nms`, around the very layers of the detector:
no weight is copied, and results are equal up to rounding. PyTorch's exporter (torch.export, `dynamo=True`)
takes that as it is, so the older one, by TorchScript, is not needed.

The graph does all that the detector does with an image: it brings it to the detector's size and normalises
it, and boxes and masks come back in the image's own pixels. Resizing and pasting are products with matrices
of weights that are zero outside, so that an image of any size gives maps of one size.

Letters: H×W an image in pixels, h×w what it is resized to, A anchors, R regions, K classes with the
background, n objects, M the side of a predicted mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import nms, roi_align, roi_pool

from attneck.detection.c4 import RoIPool
from attneck.detection.rcnn import RCNN
from attneck.detection.ssd import SIDE, SSD300
from attneck.detection.transform import canvas
from attneck.export.agreement import Candidates


def as_graph(detector: nn.Module) -> Graph:
    """`detector` as a function of one image; ValueError for one that is not this project's."""
    if isinstance(detector, RCNN):
        return RCNNGraph(detector)
    if isinstance(detector, SSD300):
        return SSDGraph(detector)
    raise ValueError(
        f"a {type(detector).__name__} that attneck did not make: of detectors, those of "
        "attneck.list_detectors() and attneck.detection are exported"
    )


class Graph(nn.Module):
    """image [1, 3, H, W], RGB from 0 to 1 → boxes [n, 4], labels [n], scores [n] (and masks [n, 1, H, W]).

    Boxes are (x1, y1, x2, y2) in the image's pixels, labels count from 1, masks are the probability of each
    pixel to be in the object; the best come first. n is at most `most`, and may be 0.

    Attributes:
        least_score: what is less sure is not found; a tensor, so that it can be changed in a graph.
        overlap: of two boxes of a class that overlap by more (IoU), the less sure one is not found.
        most: objects in an image.
        least_side: pixels; smaller boxes are left out.
        outputs: their names.
    """

    outputs: tuple[str, ...] = ("boxes", "labels", "scores")
    least_side = 0.0

    least_score: Tensor

    def __init__(self, detector: Any, thresholds: Any) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("least_score", torch.tensor(float(thresholds.score_thresh)))
        self.overlap, self.most = thresholds.nms_thresh, thresholds.detections_per_img

    def class_scores(self, image: Tensor) -> Tensor:
        """The scores that `least_score` chooses among, of all boxes and classes: any shape."""
        raise NotImplementedError

    def candidates(self, image: Tensor) -> Candidates | None:
        """What objects are chosen among, in the image's pixels; None where that is a choice itself."""
        return None

    def _chosen(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best of the boxes [m, 4] without those that overlap a better one of their class."""
        index = torch.where((scores > self.least_score) & _is_wide(boxes, self.least_side))[0]
        boxes, scores, labels = boxes[index], scores[index], labels[index]
        keep = apart(boxes, scores, labels, self.overlap, self.most)
        return boxes[keep], labels[keep], scores[keep]


class RCNNGraph(Graph):
    """Faster R-CNN, and Mask R-CNN, which has `masks` too."""

    least_side = 1e-2

    def __init__(self, detector: RCNN) -> None:
        heads: Any = detector.roi_heads
        super().__init__(detector, heads)
        if heads.has_mask():
            self.outputs = (*self.outputs, "masks")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        heads = self.detector.roi_heads
        maps, scores, boxes, size = self._regions(image)
        K = scores.shape[1] + 1
        labels = torch.arange(1, K).expand(scores.shape[0], K - 1).reshape(-1)
        boxes, labels, scores = self._chosen(boxes.reshape(-1, 4), scores.reshape(-1), labels)
        ratio = _sides(image).to(size.dtype) / size
        found = boxes * torch.stack([ratio[1], ratio[0], ratio[1], ratio[0]])
        if not heads.has_mask():
            return found, labels, scores
        logits = heads.mask_predictor(heads.mask_head(cut_out(heads.mask_roi_pool, maps, boxes)))
        masks = logits[:-1].sigmoid()[torch.arange(labels.shape[0]), labels]  # [n, M, M]
        return found, labels, scores, pasted(masks, found, image.shape[2], image.shape[3])

    def class_scores(self, image: Tensor) -> Tensor:
        """[R, K - 1]"""
        return self._regions(image)[1]

    def _regions(self, image: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """The pyramid's maps; scores [R, K - 1] and boxes [R, K - 1, 4]; and (h, w) as floats [2]."""
        detector = self.detector
        batch, size = self._batch(image)
        maps = detector.backbone(batch)
        proposals = self._proposals(batch, maps, size)
        heads = detector.roi_heads
        logits, offsets = heads.box_predictor(heads.box_head(cut_out(heads.box_roi_pool, maps, proposals)))
        logits, offsets = logits[:-1], offsets[:-1]
        boxes = heads.box_coder.decode_single(offsets, proposals).reshape(-1, logits.shape[1], 4)
        return maps, logits.softmax(-1)[:, 1:], _clipped(boxes[:, 1:], size), size

    def _batch(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As `attneck.detection.transform.Transform`: the batch [1, 3, H', W'], and (h, w) as floats [2]."""
        transform = self.detector.transform
        sides = _sides(image)
        scale = (sides.new_tensor(transform.size) / sides).min()
        size = (scale * sides).round().clamp(min=1)
        rows, columns = canvas(transform.size, transform.size_divisible)
        x = transform.normalize(image[0])
        x = resizing(rows, size[0], image.shape[2]).to(x) @ x
        x = x @ resizing(columns, size[1], image.shape[3]).to(x).T
        return x[None], size.to(x.dtype)

    def _proposals(self, batch: Tensor, maps: dict[str, Tensor], size: Tensor) -> Tensor:
        """Boxes [R, 4] that may hold an object, best first, as torchvision's RegionProposalNetwork."""
        rpn = self.detector.rpn
        levels = list(maps.values())
        logits, offsets = rpn.head(levels)
        anchors = rpn.anchor_generator(ImageList(batch, [tuple(batch.shape[2:])]), levels)
        counts = [of_level[0].numel() for of_level in logits]
        flat, offsets = concat_box_prediction_layers(logits, offsets)
        boxes, flat = rpn.box_coder.decode(offsets, anchors)[:, 0], flat[:, 0]  # [A, 4], [A]
        best, numbers, start = [], [], 0
        for number, count in enumerate(counts):
            top = min(count, rpn.pre_nms_top_n())
            best.append(flat[start : start + count].topk(top).indices + start)
            numbers.append(torch.full((top,), number, dtype=torch.int64))  # said for old exporters
            start += count
        index, of_level = torch.cat(best), torch.cat(numbers)
        boxes, scores = _clipped(boxes[index], size), flat[index].sigmoid()
        index = torch.where(_is_wide(boxes, rpn.min_size) & (scores >= rpn.score_thresh))[0]
        boxes = boxes[index]
        most = rpn.post_nms_top_n()
        return boxes[apart(boxes, scores[index], of_level[index], rpn.nms_thresh, most)]


class SSDGraph(Graph):
    """SSD300 and StairNet."""

    def __init__(self, detector: SSD300) -> None:
        super().__init__(detector, detector)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        boxes, scores = self._boxes(image)
        # The best of each class, as torchvision's SSD.
        sure = torch.where(scores > self.least_score, scores, -1)
        top, index = sure.topk(min(len(scores), self.detector.topk_candidates), dim=0)
        labels = torch.arange(1, scores.shape[1] + 1).expand_as(top)
        # One class after the other: of equal scores the first is taken, here as there.
        index, top, labels = (each.T.reshape(-1) for each in (index, top, labels))
        boxes, labels, scores = self._chosen(boxes[index], top, labels)
        ratio = _sides(image).to(boxes) / SIDE
        return boxes * torch.stack([ratio[1], ratio[0], ratio[1], ratio[0]]), labels, scores

    def class_scores(self, image: Tensor) -> Tensor:
        """[A, K - 1]"""
        return self._boxes(image)[1]

    def candidates(self, image: Tensor) -> Candidates:
        """Every box of every class: [A · (K - 1)]."""
        boxes, scores = self._boxes(image)
        ratio = _sides(image).to(boxes) / SIDE
        boxes = boxes * torch.stack([ratio[1], ratio[0], ratio[1], ratio[0]])
        A, K = scores.shape[0], scores.shape[1] + 1
        labels = torch.arange(1, K).repeat(A)
        boxes = boxes.repeat_interleave(K - 1, 0)
        return Candidates(boxes, labels, scores.flatten(), self.overlap, self.most)

    def _boxes(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [A, 4] in the resized image, and their scores [A, K - 1]."""
        detector = self.detector
        resized, _ = detector.transform.resize(detector.transform.normalize(image[0]))
        batch = resized[None]  # [1, 3, 300, 300]
        maps = list(detector.backbone(batch).values())
        found = detector.head(maps)
        (anchors,) = detector.anchor_generator(ImageList(batch, [(SIDE, SIDE)]), maps)
        boxes = detector.box_coder.decode_single(found["bbox_regression"][0], anchors)
        size = boxes.new_tensor([SIDE, SIDE])
        return _clipped(boxes, size), found["cls_logits"][0].softmax(-1)[:, 1:]


def apart(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, most: int) -> Tensor:
    """The numbers of the boxes [m, 4] that non-maximum suppression keeps in each group [m], best first.

    As torchvision's batched_nms does it for few boxes: each group is moved beyond all others. For many boxes
    torchvision takes group by group; then an overlap that is the greatest allowed but for rounding may fall
    otherwise here.

    Two boxes apart from all others go in, as the least sure, and out again: torchvision tells torch.export
    that two at least are kept, so a program would refuse an image with less in it.
    """
    boxes = torch.cat([boxes, boxes.new_tensor([[-3, -3, -2, -2], [-6, -6, -5, -5]])])
    scores = torch.cat([scores, scores.new_tensor([-2, -3])])
    groups = torch.cat([groups, groups.new_zeros(2)])
    moved = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    return nms(moved, scores, overlap)[:-2][:most]


def cut_out(pool: Any, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """`RoIAlign` or `RoIPool` of `attneck.detection`, of one image: boxes [R, 4] → [R + 1, C, bins, bins].

    The last one is beside what was asked for: a convolution of no regions is nothing that a graph can hold.
    """
    boxes = torch.cat([boxes, boxes.new_tensor([[0, 0, 1, 1]])])
    regions = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)  # of image 0
    if isinstance(pool, RoIPool):
        return roi_pool(*maps.values(), regions, pool.output_size, pool.scale)
    levels = pool.map_levels([boxes])
    finest = maps[pool.featmap_names[0]]
    result = finest.new_zeros(regions.shape[0], finest.shape[1], *pool.output_size)
    for level, (name, scale) in enumerate(zip(pool.featmap_names, pool.scales, strict=True)):
        those = torch.where(levels == level)[0]
        cut = roi_align(maps[name], regions[those], pool.output_size, scale, pool.sampling_ratio)
        result = result.index_put((those,), cut)
    return result


def resizing(rows: int, size: Tensor, length: int) -> Tensor:
    """[rows, length], float64: times a map of `length` rows it is one of `size`, and zeros below.

    The weights are those of F.interpolate, bilinear and with antialias: a triangle around each new pixel's
    centre, as wide as two pixels of the coarser map.
    """
    scale = length / size
    centre = (torch.arange(rows, dtype=size.dtype) + 0.5) * scale
    pixels = torch.arange(length, dtype=size.dtype) + 0.5
    weights = (1 - (pixels - centre[:, None]).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * (torch.arange(rows)[:, None] < size)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-9)


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks [n, M, M] of boxes [n, 4] → of the image, [n, 1, height, width], as torchvision pastes them.

    Both are one pixel of the mask wider on each side; the box is then cut to whole pixels, towards zero, and
    the mask resized to it.
    """
    M = masks.shape[-1]
    masks = F.pad(masks, (1, 1, 1, 1))
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((M + 2) / M)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    first, last = (centre - half).long(), (centre + half).long()  # [n, 2], (x, y)
    rows = _pasting(first[:, 1], last[:, 1], M + 2, height)
    columns = _pasting(first[:, 0], last[:, 0], M + 2, width)
    return (rows @ masks @ columns.transpose(1, 2))[:, None]


def _pasting(first: Tensor, last: Tensor, side: int, length: int) -> Tensor:
    """[n, length, side]: bilinear weights of a mask's pixels in those of the image from `first` to `last`."""
    pixels = torch.arange(length)
    count = (last - first + 1).clamp(min=1)
    source = ((pixels - first[:, None]) + 0.5) * (side / count[:, None]) - 0.5  # [n, length]
    weights = 1 - (source.clamp(0, side - 1)[..., None] - torch.arange(side)).abs()
    inside = (pixels >= first[:, None]) & (pixels <= last[:, None])
    return weights.clamp(min=0) * inside[..., None]


def _sides(image: Tensor) -> Tensor:
    """(H, W) of an image [1, 3, H, W], as numbers that a graph computes with: [2], float64."""
    return torch.stack([torch.scalar_tensor(side, dtype=torch.float64) for side in image.shape[2:]])


def _clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes [..., 4] cut at the edges of an image of `size` (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(min=0).minimum(width), boxes[..., 1::2].clamp(min=0).minimum(height)
    return torch.stack([x, y], dim=-1).reshape(boxes.shape)


def _is_wide(boxes: Tensor, least: float) -> Tensor:
    """Which of the boxes [m, 4] have sides of `least` pixels or more."""
    return (boxes[:, 2] - boxes[:, 0] >= least) & (boxes[:, 3] - boxes[:, 1] >= least)
