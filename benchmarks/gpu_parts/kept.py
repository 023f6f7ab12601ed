"""What a part has found: one JSON document, whole after each row, that the next call goes on from."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attneck.errors import UserError, one_line
from attneck.files import write_atomic

UNFINISHED, DONE, NOT_HERE, FAILED = "unfinished", "done", "not here", "failed"
TRIES = 3
"""Times that what is under way may see its process end before it is left out for good."""


@dataclass(frozen=True)
class Job:
    """What a part is asked for.

    Attributes:
        out: the folder of the documents.
        device: "cuda" or "cpu".
        tiny: sizes that only show that everything runs.
        until: by `time.monotonic`, when the part's time is over.
        runs: the folder of the training runs.
    """

    out: Path
    device: str
    tiny: bool
    until: float
    runs: Path

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


class NotHere(Exception):  # noqa: N818 - no fault
    """What a part needs is not on this machine: one line."""


class Kept:
    """A part's document, written after each change.

    Attributes:
        rows: by key.
        left_out: why, by a row's key and who of it ("" for the whole row).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document: dict[str, Any] = {"state": UNFINISHED, "rows": {}, "left_out": {}, "tries": {}}
        if path.exists():
            try:
                self.document |= json.loads(path.read_bytes())
            except (ValueError, TypeError):
                raise UserError(f"{path} is no document of this command: move it away") from None
        self.rows: dict[str, Any] = self.document["rows"]
        self.left_out: dict[str, dict[str, str]] = self.document["left_out"]

    def on(self, where: dict[str, Any]) -> None:
        """Say where this is measured.

        Raises:
            UserError: the rows that are there were measured elsewhere.
        """
        before = self.document.get("where", where)
        if self.rows and (different := [name for name in where if before.get(name) != where[name]]):
            name = different[0]
            raise UserError(
                f"{self.path} was measured with {name} {before.get(name)}, and here it is {where[name]}: "
                "give another --out"
            )
        self.document["where"] = where
        self.write()

    def doing(self, key: str, who: str = "") -> None:
        """Note what is under way: should the process end in it, it is known what it died of."""
        self.document["under_way"] = {"key": key, "who": who, "since": time.time()}
        self.write()

    def row(self, key: str, row: dict[str, Any]) -> None:
        """A row is measured, by the sources as they are."""
        self.document.pop("under_way", None)
        self.rows[key] = row | {"sources": sources()}
        self.write()

    def leave_out(self, key: str, why: str, who: str = "") -> None:
        """A row that is not measured on this machine, or somebody of it who is not."""
        self.left_out.setdefault(key, {})[who] = why
        self.write()

    def ended_in(self, why: str, counts: int = TRIES) -> bool:
        """The process ended in what was under way: leave it out, after TRIES / `counts` times of it.

        False where nothing was under way.
        """
        under_way = self.document.pop("under_way", None)
        if under_way is None:
            return False
        key, who = under_way["key"], under_way["who"]
        tries = self.document["tries"]
        name = f"{key}, {who}" if who else key
        tries[name] = tries.get(name, 0) + counts
        if tries[name] >= TRIES:
            self.leave_out(key, why, who)
        self.write()
        return True

    def close(self, state: str, why: str = "") -> None:
        """How it stands at the end of a call."""
        self.document |= {"state": state, "why": one_line(why, 500)}
        self.write()

    def write(self) -> None:
        """All of it, or nothing."""
        write_atomic(self.path, (json.dumps(self.document, indent=1, ensure_ascii=False) + "\n").encode())


_sources: list[str] = []


def sources() -> str:
    """A short digest of the package's sources: rows of two of them are not of one program."""
    if not _sources:
        import attneck

        root = Path(attneck.__file__).parent
        digest = hashlib.sha256()
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
        _sources.append(digest.hexdigest()[:8])
    return _sources[0]


def where(job: Job) -> dict[str, Any]:
    """What rows of one document share."""
    import torch

    return {
        "gpu": torch.cuda.get_device_name() if job.device == "cuda" else None,
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if job.device == "cuda" else None,
        "tiny": job.tiny,
    }
