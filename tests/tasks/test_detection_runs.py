"""Runs of detectors: they learn, resume to the same bits, are scored over all processes, and predict."""

import json
from pathlib import Path

import pytest
import torch
from forked import as_ranks
from PIL import Image
from small_run import broken_off_after, thin_mask_rcnn

from attneck import cli, create_model, hub
from attneck.detection.metrics import check_detections, coco_scores
from attneck.errors import UserError
from attneck.explain import detections
from attneck.files import NotWritten
from attneck.runs import train as runs
from attneck.runs.first_weights import start_from
from attneck.runs.run import Run
from attneck.runs.scored_on import OTHER
from attneck.tasks import open_task
from attneck.tasks.detection import Detection, headline, score
from attneck.training import checkpoint
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

ALONE = World(0, 1, torch.device("cpu"))
TINY = {
    "model": thin_mask_rcnn(proposals=50),
    "data": {"name": "shapes", "image_size": 96, "augment": "flip", "train_size": 12, "val_size": 5},
    "optimizer": {"lr": 0.02, "nesterov": False},
    "batch": 4,
    "epochs": 4,
    "eval_epochs": 2,
}


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(TINY | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder."""
    folder = tmp_path_factory.mktemp("detection") / "run"
    runs.train(recipe(ema=0.5), folder)
    return folder


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_loss_is_told_and_the_sum_falls(trained):
    first, last = records(trained)
    assert [first["epoch"], last["epoch"]] == [2, 4]  # scored every second epoch
    parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    for record in (first, last):
        total = sum(record[f"train_loss_{part}"] for part in parts)
        assert total == pytest.approx(record["train_loss"], rel=1e-5)
        assert {f"{prefix}_{kind}_AP50" for prefix in ("val", "ema") for kind in ("box", "mask")} <= set(
            record
        )
    assert last["train_loss"] < first["train_loss"]


def test_resumed_ends_with_the_same_bits(tmp_path):
    """Broken off amid what is summed for the next record; the last record is of a part of an epoch."""
    wanted = recipe(epochs=None, steps=5, checkpoint_steps=1)
    straight = runs.train(wanted, tmp_path / "straight")
    with broken_off_after(2):
        runs.train(wanted, tmp_path / "broken")
    resumed = runs.train(wanted, tmp_path / "broken", resume=True)
    assert resumed.weights == straight.weights
    assert resumed.scores["epoch"] == pytest.approx(5 / 3, abs=1e-3)
    for key in ("train_loss", "train_loss_mask", "val_box_AP", "lr"):
        assert resumed.scores[key] == straight.scores[key]


def test_eval_prints_the_papers_table_and_writes_cocos_results(trained, capsys):
    assert cli.main(["eval", str(trained)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].split()[:3] == ["APbb", "APbb50", "APbb75"]
    assert [line.split("  ")[0] for line in said[2:4]] == ["weights", "their average"]

    assert cli.main(["eval", str(trained), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    detections = json.loads((trained / "detections.json").read_text())
    truth = open_task(recipe(), ALONE).held_out.ground_truth()
    check_detections(truth, detections, "bbox")
    assert coco_scores(truth, detections) == document["scores"]["ema"]
    last = records(trained)[-1]
    for prefix in ("val", "ema"):
        assert document[f"{prefix}_mask_AP50"] == pytest.approx(last[f"{prefix}_mask_AP50"], abs=1e-6)


def test_the_scores_are_told_where_detections_cannot_be_kept(trained, tmp_path, monkeypatch, capsys):
    """With --out they lie there, and nothing of the run changes."""
    kept = trained / "detections.json"
    kept.unlink(missing_ok=True)
    assert cli.main(["eval", str(trained), "--json", "--out", str(tmp_path / "out")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["detections"] == str(tmp_path / "out/detections.json")
    assert json.loads((tmp_path / "out/detections.json").read_text())
    assert not kept.exists()

    def full(path, data):
        raise NotWritten(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("attneck.commands.eval.write_atomic", full)
    assert cli.main(["eval", str(trained)]) == 0
    said = capsys.readouterr()
    assert "APbb50" in said.out
    assert "the detections are not kept: " in said.err
    assert "detections  " not in said.out


def test_of_other_data_the_detections_do_not_replace_the_run_s_own(trained, monkeypatch, capsys):
    kept = trained / "detections.json"
    kept.write_text("[]")
    monkeypatch.setattr("attneck.runs.scored_on.scored_on", lambda *_: OTHER)
    assert cli.main(["eval", str(trained), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    place = Path(document["files"][0]).parent
    assert document["detections"] == str(place / "detections.json")
    assert json.loads((place / "detections.json").read_text())
    assert kept.read_text() == "[]"
    kept.unlink()


def test_processes_share_the_held_out_images(trained, monkeypatch):
    """Each of two finds what one finds in its part; put together it is the same, in the same order."""
    known = Run(trained)
    model, alone = known.model(), Detection(known.recipe, ALONE)
    asked = []
    plain = model.forward
    monkeypatch.setattr(model, "forward", lambda images: asked.append(len(images)) or plain(images))
    monkeypatch.setattr(World, "joined", lambda self, rows: rows)
    monkeypatch.setattr(World, "total", lambda self, values: values)
    with torch.inference_mode():
        whole = alone.report(model).detections
        assert sum(asked) == 5
        worlds = [World(rank, 2, ALONE.device) for rank in (0, 1)]
        parts = [Detection(known.recipe, one).report(model).detections for one in worlds]
    assert sum(asked) == 10
    assert parts[0]
    assert parts[1]
    assert [row["image_id"] for row in parts[0] + parts[1]] == [row["image_id"] for row in whole]


def test_two_processes_score_as_one(tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"epochs": 1}))
    assert as_ranks(cli.main, ["train", "tiny.yaml", "--out", "run"]) == [0, 0]
    capsys.readouterr()
    assert cli.main(["eval", "run", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    for key, value in records(tmp_path / "run")[-1].items():
        if key.startswith("val_"):
            assert one[key] == pytest.approx(value, abs=0.1), key


def test_predict_draws_and_tells(trained, tmp_path, monkeypatch):
    size = (160, 120)
    monkeypatch.setattr("attneck.explain.detections.LONGEST", 160)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / place / "noise.png")
    images = [str(tmp_path / place / "noise.png") for place in ("a", "b")]
    words = ["predict", str(trained), *images, "--out", str(tmp_path / "out"), "--min-score", "0"]
    assert cli.main(words) == 0
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(image["width"], image["height"]) for image in document["images"]] == [size] * 2
    (found,) = document["runs"]
    assert found["detections"]
    classes = Run(trained).facts["classes"]
    for row in found["detections"]:
        assert row["category"] in classes
        assert row["segmentation"]["size"] == [120, 160]
    # Two images of one name; each picture in the proportions of its image.
    for name in ("noise", "noise-2"):
        with Image.open(tmp_path / f"out/{name}.png") as picture:
            assert picture.size == size

    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "both")
    assert cli.main([*words, "--beside", str(trained)]) == 0
    assert (tmp_path / "both/noise.png").read_bytes() != (tmp_path / "out/noise.png").read_bytes()
    assert len(json.loads((tmp_path / "both/predictions.json").read_text())["runs"]) == 2


def test_predict_shows_what_is_in_held_out_images(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("attneck.explain.detections.LONGEST", 160)
    drawn = []
    monkeypatch.setattr("attneck.explain.detections.draw", spy(drawn, detections.draw))
    out = tmp_path / "out"
    assert cli.main(["predict", str(trained), "--held-out", "2", "--out", str(out)]) == 0
    truth = open_task(Run(trained).recipe, ALONE).held_out.ground_truth()
    wanted = [truth["images"][0]["id"], truth["images"][len(truth["images"]) // 2]["id"]]
    shown = [rows for rows in drawn if rows and "score" not in rows[0]]
    assert [rows[0]["image_id"] for rows in shown] == wanted
    assert [len(rows) for rows in shown] == [
        sum(row["image_id"] == image for row in truth["annotations"]) for image in wanted
    ]
    assert len([*out.glob("*.png")]) == 2


def spy(drawn, draw):
    def keep(image, rows, numbers=None):
        drawn.append(rows)
        return draw(image, rows, numbers)

    return keep


def test_nothing_to_find_is_minus_one():
    found = {"AP": -1.0, "AP50": -1.0, "AP75": 0.5, "APs": -1.0, "APm": 0.25, "APl": 0.75, "AR1": 0.1}
    assert headline({"bbox": found}) == {
        "box_AP": -1,
        "box_AP50": -1,
        "box_AP75": 50,
        "box_APs": -1,
        "box_APm": 25,
        "box_APl": 75,
    }
    assert headline({"mAP": 0.25, "classes": {}}) == {"mAP": 25}


def test_nothing_found_scores_nothing():
    scores = headline(score(open_task(recipe(), ALONE).held_out, [], "coco")[0])
    assert {scores[f"{kind}_{name}"] for kind in ("box", "mask") for name in ("AP", "AP50", "AP75")} == {0.0}
    assert set(scores.values()) <= {0.0, -1.0}  # of a size that no object has


def test_curves_show_ap(trained, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        assert cli.main(["curves", str(trained), "--out", str(tmp_path / "curves.svg")]) == 0
    assert "Box AP" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["RUN", "nowhere.png"], "cannot read nowhere.png"),
        (["RUN", "broken.png"], "cannot read broken.png"),
        (["RUN"], "no image given"),
        (["RUN", "--held-out", "10000"], "choose"),
        (["RUN", "--held-out", "-1"], "give how many"),
        (["nowhere", "image.png"], "no model or run is called 'nowhere'"),
        (["RUN", "image.png", "--beside", "nowhere"], "no model or run is called 'nowhere'"),
        (["RUN", "image.png", "--beside", "classifier"], "one of the two models finds boxes, one classes"),
        (["RUN", "image.png", "--min-score", "2"], "give 0 to 1"),
        (["RUN", "--held-out", "1", "--max-pixels", "9"], "held-out images have the recipe's own limit"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_predict_refuses_in_a_line(trained, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    hub.save(create_model("cifar_resnet20"), tmp_path / "classifier")
    assert cli.main(["predict", *(str(trained) if word == "RUN" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", [["eval"], ["export", "net"]])
def test_a_detector_s_statistics_are_not_taken_anew(trained, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    words = [command[0], str(trained), *command[1:], "--recalibrate", "4"]
    assert cli.main(words) == 2
    assert "statistics are taken anew of classifiers alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing is of classifiers"),
        ({"data": {**TINY["data"], "image_sizes": [64]}}, "data.image_sizes is of classifiers"),
        ({"data": {**TINY["data"], "md5": ["0"]}}, "md5 is given"),
        ({"data": {"name": "cifar100"}}, "data set is 'cifar100': choose shapes, coco"),
        (
            {"data": {**TINY["data"], "augment": "inception"}},
            "augment for shapes is 'inception': choose none",
        ),
        ({"data": {**TINY["data"], "val_split": "test"}}, "split of shapes is 'test'"),
        ({"model": {"name": "stairnet_mobilenet"}, "batch": 1}, "wants 2 images or more"),
        ({"model": {"name": "fasterrcnn_resnet18_bam"}, "batch": 1}, "wants 2 images or more"),
        ({"model": {"name": "fasterrcnn_resnet18", "options": {"freeze_norms": True}}}, "nothing is loaded"),
        ({"model": {**TINY["model"], "surgery_options": {"stage": -1}}}, "for classifiers"),
        ({"model": {**TINY["model"], "weights": "nowhere.safetensors"}}, "nowhere.safetensors"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_does_not_go_together_is_refused_before_training(tmp_path, changes, says):
    with pytest.raises(UserError, match=says) as error:
        runs.train(recipe(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_backbone_begins_with_a_runs_weights(tmp_path, capsys):
    """A classifier's run fills the trunk but for what attention replaced; a resumed run needs it no more."""
    thin = {"name": "resnet26_thin", "options": {"depths": [1, 1, 1, 1]}}
    images = {"name": "shapes", "image_size": 32, "train_size": 8, "val_size": 4}
    runs.train(
        Recipe.model_validate({"model": thin, "data": images, "batch": 4, "ema": 0.5}), tmp_path / "thin"
    )
    begun = recipe(model={**TINY["model"], "weights": str(tmp_path / "thin")}, epochs=1)
    task = open_task(begun, ALONE)
    model = task.build(begun, task.describe())
    said = task.start(model, Run(tmp_path / "thin").weights())
    assert "3 new (layer4.0.conv2 (MHSA2d): 3)" in str(said)
    assert "layer4.0.conv2.rel_h" in said.new
    state, _, _ = checkpoint.load_latest(tmp_path / "thin/checkpoints")
    assert torch.equal(model.backbone.body.model.conv1.weight, state["average"]["module.conv1.weight"])

    runs.train(begun, tmp_path / "run")
    assert "tensors taken" in capsys.readouterr().err
    (tmp_path / "thin").rename(tmp_path / "moved")
    assert runs.train(begun, tmp_path / "run", resume=True).steps == 3


def test_a_backbone_begins_with_an_exported_model_s_weights(tmp_path, capsys):
    thin = {"name": "resnet26_thin", "options": {"depths": [1, 1, 1, 1]}}
    images = {"name": "shapes", "image_size": 32, "train_size": 8, "val_size": 4}
    runs.train(Recipe.model_validate({"model": thin, "data": images, "batch": 4}), tmp_path / "thin")
    hub.save(Run(tmp_path / "thin"), tmp_path / "saved", mean=(0.1, 0.2, 0.3))
    begun = recipe(model={**TINY["model"], "weights": str(tmp_path / "saved")}, epochs=1)
    task = open_task(begun, ALONE)
    model = task.build(begun, task.describe())
    said = " ".join(start_from(begun.model, task, model, verbose=False))
    assert "saved: " in said
    assert "saved were normalised otherwise (mean [0.1, 0.2, 0.3], here" in said
    body, theirs = model.backbone.body.model, Run(tmp_path / "thin").weights()
    assert torch.equal(body.conv1.weight, theirs["conv1.weight"])
    (tmp_path / "saved/model.safetensors").unlink()
    with pytest.raises(ValueError, match="is a folder with no run and no model"):
        start_from(begun.model, task, model, verbose=False)


@pytest.mark.data
def test_the_masks_follow_the_detector():
    """COCO's images come without masks where there is no head for them; VOC has none."""
    data = {"name": "coco", "train_size": 2, "val_size": 2}
    for name, masks in (("maskrcnn_botnet26_thin", True), ("fasterrcnn_botnet26_thin", False)):
        task = open_task(Recipe.model_validate({"model": {"name": name}, "data": data}), ALONE)
        assert ("masks" in task.training[0, 0][1]) == masks
        assert task.training[0, 0][0].shape[1:] != task.held_out[0, 0][0].shape[1:]  # a square; as it is
