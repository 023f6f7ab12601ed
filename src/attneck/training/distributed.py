"""What a run needs of torchrun: this process's rank and device, and figures that all processes share."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn

from attneck.errors import RunFailed, UserError, brief, say

_LOST = re.compile(r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe", re.IGNORECASE)
"""What the libraries say when another process is gone."""

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells its processes, and two ways of launching without it do too."""
PATIENCE = 30.0
"""Seconds until a process that waits for others says so."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device that it works on."""

    rank: int
    size: int
    device: torch.device

    def maximum(self, values: list[float]) -> list[float]:
        """The element-wise maximum over all processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def total(self, values: list[float]) -> list[float]:
        """The element-wise sum over all processes."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def joined(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes, those of the first one first."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def device_to_talk_on(self) -> torch.device:
        """The CPU, by gloo: no wait for a GPU. A program's own group may be of GPUs alone."""
        return torch.device("cpu") if "cpu:" in dist.get_backend_config() else self.device

    def as_the_first(self, network: nn.Module) -> None:
        """Give its buffers, such as BatchNorm's statistics, the values that the first process saves."""
        for buffer in network.buffers():
            sent = buffer.contiguous()  # a broadcast takes no other
            dist.broadcast(sent, 0)
            buffer.copy_(sent)

    def _reduce(self, values: list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device_to_talk_on())
        dist.all_reduce(tensor, how)
        return list(tensor.tolist())


def together(store: dist.Store, rank: int, size: int) -> str:
    """A name of this start that all of its processes have, and no process of an earlier start.

    torchrun counts restarts on each machine by itself, so its count is no such name. Each process asks the
    first one under a name of its own, and what the dead have asked is answered to nobody.

    Raises:
        RunFailed: another process has not asked for half an hour.
    """
    mine = uuid4().hex
    if rank:
        store.set(f"ask/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return name
    end = time.monotonic() + dist.default_pg_timeout.total_seconds()
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", mine)
            if store.check([f"heard/{mine}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise RunFailed(f"process 0 of {size}: of the others {sorted(missing)} have not started")
        time.sleep(0.05)
    return mine


def launched() -> tuple[int, int]:
    """This process's rank, and how many there are, as torchrun's variables have it; 0 of 1 without them.

    Raises:
        UserError: one is missing, or is no number, or they contradict each other.
    """
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    numbers = {
        name: int(value) if value.isascii() and value.isdigit() else -1
        for name, value in given.items()
        if name != "MASTER_ADDR"
    }
    rank, size = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
    if 0 <= rank < size and (size == 1 or ({*given} == {*VARIABLES} and 0 <= numbers["MASTER_PORT"] < 2**16)):
        return rank, size
    said = ", ".join(f"{name}={brief(given[name])}" if name in given else f"no {name}" for name in VARIABLES)
    error = UserError(
        f"{said}: these say which of several processes this is, and do not fit; wanted 0 ≤ RANK < "
        "WORLD_SIZE, of several an address and a port. Start with torchrun or --processes N, or unset them"
    )
    error.of_one = True
    raise error


@contextmanager
def _waiting(rank: int, size: int) -> Iterator[None]:
    """What is said where the others do not come: variables may be left over from another program."""
    alone = "to train alone, unset WORLD_SIZE and RANK"
    words = f"process {rank} of {size} waits for the others to start ({alone})"
    timer = threading.Timer(PATIENCE, say, [words])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def world() -> Iterator[World]:
    """Join torchrun's process group for the length of the block.

    Without torchrun this process is alone, on the GPU that is the current one. A group that the program has
    made before is taken, and left as it is.

    Raises:
        RunFailed: another process has gone.
        UserError: more processes on this machine than it has GPUs, or a `launched` that makes no sense.
    """
    joined = dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if joined else launched()
    before: int | None = None  # the GPU that a program has chosen before it calls this one
    if torch.cuda.is_available():
        given, there = None if joined else os.environ.get("LOCAL_RANK"), torch.cuda.device_count()
        before = torch.cuda.current_device() if given is None else None
        local = int(given or 0) if before is None else before
        if local >= there:
            error = UserError(
                f"process {local + 1} of this machine, which has {there} GPU{'s' * (there > 1)}: start one a "
                "GPU at most (--processes, or torchrun's --nproc-per-node)"
            )
            error.of_one = True
            raise error
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if size > 1 and not joined:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # torchrun's store outlives its workers: without a prefix a restart meets the addresses of the dead.
        with _waiting(rank, size):
            store = next(dist.rendezvous("env://"))[0]
            prefix = together(store, rank, size)
        dist.init_process_group(backend, store=dist.PrefixStore(prefix, store), rank=rank, world_size=size)
    try:
        yield World(rank, size, device)
        if size > 1 and not joined:
            dist.barrier()  # nobody takes the group down while another still talks to it
    except RuntimeError as error:
        if size == 1 or not _LOST.search(str(error)):
            raise
        raise RunFailed(
            f"process {rank} of {size}: another process has ended, and what it said is above; "
            "go on from the last checkpoint, where there is one, with --resume"
        ) from error
    finally:
        if before is not None:
            torch.cuda.set_device(before)
        if size > 1 and not joined:
            gc.collect()  # DistributedDataParallel lives in cycles, and holds on to the group's threads
            dist.destroy_process_group()
