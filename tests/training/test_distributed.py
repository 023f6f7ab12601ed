"""The processes of a start find each other, whatever earlier ones have left in torchrun's store."""

from datetime import timedelta
from multiprocessing.pool import ThreadPool

import pytest
import torch
import torch.distributed as dist

from attneck.errors import RunFailed, UserError
from attneck.training.distributed import World, together, world


def names(store, size):
    """What each rank of one start is told."""
    with ThreadPool(size) as pool:
        return [*pool.imap_unordered(lambda rank: together(store, rank, size), reversed(range(size)))]


def test_all_have_one_name_and_each_start_another():
    store = dist.HashStore()
    first, again = names(store, 4), names(store, 4)
    assert len({*first}) == len({*again}) == 1
    assert first[0] != again[0]
    assert names(store, 2)[0] not in {first[0], again[0]}  # on fewer machines


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    taken = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: taken.append(getattr(device, "index", device))
    )
    monkeypatch.setenv("LOCAL_RANK", "2")
    said = "process 3 of this machine, which has 2 GPUs: start one a GPU"
    with pytest.raises(UserError, match=said) as refused, world():
        pass
    assert refused.value.of_one  # the first process does not come so far
    monkeypatch.setenv("LOCAL_RANK", "0")
    with world() as everyone:
        assert everyone.device == torch.device("cuda", 0)
    monkeypatch.delenv("LOCAL_RANK")
    with world() as everyone:  # a program's own GPU, which stays its own
        assert everyone.device == torch.device("cuda", 1)
    assert taken == [0, 1, 1]


def test_what_a_dead_process_has_asked_lets_no_start_begin(monkeypatch):
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    with pytest.raises(RuntimeError, match="timeout"):  # rank 1 of a start whose first process never came
        together(store, 1, 3)
    monkeypatch.setattr(dist, "default_pg_timeout", timedelta(seconds=0.2))
    with pytest.raises(RunFailed, match=r"of the others \[1, 2\] have not started"):
        together(store, 0, 3)
    monkeypatch.undo()
    assert len({*names(store, 3)}) == 1


@pytest.mark.parametrize(("group", "device"), [("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "meta")])
def test_figures_are_summed_where_the_group_can(group, device, monkeypatch):
    """A program's own group may be of GPUs alone; here another device stands for one."""
    seen = []
    monkeypatch.setattr(dist, "get_backend_config", lambda: group)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, how: seen.append(tensor.device.type) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        World(0, 2, torch.device("meta")).total([1.0])
    assert seen == [device]
