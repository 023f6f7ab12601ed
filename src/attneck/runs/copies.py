"""Each machine trains on its own copy of the data. All must be the same: each draws the order by itself."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from attneck.data.fingerprint import Fingerprint, changes, shortened
from attneck.errors import UserError, is_first_here
from attneck.tasks.task import Task
from attneck.training.distributed import World


def fingerprints_of(task: Task) -> dict[str, Fingerprint]:
    """Of the images of a task, by the part that they are."""
    sets = {"training": task.training, "held-out": task.held_out}
    return {name: images.fingerprint() for name, images in sets.items()}


def check_copies(everyone: World, classes: list[str], find: Callable[[], Mapping[str, Fingerprint]]) -> None:
    """Refuse, on every process, data that is not on each machine what it is where the first process runs.

    Args:
        classes: of the data here, in the order of their labels.
        find: gives the fingerprint of each part of the data here. The first process of each machine calls it:
            the others see the same files.

    Raises:
        UserError: another copy; it names the machine and the difference.
    """
    if everyone.size == 1:
        return
    here: dict[str, Any] = {"classes": classes, "data": dict(find()) if is_first_here() else {}}
    (name, first), *others = everyone.joined([(socket.gethostname(), here)])
    for other, there in others:
        if there["classes"] == first["classes"] and there["data"] in ({}, first["data"]):
            continue
        said = shortened(changes(first, there)) or "its images differ"
        raise UserError(
            f"{other} has other data than {name} ({said}), and their processes could not share it out: give "
            "every machine the same copy"
        )
