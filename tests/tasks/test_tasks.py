"""One dictionary of tasks, one protocol: every model's task is there, and has all that the protocol says."""

from typing import Protocol

import pytest

from attneck.models.catalog import CATALOG
from attneck.tasks import TASKS, task_of
from attneck.tasks.task import Task
from attneck.training.recipe import Recipe


def test_every_model_s_task_is_in_the_dictionary() -> None:
    assert {entry.task for entry in CATALOG.values()} == set(TASKS)


@pytest.mark.parametrize("name", ["cifar_resnet20", "timm/resnet18", "ssd300_mobilenet"])
def test_a_task_has_every_member_of_the_protocol(name: str) -> None:
    kind = task_of(Recipe.model_validate({"model": {"name": name}}))
    said = {member for member in vars(Task) if not member.startswith("_") or member == "__init__"}
    members = {*said, "finds_objects"} - set(vars(Protocol))
    assert len(members) > 9
    missing = sorted(member for member in members if not hasattr(kind, member))
    assert not missing
