"""Not a test: what becomes of the BatchNorms of two processes.

"families": each process has two of a batch of four images. "nothing": the second has nothing to learn from.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from norm_families import FAMILIES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attneck.models import create_model
from attneck.training.distributed import world
from attneck.training.norms import SyncBatchNorm, synchronise_batchnorm


def families(rank: int) -> dict[str, dict[str, float]]:
    """Each network's errors against itself in one process with the whole batch."""
    mine = slice(2 * rank, 2 * rank + 2)
    found = {}
    for family, build in FAMILIES.items():
        torch.manual_seed(0)
        plain = build().double().train()
        ours = copy.deepcopy(plain)
        synchronise_batchnorm(ours, torch.device("cpu"))
        images, scale = torch.randn(4, 3, 32, 32).double(), torch.randn(4, 5).double()
        want = plain(images)
        (want * scale).sum().backward()
        got = ours(images[mine])
        (got * scale[mine]).sum().backward()
        gradients = [parameter.grad for parameter in ours.parameters()]
        summed = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(summed)  # all at once: each call waits for the other process
        for gradient, whole in zip(gradients, summed.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(whole.view_as(gradient))
        pairs = {
            "outputs": [(got, want[mine])],
            "gradients": [
                (a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
            ],
            "statistics": [(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True)],
        }
        found[family] = {
            name: largest((a - b).abs().max() / (1 + b.abs().max()) for a, b in tensors)
            for name, tensors in pairs.items()
        }
    return found


def furthest(*pairs: tuple[Tensor, Tensor]) -> float:
    return largest((one - other).abs().max() for one, other in pairs if one.numel())


def largest(errors: Iterable[Tensor]) -> float:
    """NaN where any is one, which Python's `max` may pass over; 0 of none."""
    return torch.stack([torch.zeros((), dtype=torch.float64), *(one.double() for one in errors)]).max().item()


def nothing(rank: int) -> dict[str, Any]:
    """The layer's errors against torch's own on all that there is, and a detector's gradients."""
    torch.manual_seed(0)

    # The layer: five samples here, none there; in torch's own, all five.
    plain, ours = nn.BatchNorm2d(3).double(), SyncBatchNorm(3).double()
    everything = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    scale = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    reference = everything.clone().requires_grad_()
    want = plain(reference)
    (want * scale).sum().backward()
    mine = slice(0, 5) if rank == 0 else slice(0, 0)
    x = everything[mine].clone().requires_grad_()
    y = ours(x)
    (y * scale[mine]).sum().backward()
    for parameter in ours.parameters():
        dist.all_reduce(parameter.grad)
    report = {
        "outputs": furthest((y, want[mine])),
        "gradients": furthest(
            (x.grad, reference.grad[mine]),
            (ours.weight.grad, plain.weight.grad),
            (ours.bias.grad, plain.bias.grad),
        ),
        "statistics": furthest(
            (ours.running_mean, plain.running_mean), (ours.running_var, plain.running_var)
        ),
    }

    # A detector of which this process sees an object, or none.
    small = {"channels": 16, "box_features": 16, "proposals": 32, "rois": 16, "depths": (1, 1, 1, 1)}
    model = create_model("maskrcnn_botnet26_thin", num_classes=3, image_size=128, **small)
    synchronise_batchnorm(model, torch.device("cpu"))
    model = DistributedDataParallel(model).train()
    number = 1 - rank
    masks = torch.zeros(number, 128, 128, dtype=torch.uint8)
    masks[:, 20:90, 30:80] = 1
    boxes = torch.tensor([[30.0, 20, 80, 90]])[:number]
    target = {"boxes": boxes, "labels": torch.ones(number, dtype=torch.int64), "masks": masks}
    sum(model([torch.rand(3, 128, 128)], [target]).values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    report["without_gradient"] = [name for name, gradient in gradients.items() if gradient is None]
    report["finite"] = all(gradient.isfinite().all().item() for gradient in gradients.values())
    report["sum_of_gradients"] = sum(gradient.double().abs().sum().item() for gradient in gradients.values())
    return report


def sync_in_two_processes() -> dict[str, Any]:
    """Of this one of two processes, what became of its BatchNorms."""
    with world() as everyone:
        return {"families": families(everyone.rank), "nothing": nothing(everyone.rank)}
