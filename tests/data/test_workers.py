"""Workers live as long as their trainer: no signal to its group ends them earlier; none outlives it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from attneck import data
from attneck.data.workers import usual_workers

PARENT = """
import multiprocessing, os, signal, sys, time
import attneck.data as data
multiprocessing.set_start_method(sys.argv[1], force=True)
signal.signal(signal.SIGTERM, lambda *_: None)
set_ = data.open_dataset("shapes", "val", size=64)
batches = iter(data.loader(set_, data.TrainBatches(64, 2, seed=0, steps=10**6), workers=2))
print(*[worker.pid for worker in batches._workers], flush=True)
for _ in sys.stdin:
    next(batches)
    print("alive", flush=True)
batches._shutdown_workers()
"""


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize(
    "method",  # macOS spawns them, and Python 3.14 lets a server fork them
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_workers_outlive_signals_to_the_group_but_not_the_trainer(method: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, method],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        # At once, and again later: while the workers start, and when they are at work.
        os.killpg(parent.pid, signal.SIGTERM)
        time.sleep(0.5)
        os.killpg(parent.pid, signal.SIGTERM)
        # More batches than were prefetched: the workers must still be at work.
        for _ in range(20):
            parent.stdin.write("next\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "alive\n"
        assert all(map(_running, workers))
        parent.kill()
        parent.wait()
        limit = time.monotonic() + 20
        while any(map(_running, workers)) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not any(map(_running, workers))


@pytest.mark.parametrize(
    ("cuda", "cores", "processes", "workers"),
    [(False, 64, "1", 0), (True, 64, "1", 8), (True, 16, "4", 3), (True, 4, "1", 3), (True, 2, "8", 0)],
)
def test_workers_where_nobody_says(monkeypatch, cuda, cores, processes, workers):
    """As many as there are cores to spare, where a GPU waits for images; none beside a network on the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "fork")
    scenes = data.open_detection("shapes", "val", size=2)
    assert usual_workers(scenes) == workers
    assert usual_workers(data.open_dataset("shapes", "val", size=2)) == 0
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "forkserver")
    assert usual_workers(scenes) == 0
