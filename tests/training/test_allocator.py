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
MIB = 64
torch.ones(MIB * 2**18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(MIB * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_tensor_as_large_as_the_last_faults_no_page() -> None:
    pages = 64 * 2**20 // resource.getpagesize()
    assert faults("leave") >= 20 * pages  # else there is nothing to mend
    assert faults("keep") < 2 * pages  # the first may not fit where the one before it lay
