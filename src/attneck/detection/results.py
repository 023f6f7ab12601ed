"""Detections as COCO's results: the standard JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_coco_detections(
    outputs: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    category_ids: Sequence[int],
    min_score: float = 0.0,
) -> list[dict[str, Any]]:
    """Detections in pixels of the images' files, best first within an image.

    Each has `image_id`, `category_id`, `bbox` (x, y, width, height, to a hundredth of a pixel), `score`, and,
    where the output has masks, `segmentation` (run lengths of the pixels with a probability of 0.5 or more).

    outputs: of each image, as torchvision's detectors return them: `boxes` [n, 4] (x0, y0, x1, y1), `labels`
        [n] from 1, `scores` [n], and `masks` [n, 1, H, W], probabilities, if there are any.
    targets: of the same images: `image_id`; and, if the detector had the image at another size than its file,
        `orig_size` [2], height and width of the file, and `size` [2], height and width of the image in the
        top left corner of the detector's input; the rest of that is padding.
    category_ids: of labels 1, 2, …
    min_score: detections below it are left out.
    """
    from faster_coco_eval.core import mask as rle

    detections = []
    for output, target in zip(outputs, targets, strict=True):
        order = output["scores"].argsort(descending=True, stable=True)
        order = order[output["scores"][order] >= min_score]
        boxes, labels, scores = (output[key][order].cpu() for key in ("boxes", "labels", "scores"))
        masks = output["masks"][order] if "masks" in output else None
        if "orig_size" in target:
            orig_size, size = target["orig_size"].tolist(), target["size"].tolist()
            boxes = _boxes_back(boxes.float(), size, orig_size)
            masks = None if masks is None else _masks_back(masks, size, orig_size)
        runs = None
        if masks is not None and len(masks):
            bits = (masks[:, 0] >= 0.5).permute(1, 2, 0).to("cpu", torch.uint8).numpy()
            runs = rle.encode(np.asfortranarray(bits))
        corners = boxes.double()
        sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        for i, (box, label, score) in enumerate(
            zip(sides.tolist(), labels.tolist(), scores.tolist(), strict=True)
        ):
            detection = {
                "image_id": int(target["image_id"]),
                "category_id": category_ids[label - 1],
                "bbox": [round(side, 2) for side in box],
                "score": float(f"{score:.7g}"),
            }
            if runs is not None:
                counts = runs[i]["counts"].decode()
                detection["segmentation"] = {"size": list(runs[i]["size"]), "counts": counts}
            detections.append(detection)
    return detections


def _boxes_back(boxes: Tensor, size: Sequence[int], orig_size: Sequence[int]) -> Tensor:
    """Boxes [n, 4] on an image of `size` (height, width) → on one of `orig_size`, cut at its edges."""
    (height, width), (orig_height, orig_width) = size, orig_size
    ratios = boxes.new_tensor([orig_width / width, orig_height / height] * 2)
    return (boxes * ratios).clamp(min=0).minimum(boxes.new_tensor([orig_width, orig_height] * 2))


def _masks_back(masks: Tensor, size: Sequence[int], orig_size: Sequence[int]) -> Tensor:
    """Probabilities [n, 1, H, W] with an image of `size` in the top left corner → [n, 1, *orig_size]."""
    masks = masks[..., : size[0], : size[1]].float()
    if not len(masks) or list(size) == list(orig_size):
        return masks
    return F.interpolate(masks, size=list(orig_size), mode="bilinear", align_corners=False)
