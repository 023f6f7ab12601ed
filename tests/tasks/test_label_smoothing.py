"""The classification task's loss against its formula."""

import pytest
import torch
from torch import nn

from attneck.tasks.classification import Classification
from attneck.training.distributed import World
from attneck.training.recipe import Recipe


class Fixed(nn.Module):
    """The same logits for whatever images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_smoothed_cross_entropy(smoothing):
    """(1 - ε) · (-log p of the label) + ε · the mean of -log p over all classes."""
    data = {"name": "shapes", "train_size": 4, "val_size": 4, "image_size": 24}
    recipe = Recipe.model_validate({"data": data, "label_smoothing": smoothing})
    task = Classification(recipe, World(0, 1, torch.device("cpu")))
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(6, 10, dtype=torch.float64), torch.tensor([0, 3, 9, 1, 1, 7])
    loss, scores = task.loss(Fixed(logits), (torch.zeros(6, 3, 24, 24, dtype=torch.uint8), labels))
    surprise = -(logits - logits.logsumexp(1, keepdim=True))  # [6, 10]
    wanted = (1 - smoothing) * surprise[range(6), labels].mean() + smoothing * surprise.mean()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert float(scores["top1"]) == pytest.approx(100 * right / 6)
