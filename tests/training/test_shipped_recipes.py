"""Every shipped recipe, as it is but small, takes its steps."""

import re

import pytest
import yaml

from attneck.commands import papers
from attneck.models import catalog
from attneck.models.cifar import CifarResNetOptions
from attneck.models.detector_options import DetectorOptions, RCNNOptions
from attneck.models.resnet import ResNetOptions
from attneck.runs import train as runs
from attneck.training.recipe import TIMM, Recipe
from attneck.training.recipe_file import SHIPPED, load_recipe, shipped_recipes

SMALL = {"channels": 32, "box_features": 64, "proposals": 50, "rois": 16}
THIN = {"depths": [1, 1, 1, 1], "widths": [16, 32, 64, 128]}


def small(name: str) -> Recipe:
    """The recipe with a few images, two steps, a small batch and a thin network; all else as it is."""
    recipe = load_recipe(name)
    content = recipe.model_dump()
    data, model = content["data"], content["model"]
    data |= {"train_size": 4, "val_size": 4, "workers": 0}
    content |= {"batch": 2, "epochs": 1, "steps": None, "steps_batch": None}
    content["schedule"] |= {"warmup_epochs": 0, "warmup_steps": 0}
    if data["name"] == "folder":
        data |= {"root": "tiny-imagenet-20", "image_size": 64, "train_size": 40}  # two of each class
        content["batch"] = 20
    options = None if model["name"].startswith(TIMM) else catalog.find(model["name"]).options
    if isinstance(options, ResNetOptions):
        model["options"] |= THIN
    elif isinstance(options, CifarResNetOptions):
        model["options"] |= {"depths": [1] * len(options.depths)}
        model["options"] |= {"mids": [16, 16, 16, 16], "outs": [64] * 4} if len(options.depths) == 4 else {}
    elif isinstance(options, DetectorOptions):
        data["val_size"] = 2
        if options.least_images == 1:
            data["train_size"], content["batch"] = 2, 1
        if model["name"] == "ssd300_vgg16":  # a VGG cannot be made thin
            model["name"] = "ssd300_mobilenet"
        if isinstance(options, RCNNOptions):
            data["image_size"] = 128
            model["options"] |= SMALL | THIN
            if model["options"].get("variant") == "c4":  # whose head is the network's last stage
                del model["options"]["box_features"]
            if "freeze_norms" in model["options"]:  # of trained weights, which there are none of here
                model["options"]["freeze_norms"] = False
        if data["name"] == "voc0712":  # of which there is a part of one year
            data |= {"name": "voc2007", "val_split": "val"}
    return Recipe.model_validate(content)


ALIKE = {f"coco-{epochs}x" for epochs in (2, 3, 6)}
"""coco-1x with other milestones, which two steps do not reach."""


