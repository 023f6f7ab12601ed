"""BatchNorm over processes of which some, or all, have nothing: as of the others alone, and never NaN."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from attneck.training.norms import SyncBatchNorm, synchronise_batchnorm

PROGRAM = Path(__file__).with_name("sync_with_an_empty_batch.py")


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nobody_has_anything(alone):
    norm = nn.BatchNorm2d(3)
    assert synchronise_batchnorm(norm, torch.device("cpu")) == 1
    assert isinstance(norm, SyncBatchNorm)
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    y = norm(x)
    assert y.shape == x.shape
    (y.sum() * 0).backward()
    for parameter in norm.parameters():
        assert torch.equal(parameter.grad, torch.zeros(3))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.equal(norm.running_var, torch.ones(3))


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (7, 3), (1, 3, 1, 1)])
def test_a_single_process_is_as_plain_batchnorm(alone, shape):
    torch.manual_seed(0)
    plain, ours = nn.BatchNorm2d(3).double(), SyncBatchNorm(3).double()
    x = torch.randn(shape, dtype=torch.float64)
    if x[:, 0].numel() == 1:  # which torch refuses; other processes may have the same one image each
        assert torch.equal(ours(x), torch.zeros(shape, dtype=torch.float64))
        assert ours.running_var.isfinite().all()
        return
    want = plain(x) if x.ndim == 4 else plain(x[:, :, None, None])[:, :, 0, 0]
    torch.testing.assert_close(ours(x), want)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


@pytest.mark.slow
def test_two_processes_of_which_one_has_nothing():
    """The layer, and a Mask R-CNN of which one process sees images without objects, under torchrun."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(PROGRAM),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    for process in found:
        # The layer in float64 against torch's own on all that there is.
        assert process["outputs"] < 1e-12
        assert process["gradients"] < 1e-12
        assert process["statistics"] < 1e-12
        # The detector: every gradient there and finite, and the same in both processes.
        assert process["without_gradient"] == []
        assert process["finite"]
    assert found[0]["sum_of_gradients"] == pytest.approx(found[1]["sum_of_gradients"], rel=1e-6)
    assert found[0]["sum_of_gradients"] > 0
