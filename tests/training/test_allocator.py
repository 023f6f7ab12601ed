"""Freed memory is used again, without a new page from the system."""

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from attneck.training.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    for _ in range(30):
        torch.ones(64 * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()  # a few places are found until each tensor falls into one of them
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_tensor_as_large_as_the_last_faults_no_page() -> None:
    pages = 64 * 2**20 // resource.getpagesize()
    assert faults("leave") >= 30 * pages  # else there is nothing to mend
    assert faults("keep") < pages
