"""Not a test: forks of this process, which has imported torch already, and they need not."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def _as_rank(rank: int, around: dict[str, str], program: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    os.environ |= around | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return program(*words)


def as_ranks(program: Callable[..., Any], *words: Any, processes: int = 2) -> list[Any]:
    """What `program(*words)` gives in each of the processes, which have what torchrun tells its workers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    around = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": processes}
    around = {name: str(value) for name, value in (around | {"LOCAL_WORLD_SIZE": processes}).items()}
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        begun = [pool.submit(_as_rank, rank, around, program, words) for rank in range(processes)]
        return [each.result(timeout=300) for each in begun]


class Forked:
    """`attneck WORDS` in `folder`: a fork of this process, in a session of its own; it says into a file."""

    def __init__(
        self,
        folder: Path,
        words: list[str],
        prepare: Callable[[], object] = lambda: None,
        said: Path | None = None,
    ) -> None:
        self.said = said or folder / "said.txt"
        self.pid = os.fork()
        if self.pid:
            self.code: int | None = None
            return
        code: Any = 99
        try:
            os.setsid()
            os.chdir(folder)
            out = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            from attneck import cli

            sys.argv = ["attneck", *words]
            code = cli.main()
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended(self) -> bool:
        """Whether it has; its exit code is in `code` then."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self) -> None:
        """kill -9, if it goes on."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
