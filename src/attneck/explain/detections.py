"""Detections drawn on their image, and pictures of several detectors side by side (BoTNet Fig. 11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

LONGEST = 800
"""The longer side of a picture has this many pixels at least, so that its labels can be read."""

# Okabe and Ito's: colour-blind readers can tell them apart.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def draw(image: Image.Image, detections: list[dict[str, Any]]) -> Image.Image:
    """Boxes, masks, labels and scores on an image, the best on top; a small image is enlarged.

    detections: COCO's results or annotations on this image, each with `category`, the name of its class.
        Annotations have no score.
    """
    scale = max(1.0, LONGEST / max(image.size))
    width, height = (round(scale * side) for side in image.size)
    canvas = pil_to_tensor(image.convert("RGB").resize((width, height)))
    rows = sorted(detections, key=lambda row: float(row.get("score", 1)))
    if not rows:
        return to_pil_image(canvas)
    colours = [COLOURS[row["category_id"] % len(COLOURS)] for row in rows]
    if all("segmentation" in row for row in rows):
        for row, colour in zip(rows, colours, strict=True):  # all at once they turn black where two overlap
            mask = torch.from_numpy(_mask(row, image.size))[None, None].float()
            mask = F.interpolate(mask, size=(height, width))[0, 0] > 0.5  # [height, width]
            canvas = draw_segmentation_masks(canvas, mask, alpha=0.45, colors=colour)
    boxes = torch.tensor([row["bbox"] for row in rows]) * scale
    boxes[:, 2:] += boxes[:, :2]
    labels = [f"{row['category']} {row['score']:.2f}" if "score" in row else row["category"] for row in rows]
    drawn = draw_bounding_boxes(
        canvas,
        boxes,
        labels,
        list(colours),
        width=2,
        font=str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")),
        font_size=14,
        label_colors="black",
        fill_labels=True,
    )
    return to_pil_image(drawn)


def beside(pictures: list[Image.Image], titles: list[str]) -> Figure:
    """The pictures in a row, each under its title."""
    width, height = pictures[0].size
    side = 6.0  # inches
    figure = Figure(figsize=(side * len(pictures), side * height / width + 0.5), layout="constrained")
    for axes, picture, title in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures, titles, strict=True
    ):
        axes.imshow(picture)
        axes.set_title(title)
        axes.set_axis_off()
    return figure


def enlarged(
    detections: list[dict[str, Any]], small: tuple[int, int], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Detections on a smaller copy of an image → in the image's own pixels; masks by their nearest pixel.

    small, size: (width, height) of the copy and of the image.
    """
    if small == size:
        return detections
    ratios = [size[0] / small[0], size[1] / small[1]] * 2
    rows = []
    for row in detections:
        box = [round(side * ratio, 2) for side, ratio in zip(row["bbox"], ratios, strict=True)]
        mask = {}
        if "segmentation" in row:
            mask = {"segmentation": _runs(_mask(row, small), size)}
        rows.append(row | {"bbox": box} | mask)
    return rows


def _runs(mask: NDArray[np.uint8], size: tuple[int, int]) -> dict[str, Any]:
    """A mask [h, w] → COCO's run lengths of it at `size`, made without a mask of that size."""
    (height, width), (W, H) = mask.shape, size
    ends = -(-np.arange(1, height + 1) * H // height)  # the rows of the image end where a row of mask does
    columns = mask.T[np.arange(W) * width // W].ravel()  # [W · h], a column of the image after the other
    last = np.flatnonzero(np.diff(columns))  # the last of each run of equals
    counts = np.diff([0, *(last // height * H + ends[last % height]).tolist(), W * H]).tolist()
    runs = rle.frPyObjects({"size": [H, W], "counts": [0] * int(columns[0]) + counts}, H, W)
    return {"size": [H, W], "counts": runs["counts"].decode()}


def _mask(row: dict[str, Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """0 and 1, [height, width] of the (width, height) that the row is in."""
    mask: NDArray[np.uint8] = rle.decode(rle.segmToRle(row["segmentation"], *size))
    return mask
