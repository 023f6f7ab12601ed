"""Not a test: a program that torchrun starts in two processes; the second has nothing to learn from."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attneck.models import create_model
from attneck.training.norms import SyncBatchNorm, synchronise_batchnorm

dist.init_process_group("gloo")
rank = dist.get_rank()
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


def furthest(*pairs: tuple[torch.Tensor, torch.Tensor]) -> float:
    return max([(one - other).abs().max().item() for one, other in pairs if one.numel()], default=0.0)


report = {
    "outputs": furthest((y, want[mine])),
    "gradients": furthest(
        (x.grad, reference.grad[mine]),
        (ours.weight.grad, plain.weight.grad),
        (ours.bias.grad, plain.bias.grad),
    ),
    "statistics": furthest((ours.running_mean, plain.running_mean), (ours.running_var, plain.running_var)),
}

# A detector of which this process sees an object, or none.
small = {"channels": 16, "box_features": 16, "proposals": 32, "rois": 16}
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
sys.stdout.write(json.dumps(report) + "\n")  # at once: print writes the line's end by itself
dist.destroy_process_group()
