"""The examples train a step, and the attention in their backbones learns."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attneck.layers import MHSA2d

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built(example: ModuleType, side: int) -> tuple[torch.nn.Module, list[MHSA2d]]:
    """The example's model and its attention layers, with no branch that BatchNorm starts at 0."""
    torch.manual_seed(0)
    model = example.build(side).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return model, [module for module in model.modules() if isinstance(module, MHSA2d)]


def test_keypoint_rcnn(monkeypatch):
    example = load("keypoint_rcnn")
    model, attention = built(example, 64)
    monkeypatch.setattr(example, "build", lambda side: model)
    (losses,) = example.train(steps=1, side=64, batch=1)
    assert "loss_keypoint" in losses
    assert all(0 <= loss < 100 for loss in losses.values())
    assert len(attention) == 2
    assert all(layer.qkv.weight.grad.any() for layer in attention)
    image, _ = example.example(3, 64)
    with torch.no_grad():
        (found,) = model.eval()([image])
    assert found["keypoints"].shape == (len(found["boxes"]), 4, 3)


def test_keypoints_are_a_mask_s_outermost_points():
    example = load("keypoint_rcnn")
    for index in range(5):
        _, target = example.example(index, 64)
        for points, box in zip(target["keypoints"], target["boxes"], strict=True):
            (left, top, right, bottom), x1, y1 = points, box[2], box[3]
            assert (left[0], top[1], right[0] + 1, bottom[1] + 1) == (box[0], box[1], x1, y1)
            assert ((points[:, :2] >= box[:2]) & (points[:, :2] < box[2:])).all()
            assert (points[:, 2] == 1).all()


def test_detr_has_attention_in_its_backbone():
    pytest.importorskip("transformers")
    example = load("detr")
    model, attention = built(example, 64)
    images = torch.stack([example.example(index, 64)[0] for index in range(2)])
    outputs = model(pixel_values=images)
    assert outputs.logits.shape == (2, 20, 11)
    assert outputs.pred_boxes.shape == (2, 20, 4)
    (outputs.logits.square().mean() + outputs.pred_boxes.square().mean()).backward()
    assert len(attention) == 2
    assert all(layer.qkv.weight.grad.any() for layer in attention)


def test_detr_trains_a_step():
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")  # transformers' matching of boxes and queries wants it
    (loss,) = load("detr").train(steps=1, side=64, batch=2)
    assert 0 < loss < 100
