"""Freed memory is used again, without a new page from the system."""

import resource
import subprocess
import sys

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
