"""Freed memory is used again, without a new page from the system; and pages are huge."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Each function runs in a fork of its own of one process, whose memory nobody has set up before.
PROGRAM = """
import json, os, resource, sys
import torch
from attneck.training.allocator import keep_freed_memory, use_huge_pages

def faults():
    for _ in range(10):
        torch.ones(40 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def more():
    for _ in range(3):
        before = faults()  # a few places are found until each tensor falls into one of them
    return faults() - before

def kept():
    left = more()
    assert keep_freed_memory()
    return left, more()

def held():
    _, all_, of_files, *_ = map(int, open("/proc/self/statm").read().split())
    return (all_ - of_files) * resource.getpagesize() >> 20

def given_up():
    assert keep_freed_memory()
    assert keep_freed_memory()
    torch.ones(200 * 2**18)
    before = held()
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, str(before - held()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 100))

def huge(limit, of):
    resource.setrlimit(getattr(resource, of), (limit, limit))
    assert keep_freed_memory()
    used = use_huge_pages()
    tensors = [torch.ones(size * 2**18) for size in (40, 300)]
    marks, inside = [False] * len(tensors), []
    for line in open("/proc/self/smaps"):
        first, *rest = line.split()
        if "-" in first:
            low, high = (int(end, 16) for end in first.split("-"))
            inside = [low <= tensor.data_ptr() + 2**22 < high for tensor in tensors]
        elif first == "VmFlags:":
            marks = [mark or (here and "hg" in rest) for mark, here in zip(marks, inside)]
    taken = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    assert taken < 2**30, taken
    return [used, *marks]

for name, *words in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        print(json.dumps([[name, *words], globals()[name](*words)]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(name)
"""
LIMITS = ("RLIMIT_AS", "RLIMIT_DATA")
CALLS = [["kept"], ["given_up"], ["huge", -1, "RLIMIT_AS"], *(["huge", 2**46, of] for of in LIMITS)]


@pytest.fixture(scope="module")
def said() -> Any:
    """What a call gives."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CALLS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]

    def of(*call: Any) -> Any:
        (found,) = (result for words, result in results if words == [*call])
        return found

    return of


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's")


def test_a_tensor_as_large_as_the_last_faults_no_page(said: Any) -> None:
    pages = 40 * 2**20 // resource.getpagesize()
    left, kept = said("kept")
    assert left >= 10 * pages  # else there is nothing to mend
    assert kept < pages


def test_freed_memory_is_not_held_twice(said: Any) -> None:
    assert said("given_up") > 190


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="Linux with huge pages")
def test_tensors_lie_in_huge_pages(said: Any) -> None:
    assert said("huge", -1, "RLIMIT_AS") == [True, True, True]


@pytest.mark.parametrize("of", LIMITS)
def test_addresses_are_not_taken_where_they_are_few(said: Any, of: str) -> None:
    assert said("huge", 2**46, of) == [False, False, False]