def test_these_differ_from_coco_1x_in_their_milestones_alone():
    first = small("coco-1x")
    for name in ALIKE:
        other = small(name)
        assert min(other.schedule.milestones) > 2
        schedule = other.schedule.model_copy(update={"milestones": first.schedule.milestones})
        assert other.model_copy(update={"schedule": schedule, "reach": first.reach}) == first


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in shipped_recipes()],
)
def test_takes_its_steps(name, tmp_path):
    takes_its_steps(small(name), tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_takes_its_steps_with_a_whole_vgg(tmp_path):
    recipe = small("voc-ssd300")
    model = load_recipe("voc-ssd300").model
    takes_its_steps(recipe.model_copy(update={"model": model}), tmp_path)


def takes_its_steps(recipe, tmp_path):
    summary = runs.train(recipe, tmp_path / "run")
    assert summary.steps == 2
    assert 0 < summary.scores["train_loss"] < 40
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["model"]["name"]


def test_recipes_say_what_they_reach_and_how_to_run_them():
    for name in shipped_recipes():
        opening = (SHIPPED / f"{name}.yaml").read_text().split("reach:")[0]
        assert f"attneck train {name}" in opening, name


def test_a_heads_command_for_a_printed_network_is_that_of_a_row():
    """With the weights its detector starts from, and the stride its multiply-adds say."""
    from attneck.commands.recipe_words import parse

    chosen = papers.choose(None, None)
    printed = papers._recipes(chosen)
    commands = [papers._train(row, printed) for _, table in chosen for row in table.rows]
    rows = {command.rpartition(" && ")[2] for command in commands if command}
    wanted = [parse(name, words).recipe for _, _, name, *words in map(str.split, rows)]
    of_papers = {row.split()[2] for row in rows}
    assert of_papers == {name for name in shipped_recipes() if name in printed}
    seen = 0
    for name in sorted(of_papers):
        head = (SHIPPED / f"{name}.yaml").read_text().split("reach:")[0].replace("\\\n#", "")
        for line in re.findall(r"^#   attneck train \S+ (.*)$", head, re.MULTILINE):
            words = line.partition("#")[0].replace("FILE-OR-RUN", "runs/resnet101_bam").split()
            assert parse(name, words).recipe in wanted, (name, line)
            seen += 1
    assert seen > 15


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "imagenet-100",
            ["rate", "warm-up", "momentum 0.9", "Nesterov", "decay of weights alone", "bfloat16"],
        ),
        ("imagenet-200", ["rate", "warm-up", "cosine", "momentum", "what decays", "see imagenet-100"]),
        (
            "imagenet-350",
            [
                *("rate", "warm-up", "cosine", "momentum", "what decays", "batch 4096", "dropout 0.2"),
                *("two layers and label smoothing 0.1", "average of the weights", "as in imagenet-100"),
            ],
        ),
        (
            "imagenet-bam",
            ["90 epochs", "batch 256", "Nesterov", "decay 1e-4 of every parameter", "SqueezeNet"],
        ),
        ("cifar100-bam", ["200 epochs", "batch 128", "Nesterov", "5e-4 of every parameter"]),
        *[
            (f"coco-{times}x", ["momentum 0.9", "Nesterov", "decay of weights alone", "flip"])
            for times in (1, 2, 3, 6)
        ],
        ("coco-1280", ["as in coco-1x"]),
    ],
)
def test_a_paper_recipe_names_what_its_paper_does_not_give(name, words):
    head = " ".join((SHIPPED / f"{name}.yaml").read_text().split("reach:")[0].replace("#", "").split())
    assert [word for word in words if word not in head] == []


def test_paper_recipes_train_as_their_papers_and_heads_say():
    """BoTNet §2: SGD with momentum; A.2's codebase decays weights alone. BAM's published code decays all."""
    for name in shipped_recipes():
        optimizer = load_recipe(name).optimizer
        if name.startswith(("imagenet-", "coco-")) and name != "coco-overfit":
            assert not optimizer.nesterov, name
        if name in ("imagenet-bam", "cifar100-bam"):
            assert optimizer.decay_all, name
        elif name != "coco-bam" and name.startswith(("imagenet-", "coco-")):
            assert not optimizer.decay_all, name
    decays = {name: load_recipe(name).optimizer.weight_decay for name in shipped_recipes()}
    assert decays["imagenet-100"] == 1e-4
    assert decays["imagenet-200"] == 8e-5
    assert {decays[f"coco-{kind}"] for kind in ("1x", "2x", "3x", "6x", "1280")} == {4e-5}


def test_squeezenets_commands_have_its_own_rate():
    """It has no BatchNorm: the recipe's rate of 0.1 is not for it."""
    from attneck.commands.recipe_words import parse

    head = (SHIPPED / "imagenet-bam.yaml").read_text().split("reach:")[0]
    (command,) = re.findall(r"attneck train imagenet-bam (--model.name squeezenet\S+ .*\n.*)", head)
    words = command.replace("\\\n#", "").split()
    optimizer = parse("imagenet-bam", words).recipe.optimizer
    assert (optimizer.lr, optimizer.lr_batch, optimizer.weight_decay) == (0.04, 512, 2e-4)


def test_the_headers_have_the_ap_of_every_printed_row():
    """Of every row of the papers' detection tables that a recipe trains: its model and its AP."""
    chosen = papers.choose(None, None)
    recipes = papers._recipes(chosen)
    rows = [(row, papers._train(row, recipes)) for _, table in chosen for row in table.rows]
    detectors = [(row, command) for row, command in rows if command and row.detector]
    assert len(detectors) > 50
    for row, command in detectors:
        recipe = command.rpartition(" && ")[2].split()[2]  # after that of its trunk, if it has one
        opening = (SHIPPED / f"{recipe}.yaml").read_text().split("reach:")[0]
        assert row.detector in opening, command
        figures = [row.printed[key] for key in ("ap_bbox", "map_50", "ap_mask") if key in row.printed]
        assert figures or all(key.endswith("_delta") for key in row.printed), command  # A.5: gains alone
        assert " / ".join(figures) in opening, (command, figures)
