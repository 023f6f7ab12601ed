"""A run's checkpoints, written while the next steps are taken; and the best of them kept."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attneck.errors import RunFailed, UserError
from attneck.training import checkpoint, state
from attneck.training.background import Background
from attneck.training.best import Keeper
from attneck.training.checkpoint_files import checkpoints
from attneck.training.distributed import World
from attneck.training.state import Progress


class Saver:
    """Writes one checkpoint at a time, on the first process; all processes call it alike.

    Leaving the context waits for the one that is being written.

    Args:
        folder: the run's.
        decides: the score that the best checkpoint is kept by; None keeps none.
    """

    def __init__(self, folder: Path, decides: str | None, world: World) -> None:
        self.folder, self.world = folder, world
        self._writer = Background()
        self._keeper: Keeper | None = None
        if decides is not None and world.rank == 0:
            self._keeper = Keeper(folder / "checkpoints", decides)

    @property
    def failed(self) -> bool:
        """Whether the last one could not be written, which `settle` will raise."""
        return self._writer.failed

    def go_on_from(self, progress: Progress) -> None:
        """Keep of the best ones what this checkpoint's history calls for."""
        if self._keeper is not None:
            self._keeper.saved(progress.history, progress.step)

    def settle(self, step: int) -> None:
        """The last checkpoint is whole, or the run ends with what kept it from being so, on all processes."""
        error = self._writer.end()
        if self.world.maximum([float(error is not None)])[0]:
            raise error or RunFailed(f"step {step + 1}: the first process cannot go on")

    def save(self, content: dict[str, Any], step: int, epoch: int) -> None:
        """Held up by the copy: the file is written while the next steps are taken, after the file before.

        Args:
            content: the checkpoint, on the first process.

        Raises:
            RunFailed: a value of it is not finite, on all processes.
        """
        fault = checkpoint.not_finite(content)
        if self.world.maximum([float(fault is not None)])[0]:  # all processes end together
            fault = fault or "a value on the first process"
            raise RunFailed(
                f"step {step} (epoch {epoch}): {fault} is not finite, and was not saved. Try a lower "
                f"optimizer.lr; {left(self.folder)}"
            )
        if self.world.rank == 0:
            self._writer.start(partial(self._write, state.copied(content)))

    def _write(self, content: dict[str, Any]) -> None:
        checkpoint.save(self.folder / "checkpoints", content["step"], content)
        if self._keeper is not None:
            self._keeper.saved(content["history"], content["step"])

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *of_error: object) -> None:
        self._writer.end()


def left(folder: Path) -> str:
    """What a run that fails leaves behind."""
    there: list[Path] = []
    with suppress(UserError):  # the folder itself can't be read
        there = checkpoints(folder / "checkpoints")
    return f"{there[0].name} is whole" if there else "there is no checkpoint yet"
