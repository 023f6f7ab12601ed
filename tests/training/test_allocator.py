"""Freed memory is used again, without a new page from the system; and pages are huge."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import torch
from attneck.training.allocator import keep_freed_memory

def faults():
    for _ in range(10):
        torch.ones(40 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def more():
    before = faults()  # a few places are found until each tensor falls into one of them
    return faults() - before
left = more()
assert keep_freed_memory()
print(left, more())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_tensor_as_large_as_the_last_faults_no_page() -> None:
    pages = 40 * 2**20 // resource.getpagesize()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    left, kept = map(int, done.stdout.split())
    assert left >= 10 * pages  # else there is nothing to mend
    assert kept < pages


FORK = """
import os, resource
import torch
from attneck.training.allocator import keep_freed_memory

def held():
    _, all_, of_files, *_ = map(int, open("/proc/self/statm").read().split())
    return (all_ - of_files) * resource.getpagesize() >> 20
assert keep_freed_memory()
assert keep_freed_memory()
torch.ones(200 * 2**18)
before = held()
if not (child := os.fork()):
    print(before - held(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_not_held_twice() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 190


HUGE = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(getattr(resource, sys.argv[2]), (limit, limit))
import torch
from attneck.training.allocator import keep_freed_memory, use_huge_pages

assert keep_freed_memory()
print(use_huge_pages())
tensors = [torch.ones(size * 2**18) for size in (40, 300)]
marks, inside = [False] * len(tensors), []
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first:
        low, high = (int(end, 16) for end in first.split("-"))
        inside = [low <= tensor.data_ptr() + 2**22 < high for tensor in tensors]
    elif first == "VmFlags:":
        marks = [mark or (here and "hg" in rest) for mark, here in zip(marks, inside)]
print(*marks)
held = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
assert held < 2**30, held
"""


def huge(limit: int, of: str) -> list[str]:
    command = [sys.executable, "-c", HUGE, str(limit), of]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="Linux with huge pages")
def test_tensors_lie_in_huge_pages() -> None:
    assert huge(resource.RLIM_INFINITY, "RLIMIT_AS") == ["True", "True", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("of", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_addresses_are_not_taken_where_they_are_few(of: str) -> None:
    assert huge(2**46, of) == ["False", "False", "False"]
