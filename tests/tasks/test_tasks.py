"""One dictionary of tasks, one protocol: every model's task is there, and has all that the protocol says."""

from typing import Protocol

import pytest
import torch
from PIL import Image
from torch import nn

from attneck.errors import UserError
from attneck.models.catalog import CATALOG
from attneck.runs.scored_on import scored_on
from attneck.runs.train import train
from attneck.tasks import TASKS, open_task, task_of
from attneck.tasks.classification import Classification
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


@pytest.mark.parametrize("accumulate", [1, 4])
def test_one_image_at_a_time_for_bam_is_refused_before_anything_is_made(tmp_path, accumulate) -> None:
    content = {
        "model": {"name": "cifar_resnet20_bam", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "shapes", "train_size": 8, "val_size": 8, "image_size": 24},
        "batch": accumulate,
        "accumulate": accumulate,
    }
    with pytest.raises(UserError, match=r"one image at a time .* give a greater batch, or a smaller accum"):
        train(Recipe.model_validate(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stages", [1, 3])
def test_one_image_at_a_time_where_stages_are_frozen(tmp_path, stages) -> None:
    """BAMs of frozen stages take no statistics, the others do; those that surgery put in learn everywhere."""
    model = {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}
    data = {"name": "shapes", "train_size": 8, "val_size": 8, "image_size": 24}
    rest = {"batch": 8, "steps": 1, "schedule": {"warmup_epochs": 0}, "pictures": False}
    plain = Recipe.model_validate({"model": model | {"name": "cifar_resnet20_bam"}, "data": data} | rest)
    start = train(plain, tmp_path / "start").folder
    frozen = {"optimizer": {"freeze": stages}, "batch": 1}
    bam = {"model": model | {"name": "cifar_resnet20_bam", "weights": str(start)}, "data": data}
    inserted = {"model": model | {"weights": str(start), "surgery": "insert_bam"}, "data": data}
    for content, learns in ((bam, stages < 3), (inserted, True)):
        recipe = Recipe.model_validate(content | rest | frozen)
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        if learns:
            with pytest.raises(UserError, match="one image at a time"):
                train(recipe, folder)
        else:
            assert train(recipe, folder).steps == 1


def test_frozen_norms_without_statistics_are_refused_before_anything_is_made(tmp_path, monkeypatch) -> None:
    """As of a detector on a backbone with BAM that starts from weights of one without."""
    build = Classification.build

    def unfilled(recipe, facts):
        model = build(recipe, facts)

        def check_statistics():
            raise ValueError("has no statistics yet")

        model.check_statistics = check_statistics
        return model

    monkeypatch.setattr(Classification, "build", staticmethod(unfilled))
    content = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "shapes", "train_size": 8, "val_size": 8, "image_size": 24},
        "batch": 4,
    }
    with pytest.raises(UserError, match="has no statistics yet"):
        train(Recipe.model_validate(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [({}, "held-out images"), ({"held-out": 1}, "images that it was trained on")],
)
def test_what_is_scored_elsewhere_is_told_by_its_fingerprint(changed, said) -> None:
    facts = {"data": {"training": 1, "held-out": 2} | changed}
    recipe = Recipe()
    assert scored_on(recipe, facts) == said
    assert scored_on(recipe, facts, facts["data"]["held-out"]) == said
    assert scored_on(recipe, facts, 1) == "images that it was trained on"
    assert scored_on(recipe, facts, 3) == "images of other data than its own"


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


def test_as_much_of_an_image_is_scored_as_asked(tmp_path) -> None:
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.linear_gradient("L").resize((40, 40)).save(tmp_path / split / name / "1.png")
    data = {"name": "folder", "root": str(tmp_path), "image_size": 28}
    seen = {}
    for share in (None, 1.0, 0.5):
        task = open_task(Recipe.model_validate({"data": {**data, "crop_pct": share}}), ALONE)
        assert task.describe()["crop_pct"] == (share or 0.875)
        rows = task.held_out.pixels([(0, 0)])[0, :, 14, 0].astype(int)
        seen[share] = rows[-1] - rows[0]  # of 255 over the whole height
    assert seen[0.5] == pytest.approx(seen[1.0] / 2, abs=8)
    assert seen[None] == pytest.approx(seen[1.0] * 0.875, abs=8)
    with pytest.raises(ValueError, match="shapes: crop_pct is given, but it takes"):
        open_task(Recipe.model_validate({"data": {"crop_pct": 0.9}}), ALONE)
    with pytest.raises(ValueError, match="crop_pct"):
        Recipe.model_validate({"data": {**data, "crop_pct": 0}})


def test_scored_images_are_resized_as_asked(tmp_path) -> None:
    """And what the model knows of it, and predictions, go by the same."""
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            Image.effect_noise((61, 53), 90).convert("RGB").save(tmp_path / split / name / "1.png")
    data = {"name": "folder", "root": str(tmp_path), "image_size": 28}
    image = Image.open(tmp_path / "val/a/1.png")
    seen = {}
    for way in (None, "bilinear", "bicubic"):
        recipe = Recipe.model_validate({"data": {**data, "interpolation": way}})
        task = open_task(recipe, ALONE)
        facts = task.describe()
        assert task.build(recipe, facts).pretrained_cfg["interpolation"] == (way or "bilinear")
        seen[way] = task.held_out[0, 0][0]
        assert torch.equal(task.prepared(image, facts), seen[way])
    assert torch.equal(seen[None], seen["bilinear"])
    assert not torch.equal(seen["bicubic"], seen["bilinear"])
    with pytest.raises(ValueError, match="shapes: interpolation is given, but it takes"):
        open_task(Recipe.model_validate({"data": {"interpolation": "bicubic"}}), ALONE)


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


def test_a_probability_of_just_the_least_is_told() -> None:
    """0 is the least where none is given, and what a sure network says of the others."""
    network = nn.Linear(1, 1)
    network.forward = lambda images: torch.tensor([[200.0, 0.0, 0.0]])
    facts = {
        "classes": ["a", "b", "c"],
        "image_size": 8,
        "crop_pct": 1.0,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    found = Classification.predict(network, Image.new("RGB", (8, 8)), facts)
    assert [row["score"] for row in found] == [1, 0, 0]
