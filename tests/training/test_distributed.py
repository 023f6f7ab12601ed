"""The processes of a start find each other, whatever earlier ones have left in torchrun's store."""

import time
from datetime import timedelta
from multiprocessing.pool import ThreadPool

import pytest
import torch
import torch.distributed as dist
from forked import as_ranks

from attneck.errors import RunFailed, UserError
from attneck.layers import MHSA2d
from attneck.training import distributed
from attneck.training.distributed import World, launched, together, world
from attneck.training.environment import environment


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


def _in_a_group_of_its_own() -> tuple[list[float], bool, int]:
    dist.init_process_group("gloo")
    with world() as everyone:
        total = everyone.total([1.0 + everyone.rank])
        processes = environment("cpu")["processes"]
    still = dist.is_initialized()
    dist.destroy_process_group()
    return total, still, processes


def test_a_program_s_own_group_is_taken_and_left():
    assert as_ranks(_in_a_group_of_its_own) == [([3.0], True, 2)] * 2


def _loaded_in_parts() -> list[float]:
    """How far a sharded layer with tables for another map is from a whole one, of both kinds."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = []
    with world() as everyone:
        for position in ("relative", "absolute"):
            torch.manual_seed(0)
            weights = MHSA2d(16, 4, position=position).state_dict()
            whole, parts = (MHSA2d(16, 6, position=position) for _ in range(2))
            whole.load_state_dict(weights)
            fully_shard(parts, mesh=init_device_mesh("cpu", (everyone.size,)))
            set_model_state_dict(parts, weights, options=StateDictOptions(full_state_dict=True))
            for name, tensor in whole.state_dict().items():
                part = parts.state_dict()[name]
                assert part.placements == (torch.distributed.tensor.Shard(0),)
                found.append(float((part.full_tensor() - tensor).abs().max()))
    return found


def test_tables_of_another_map_are_resampled_into_a_layer_in_parts():
    assert as_ranks(_loaded_in_parts) == [[0.0] * 6] * 2


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK='0', WORLD_SIZE='2', no MASTER_ADDR, no MASTER_PORT: these"),
        ({"WORLD_SIZE": "2"}, "no RANK, WORLD_SIZE='2'"),
        ({"RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE='x'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "wanted 0 ≤ RANK < WORLD_SIZE"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK='2'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "a"}, "MASTER_PORT='a'"),
    ],
)
def test_variables_that_do_not_fit_are_refused(monkeypatch, around, said):
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused, world():
        pass
    assert said in str(refused.value)
    assert refused.value.of_one
    assert len(str(refused.value)) < 320
    assert "\n" not in str(refused.value)


def test_variables_of_one_process_are_no_group(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == (0, 1)


def test_who_waits_for_others_says_so(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "PATIENCE", 0.01)
    with distributed._waiting(0, 2):
        time.sleep(0.3)
    assert capsys.readouterr().err == (
        "attneck: process 0 of 2 waits for the others to start (to train alone, unset WORLD_SIZE and RANK)\n"
    )
    with distributed._waiting(0, 2):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


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
