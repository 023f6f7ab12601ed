"""Keypoint R-CNN on a BoTNet: torchvision's heads on attneck's pyramid (future work for BoTNet, §5).

    python examples/keypoint_rcnn.py --steps 200

The keypoints of a drawn shape are its outermost points: left, top, right and bottom.
"""

import argparse

import torch
from torch import Tensor
from torchvision.models.detection import KeypointRCNN

import attneck
from attneck.data.drawn.shapes import CLASSES, scene
from attneck.detection.fpn import FPN


def build(side: int) -> KeypointRCNN:
    """A thin BoTNet under torchvision's Keypoint R-CNN, for images of side×side."""
    backbone = attneck.create_model("botnet26_thin", num_classes=0, image_size=side)
    return KeypointRCNN(
        FPN(backbone, channels=64),
        num_classes=1 + len(CLASSES),
        num_keypoints=4,
        min_size=side,
        max_size=side,
        rpn_post_nms_top_n_train=200,
        box_batch_size_per_image=32,
    )


def example(index: int, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Drawing number `index` [3, side, side], and its boxes [n, 4], labels [n] and keypoints [n, 4, 3]."""
    drawn = scene(0, index, side, objects=2)
    keypoints = []
    for mask in torch.from_numpy(drawn.masks):
        pixels = mask.nonzero().flip(1)  # [pixels, 2] as x, y
        ends = torch.cat([pixels.argmin(0), pixels.argmax(0)])
        keypoints.append(torch.cat([pixels[ends], torch.ones(4, 1)], dim=1))  # x, y, visible
    target = {
        "boxes": torch.from_numpy(drawn.boxes),
        "labels": torch.from_numpy(drawn.labels) + 1,  # 0 is the background
        "keypoints": torch.stack(keypoints).float(),
    }
    return torch.from_numpy(drawn.image).permute(2, 0, 1) / 255, target


def train(steps: int, side: int = 128, batch: int = 4) -> list[dict[str, float]]:
    """The losses of each step."""
    torch.manual_seed(0)
    model = build(side).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        images, targets = zip(*(example(step * batch + i, side) for i in range(batch)), strict=True)
        losses = model(list(images), list(targets))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
        print(step, *(f"{name} {value:.3f}" for name, value in history[-1].items()))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    train(parser.parse_args().steps)
