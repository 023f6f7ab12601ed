"""Checkpoints are whole or not there, and cannot run code."""

import itertools
import multiprocessing
import os
import time

import pytest
import torch
from small_run import Net

from attneck.errors import UserError
from attneck.training import checkpoint
from attneck.training.distributed import World
from attneck.training.recipe import Recipe
from attneck.training.state import put_back

RECIPE = Recipe().model_dump(mode="json")


def state(step, size=1000):
    return {
        "format": 1,
        "step": step,
        "sums": [{}],
        "history": [],
        "model": {"weight": torch.full((size,), float(step))},
        "optimizer": {"state": {}, "param_groups": []},
        "average": None,
        "recipe": RECIPE,
        "facts": {"classes": ["one"]},
    }


def test_what_is_not_written_is_let_go(tmp_path, monkeypatch):
    """Else Python 3.13 tells of a buffer that is in use, once the error that keeps it is gone."""
    given = []

    def fail(path, data):
        given.append(data)
        if path.suffix == ".pt":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomic", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 1, state(1))
    with pytest.raises(ValueError, match="released"):
        given[-1].tobytes()


def test_the_newest_two_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "step-00000003.pt",
        "step-00000002.pt",
    ]
    assert len(list(tmp_path.iterdir())) == 4, "each with its sum, and nothing else"
    loaded, path, damaged = checkpoint.load_latest(tmp_path)
    assert (loaded["step"], path.name, damaged) == (3, "step-00000003.pt", [])


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "no sum"])
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, harm):
    for step in (1, 2):
        newest = checkpoint.save(tmp_path, step, state(step))
    data = bytearray(newest.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    elif harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "empty":
        data.clear()
    else:
        newest.with_name(f"{newest.name}.sha256").unlink()
    newest.write_bytes(data)
    loaded, _, damaged = checkpoint.load_latest(tmp_path)
    assert (loaded["step"], len(damaged)) == (1, 1)
    assert damaged[0].startswith(f"{newest} cannot be used: ")


@pytest.mark.parametrize("writes", [0, 1])
def test_a_step_is_saved_again_without_a_moment_of_none(tmp_path, monkeypatch, writes):
    """Broken off before the new sum is there, and between it and the new checkpoint."""
    newest = checkpoint.save(tmp_path, 1, state(1))
    whole, written = checkpoint.write_atomic, []

    def write(path, data):
        if len(written) == writes:
            raise OSError(28, "No space left on device")
        written.append(path)
        whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", write)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, 1, state(1) | {"history": [{"step": 1}]})
    loaded, path, damaged = checkpoint.load_latest(tmp_path)
    assert (path, damaged, loaded["history"]) == (newest, [], [])
    checkpoint.save(tmp_path, 1, state(1) | {"history": [{"step": 1}]})
    loaded, path, damaged = checkpoint.load_latest(tmp_path)
    assert (path, damaged, loaded["history"]) == (newest, [], [{"step": 1}])
    assert len(list(tmp_path.iterdir())) == 2


def test_the_first_tensor_that_is_not_finite_is_named():
    inf = torch.tensor([1.0, float("inf")])
    state = {"step": 1, "model": {"bn.running_var": torch.ones(2)}, "optimizer": [{"momentum": inf}]}
    assert checkpoint.not_finite(state) == "optimizer.0.momentum"
    assert checkpoint.not_finite(state["model"] | {"count": torch.tensor(3), "average": None}) is None


def test_none_whole_is_the_users_to_know(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoint.load_latest(tmp_path)
    path = checkpoint.save(tmp_path, 1, state(1))
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="none of its 1 checkpoints"):
        checkpoint.load_latest(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "step-00000001.pt"
    torch.save({"step": Harm()}, path)
    import hashlib

    path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="it is no file of torch's: UnpicklingError"):
        checkpoint.load_latest(tmp_path)
    assert not (tmp_path / "made").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1))
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, state(2))
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert checkpoint.load_latest(tmp_path)[0]["step"] == 1


def write_for_ever(folder, step, pipe):
    """Checkpoints from `step` on; each one's number goes into the pipe once it is saved."""
    for number in itertools.count(step):
        checkpoint.save(folder, number, state(number, 300_000))
        os.write(pipe, f"{number}\n".encode())


def test_kill_while_writing_loses_nothing(tmp_path):
    """A process that does nothing but write checkpoints, killed 12 times at any moment."""
    processes = multiprocessing.get_context("fork")  # which have torch already
    step = 0
    for round_ in range(12):
        reader, writer = os.pipe()
        process = processes.Process(target=write_for_ever, args=(tmp_path, step + 1, writer))
        process.start()
        os.close(writer)
        with open(reader) as lines:
            lines.readline()  # it is writing now
            time.sleep(0.013 * round_)
            process.kill()
            said = [int(line) for line in lines.read().split()]
        process.join()
        loaded, _, damaged = checkpoint.load_latest(tmp_path)
        assert not damaged
        assert loaded["step"] >= max(said, default=step + 1)
        assert bool((loaded["model"]["weight"] == loaded["step"]).all())
        step = loaded["step"]


def test_digest_sees_every_bit():
    weights = {"a": torch.zeros(3), "b": torch.ones(2, dtype=torch.int64)}
    other = {"a": torch.tensor([0.0, 0.0, 1e-45]), "b": weights["b"]}
    assert checkpoint.digest(weights) == checkpoint.digest({name: t.clone() for name, t in weights.items()})
    assert checkpoint.digest(weights) != checkpoint.digest(other)


@pytest.mark.parametrize(("rank", "size", "wanted"), [(0, 2, 1.0), (1, 2, 4.0), (0, 1, 2.5), (2, 3, 2.5)])
def test_each_process_goes_on_with_its_own_sums_or_with_their_mean(rank, size, wanted):
    """Two processes have saved them."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    saved = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "average": None}
    saved |= {"step": 7, "history": [], "sums": [{"loss": 1.0}, {"loss": 4.0}]}
    progress = put_back(saved, net, optimizer, None, World(rank, size, torch.device("cpu")))
    assert progress.step == 7
    assert progress.sums == {"loss": torch.tensor(wanted, dtype=torch.float64)}
    assert progress.sums["loss"].dtype == torch.float64
