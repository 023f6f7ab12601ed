"""DETR on a BoTNet: transformers' detector on attneck's backbone (future work for BoTNet, §2).

pip install transformers scipy
python examples/detr.py --steps 200
"""

import argparse

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

import attneck
from attneck.data.drawn.shapes import CLASSES, MEAN, STD, scene
from attneck.models.features import Pyramid


def build(side: int) -> DetrForObjectDetection:
    """A small DETR whose backbone is a thin BoTNet, for images of side×side."""
    config = DetrConfig(
        # A placeholder: transformers builds this backbone, and ours takes its place below.
        backbone_config=ResNetConfig(
            embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
        ),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        num_labels=len(CLASSES),
        num_queries=20,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    )
    detr = DetrForObjectDetection(config)
    # Our BatchNorms learn. DETR freezes those of the backbones that it builds: they are pre-trained.
    backbone = Pyramid(attneck.create_model("botnet26_thin", num_classes=0, image_size=side), stages=1)
    encoder = getattr(detr.model.backbone, "conv_encoder", detr.model.backbone)  # transformers 4, and 5
    encoder.model = backbone
    config.use_timm_backbone = True  # ours gives a list of maps, as timm's do: transformers 4 asks
    detr.model.input_projection = nn.Conv2d(backbone.channels[-1], config.d_model, 1)
    return detr


def example(index: int, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Drawing number `index`, normalised [3, side, side], with DETR's kind of labels [n] and boxes [n, 4]."""
    drawn = scene(0, index, side, objects=2)
    x0, y0, x1, y1 = torch.from_numpy(drawn.boxes).unbind(1)
    boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=1) / side
    image = torch.from_numpy(drawn.image).permute(2, 0, 1) / 255
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (image - mean) / std, {"class_labels": torch.from_numpy(drawn.labels), "boxes": boxes}


def train(steps: int, side: int = 128, batch: int = 4) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(0)
    detr = build(side).train()
    optimizer = torch.optim.AdamW(detr.parameters(), lr=3e-4)
    history = []
    for step in range(steps):
        images, labels = zip(*(example(step * batch + i, side) for i in range(batch)), strict=True)
        loss = detr(pixel_values=torch.stack(images), labels=list(labels)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detr.parameters(), 0.1)  # as DETR is trained
        optimizer.step()
        history.append(loss.item())
        print(step, f"loss {loss.item():.3f}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    train(parser.parse_args().steps)
