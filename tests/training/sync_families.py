"""Not a test: a program that torchrun starts in two processes, each with two of a batch of four images."""

import copy
import json
import sys

import torch
import torch.distributed as dist
from norm_families import FAMILIES

from attneck.training.norms import synchronise_batchnorm

dist.init_process_group("gloo")
rank = dist.get_rank()
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
    for parameter in ours.parameters():
        dist.all_reduce(parameter.grad)
    pairs = {
        "outputs": [(got, want[mine])],
        "gradients": [(a.grad, b.grad) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)],
        "statistics": [(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True)],
    }
    found[family] = {
        name: max(float((a - b).abs().max() / (1 + b.abs().max())) for a, b in tensors)
        for name, tensors in pairs.items()
    }
sys.stdout.write(json.dumps(found) + "\n")
dist.destroy_process_group()
