"""Not a test: a small net that can be made to break at one step, its task, a run; and a small detector."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.training import checkpoint
from attneck.training.distributed import World
from attneck.training.loop import train_loop
from attneck.training.recipe import Recipe

STEPS_PER_EPOCH = 3
ALONE = World(0, 1, torch.device("cpu"))
CLOCKS = {"seconds", "peak_gib"}


def thin_mask_rcnn(**options: Any) -> dict[str, Any]:
    """The part `model` of a recipe: Mask R-CNN with attention, as small as it gets."""
    sizes = {"channels": 16, "box_features": 32, "box_convs": 1, "mask_convs": 1, "rois": 16}
    return {
        "name": "maskrcnn_botnet26_thin",
        "options": {"depths": [1, 1, 1, 1], **sizes, **options},
    }


class BrokenOffError(Exception):
    """A crash."""


@contextmanager
def broken_off_after(step: int) -> Iterator[None]:
    """The run inside it crashes, as it must, once it has saved itself after `step` steps or more."""
    whole = checkpoint.save

    def save(folder: Path, number: int, state: dict[str, Any]) -> Path:
        path = whole(folder, number, state)
        if number >= step:
            raise BrokenOffError
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(BrokenOffError):
            yield


class At(NamedTuple):
    """Where something goes wrong, all from 0."""

    step: int
    part: int = 0
    rank: int = 0


class _Scaled(torch.autograd.Function):
    """x, with its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class Breaking(nn.Module):
    """Passes x on, until `how` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.how: str | None = None
        self.register_buffer("greatest", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("nan", "inf"):
            return _Scaled.apply(x, float(self.how))
        if self.how == "buffer":
            self.greatest.fill_(float("inf"))
        return x * float("nan") if self.how == "output" else x


class Net(nn.Module):
    """A convolution, whatever breaks, BatchNorm, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.breaking, self.bn = nn.Conv2d(3, 4, 3), Breaking(), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.bn(self.breaking(self.conv(x))).relu().mean((2, 3))))


class Task:
    """Random images and labels; breaks in the way `how` where `at` says, and is signalled in evaluation."""

    def __init__(self, world: World, how: str | None = None, at: At | None = None) -> None:
        self.world, self.how, self.at = world, how, at
        self.evaluated = 0
        self.signal_after: int | None = None
        """Held-out batches after which this process gets SIGTERM."""

    def loss(self, model: nn.Module, batch: tuple[At, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        at, images, labels = batch
        net: Any = next(m for m in model.modules() if hasattr(m, "breaking"))  # it may be wrapped
        net.breaking.how = self.how if at == self.at else None
        loss = F.cross_entropy(model(images).float(), labels)
        if self.how == "constant" and at == self.at:
            loss = loss + float("nan")
        return loss, {"twice": 2 * loss.detach()}

    def evaluate(self, model: nn.Module, watch: Any) -> dict[str, float]:
        total, count = 0.0, 0
        for number in watch(range(5)):
            self.evaluated += 1
            if self.evaluated == self.signal_after:
                os.kill(os.getpid(), signal.SIGTERM)
            torch.manual_seed(number)
            total += float(model(torch.randn(2, 3, 6, 6)).sum())
            count += 1
        total, count = self.world.total([total, count])
        return {"mean": total / count}


class Doing(Task):
    """Does something in the loss of one step, or in the first evaluation after it."""

    def __init__(self, step: int, what: Callable[[], object], *, evaluating: bool = False) -> None:
        super().__init__(ALONE)
        self.step, self.what, self.evaluating = step, what, evaluating
        self.done = 0

    def loss(self, model: nn.Module, batch: tuple[At, Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.done = batch[0].step
        if self.done == self.step and not self.evaluating:
            self.what()
        return super().loss(model, batch)

    def evaluate(self, model: nn.Module, watch: Any) -> dict[str, float]:
        if self.done == self.step and self.evaluating:
            self.evaluating = False  # once: an average is evaluated after the weights
            self.what()
        return super().evaluate(model, watch)


def recipe(**changes: Any) -> Recipe:
    """Two epochs of three steps."""
    options = {"batch": 8, "epochs": 2, "checkpoint_steps": 1, "optimizer": {"lr": 0.1}}
    return Recipe.model_validate(options | changes)


def batches(start: int, recipe: Recipe, world: World) -> Iterator[tuple[At, Tensor, Tensor]]:
    """Those from step `start` on, one for each micro-batch of this process."""
    share = recipe.batch // (recipe.accumulate * world.size)
    for step in range(start, recipe.total_steps(STEPS_PER_EPOCH)):
        for part in range(recipe.accumulate):
            draws = torch.Generator().manual_seed(1000 * step + 10 * part + world.rank)
            images = torch.randn(share, 3, 6, 6, generator=draws)
            labels = torch.randint(5, (share,), generator=draws)
            yield At(step, part, world.rank), images, labels


def run(folder: Any, recipe: Recipe, task: Task, *, resume: bool = False, world: World = ALONE) -> Any:
    """Train a new net; it, its progress and its average."""
    torch.manual_seed(0)
    net = Net()
    progress, average = train_loop(
        net,
        task,
        lambda step: batches(step, recipe, world),
        recipe,
        folder,
        world,
        steps_per_epoch=STEPS_PER_EPOCH,
        resume=resume,
        facts={"classes": []},
    )
    return net, progress, average


def tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in nested dicts and lists, by their dotted name."""
    if isinstance(state, Tensor):
        return {name: state}
    parts = state.items() if isinstance(state, dict) else enumerate(state if isinstance(state, list) else [])
    found: dict[str, Tensor] = {}
    for key, part in parts:
        found |= tensors(part, f"{name}.{key}")
    return found


def digest(state: Any) -> str:
    """Of everything in a checkpoint that is a tensor."""
    return checkpoint.digest(tensors(state))


def history(state: Any) -> list[dict[str, Any]]:
    """A checkpoint's records, without what differs from one run of the same to the next."""
    return [{key: value for key, value in one.items() if key not in CLOCKS} for one in state["history"]]


def ending(folder: Path, recipe: Recipe) -> tuple[str, list[dict[str, Any]]]:
    """The digest and the records of a run that nothing disturbs."""
    run(folder, recipe, Task(ALONE))
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    return digest(state), history(state)
