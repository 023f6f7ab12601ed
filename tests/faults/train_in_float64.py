"""Not a test: trains a net of both papers in float64, in one process or as one of several."""

from pathlib import Path

import numpy as np
import torch

from attneck.data import TrainBatches, loader, open_dataset
from attneck.models import create_model
from attneck.training.distributed import world
from attneck.training.loop import train_loop
from attneck.training.recipe import Optimizer, Recipe


class InFloat64:
    def loss(self, model, batch):
        logits = model(batch[0].double())
        return torch.nn.functional.cross_entropy(logits, batch[1]), {}

    def evaluate(self, model, watch):
        return {}


def train_in_float64(folder: Path, steps: int, accumulate: int) -> dict[str, np.ndarray]:
    """The weights that the steps end with."""
    recipe = Recipe(batch=16, accumulate=accumulate, epochs=1, optimizer=Optimizer(lr=0.05))
    dataset = open_dataset("shapes", "train", size=16 * steps, image_size=24, augment="crop_flip")
    with world() as everyone:
        torch.manual_seed(0)
        model = create_model(
            "cifar_resnet20_bot_bam", num_classes=10, image_size=24, depths=(1, 1, 1)
        ).double()
        batches = TrainBatches(
            len(dataset),
            recipe.batch,
            seed=0,
            rank=everyone.rank,
            world=everyone.size,
            accumulate=accumulate,
            steps=steps,
        )
        train_loop(
            model,
            InFloat64(),
            lambda step: iter(loader(dataset, batches)),
            recipe,
            folder,
            everyone,
            steps_per_epoch=steps,
            resume=False,
            facts={},
        )
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
