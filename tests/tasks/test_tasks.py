"""One dictionary of tasks, one protocol: every model's task is there, and has all that the protocol says."""

from typing import Protocol

import pytest
import torch
from PIL import Image

from attneck.models.catalog import CATALOG
from attneck.tasks import TASKS, open_task, task_of
from attneck.tasks.task import Task
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

ALONE = World(0, 1, torch.device("cpu"))


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


def test_a_root_one_folder_too_high_is_refused(tmp_path) -> None:
    """Images lie at any depth under a class's folder, so all of them would be of the class "photos"."""
    for name in ("cat", "dog"):
        for number in range(8):
            file = tmp_path / "photos" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(file)
    data = {"name": "folder", "root": str(tmp_path), "val_share": 0.3}
    with pytest.raises(ValueError, match="all images are of one class, photos") as error:
        open_task(Recipe.model_validate({"data": data}), ALONE)
    assert len(str(error.value)) < 300
    data["root"] += "/photos"
    assert open_task(Recipe.model_validate({"data": data}), ALONE).held_out.classes == ("cat", "dog")


def test_a_class_without_a_training_image_is_refused(tmp_path) -> None:
    """Of a class of one image, and of many; of those held out fewer may do."""
    for split in ("train", "val"):
        for name, count in (("cat", 40), ("dog", 40), ("emu", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    data = {"name": "folder", "root": str(tmp_path), "val_size": 2}

    def opened(**options):
        return open_task(Recipe.model_validate({"data": data | options}), ALONE)

    with pytest.raises(
        ValueError, match=r"data\.train_size 9 leaves emu no training image: give a larger one"
    ):
        opened(train_size=9).training  # noqa: B018
    with pytest.raises(ValueError, match="leaves dog no training image, and 1 more classes: give"):
        opened(train_size=1).training  # noqa: B018
    assert len(opened(train_size=81).training) == 81
    assert len(opened(train_size=81, val_split="train").held_out) == 2
