"""A run's report: what is in it, that nothing is fetched, and that no run is lost or changed by it."""

import json
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from attneck import cli
from attneck.explain import maps
from attneck.measure import count
from attneck.runs import pictures, report, snapshots
from attneck.runs.printed import printed
from attneck.runs.report.story import read_story
from attneck.runs.report.words import in_words
from attneck.runs.run import Run
from attneck.runs.train import train
from attneck.training import loop
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import load_recipe, shipped_recipes

DRAW, TAKE = pictures.draw_pictures, snapshots.Snapshots.take
CLASSES = ["<script>alert(1)", "a&b \"c' <img src=x>"]


@pytest.fixture(autouse=True)
def with_pictures(monkeypatch):
    monkeypatch.setattr(pictures, "draw_pictures", DRAW)
    monkeypatch.setattr(snapshots.Snapshots, "take", TAKE)


def recipe(root, **fields):
    content = {
        "reach": "100 % of <b>",
        "model": {"name": "cifar_resnet20_bot_bam", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "folder", "root": str(root), "image_size": 16},
        "batch": 4,
        "epochs": 2,
    }
    return Recipe.model_validate(content | fields)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, one of it that was broken off in its last scoring and resumed, and one without pictures."""
    place = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for split, name in ((split, name) for split in ("train", "val") for name in CLASSES):
        (place / "data" / split / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "data" / split / name / f"{number}.png")
    evaluate, calls = loop.evaluate, []

    def broken(*words):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_pictures", DRAW)
        patch.setattr(snapshots.Snapshots, "take", TAKE)
        train(recipe(place / "data"), place / "<i>run")
        train(recipe(place / "data", pictures=False), place / "plain")
        patch.setattr(loop, "evaluate", broken)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(place / "data"), place / "broken")
        (place / "broken").rename(place / "killed")
        shutil.copytree(place / "killed", place / "resumed")
        train(recipe(place / "data"), place / "resumed", resume=True)
    return place


class Read(HTMLParser):
    """The elements of a page, the words between them, and what would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.words, self.fetched, self.alone = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids.add(attrs.get("id"))
        self.fetched += [attrs[name] for name in ("src", "href", "xlink:href") if name in attrs]
        self.fetched += re.findall(r"url\(([^)]*)\)", attrs.get("style") or "")
        if tag == "img" and not attrs.get("alt"):
            self.alone.append(attrs)
        assert not any(name.startswith("on") for name in attrs), attrs

    def handle_data(self, data):
        self.words.append(data)


def page(folder):
    return Read((folder / "report.html").read_text())


def test_a_run_ends_with_its_report(place):
    found = page(place / "<i>run")
    parts = {"scores", "curves", "attention", "predictions", "classes", "recipe", "cost", "environment"}
    assert parts <= found.ids
    said = " ".join(found.words)
    summary = Run(place / "<i>run").summary
    assert f"{summary['val_loss']:.4f}" in said
    assert "ended after 4 steps" in said
    assert (place / "<i>run/report.html").stat().st_size < 2 << 20
    assert "no score of this network" in said
    cost = json.loads((place / "<i>run/cost.json").read_text())
    counts = count(Run(place / "<i>run").model(), 16)
    assert cost == {"params": counts.params, "madds": counts.madds}
    assert f"{cost['params']:,}" in said


def test_images_that_were_trained_on_are_not_called_held_out(place, tmp_path):
    shutil.copytree(place / "<i>run", tmp_path / "run")
    facts = json.loads((tmp_path / "run/data.json").read_text())
    facts["data"]["held-out"] = facts["data"]["training"]
    (tmp_path / "run/data.json").write_text(json.dumps(facts))
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    said = " ".join(page(tmp_path / "run").words)
    assert "The same images that it was trained on before training" in said
    assert "Images that it was trained on are scored after" in said
    assert "scored images" in said
    assert not re.search("held[- ]out", said)


def test_nothing_is_fetched_and_nothing_breaks_out(place):
    text = (place / "<i>run/report.html").read_text()
    found = Read(text)
    assert "script" not in found.tags
    assert "<script" not in text
    assert "<i>run" not in text.replace("&lt;i&gt;run", "")
    assert all(name in " ".join(found.words) for name in (*CLASSES, "<i>run", "100 % of <b>"))
    assert all(one.startswith(("data:image/", "#")) for one in found.fetched), found.fetched
    assert len([one for one in found.fetched if one.startswith("data:")]) > 20
    assert not found.alone
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    assert not re.search(r"@import|url\((?!data:|#|&quot;data:)", text)


def snapshots_of(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "snapshots").iterdir())}


def test_a_resumed_run_has_the_snapshots_of_one_left_alone(place):
    whole = snapshots_of(place / "<i>run")
    assert [*whole] == [f"step-{step:08}.json" for step in (0, 2, 4)]
    assert [*snapshots_of(place / "killed")] == [*whole][:2]
    assert snapshots_of(place / "resumed") == whole
    weights = {Run(place / name).summary["weights"] for name in ("<i>run", "resumed", "plain")}
    assert len(weights) == 1
    assert not (place / "plain/snapshots").exists()


def test_a_snapshot_is_what_maps_says(place):
    run = Run(place / "<i>run")
    (last,) = snapshots.read(run.folder, {4})
    samples = run.samples(snapshots.IMAGES)
    for look, sample in zip(last.looks, samples, strict=True):
        found = maps(run, sample.image)
        assert [layer.kind for layer in look.layers] == ["BAM", "BAM", "MHSA"]
        for layer, bam in zip(look.layers, found.bams, strict=False):
            np.testing.assert_allclose(layer.values, bam.attention.mean(0), atol=1e-3)
        (mhsa,) = found.mhsas
        H, W = mhsa.map_size
        row = mhsa.row(int(look.place[1] * H), int(look.place[0] * W))
        np.testing.assert_allclose(look.layers[2].values, row.mean(0), atol=1e-3)
        spread = np.exp([-(head * np.log(head)).sum() for head in row.numpy()]).mean()
        assert look.layers[2].places == pytest.approx(spread, rel=1e-4)
        assert look.truth == sample.truth[0]["category"]
        assert look.said[0][1] == pytest.approx(found.output.softmax(0).max().item(), abs=1e-3)


def test_of_a_padded_map_what_lies_on_the_image_counts():
    even = torch.full((2, 8, 8), 1 / 64)
    seen = SimpleNamespace(name="layer", call=1, map_size=(8, 8), row=lambda y, x: even)
    found = SimpleNamespace(bams=(), mhsas=(seen,), seen=(48, 40), image_size=(64, 64))
    (layer,) = snapshots.layers(found, (0.5, 0.5))
    assert layer.size == layer.values.shape == (6, 5)
    assert layer.places == pytest.approx(30)


@pytest.mark.parametrize(("steps", "period"), [(1, 3), (936, 312), (9000, 10), (7, 2)])
def test_snapshots_are_few_and_have_both_ends(steps, period):
    chosen = snapshots.moments(steps, period)
    assert {0, steps} <= chosen
    assert len(chosen) <= snapshots.MOMENTS + 1
    assert all(step % period == 0 or step == steps for step in chosen)


def test_a_run_that_has_not_ended(place, tmp_path, capsys):
    for name in ("killed", "bare"):
        shutil.copytree(place / "killed", tmp_path / name)
    for file in (tmp_path / "bare").iterdir():
        if file.name != "recipe.yaml":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert cli.main(["report", str(tmp_path / "killed")]) == 0
    assert "has not ended: its last record is of step 2; its newest checkpoint is of step 4" in (
        capsys.readouterr().out
    )
    said = " ".join(page(tmp_path / "killed").words)
    assert "--resume" in said
    assert "predictions and confused classes: they are kept at a run's end" in said
    assert cli.main(["report", str(tmp_path / "bare")]) == 0
    assert "No images were scored yet." in " ".join(page(tmp_path / "bare").words)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tiles": 1, "step": "x"}', '{"heads": [], "tiles": [{"picture": "x"}]}']
)
def test_damaged_files_are_left_out_and_said(place, tmp_path, content):
    shutil.copytree(place / "<i>run", tmp_path / "run")
    (tmp_path / "run/scored.json").write_text(content)
    (tmp_path / "run/snapshots/step-00000002.json").write_text(content)
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    found = page(tmp_path / "run")
    assert "scored.json is damaged" in " ".join(found.words)
    assert "attention" in found.ids
    assert "step 2" not in found.words


def test_a_run_that_goes_on_after_its_early_end_has_not_ended(place, tmp_path):
    """Its summary and its predictions are of that end; its seconds are of the steps that were timed."""
    run = tmp_path / "run"
    shutil.copytree(place / "<i>run", run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"steps": 2, "ended_early": True}))
    scored = json.loads((run / "scored.json").read_text())
    assert scored["step"] == 4
    (run / "scored.json").write_text(json.dumps(scored | {"step": 2}))
    records = [json.loads(line) | {"seconds": 10} for line in (run / "metrics.jsonl").open()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    around = json.loads((run / "environment.json").read_text())
    starts = [{"step": 0}, {"step": 3}]  # in the second epoch of two steps
    (run / "environment.json").write_text(json.dumps(around | {"starts": starts}))
    assert cli.main(["report", str(run)]) == 0
    said = " ".join(page(run).words)
    assert "has not ended: its last record is of step 4" in said
    assert "--resume" in said
    assert "what is shown is of step 2, an end before" in said
    story = read_story(run)
    assert [record["step"] for record in records] == [2, 4]
    assert story.pace == pytest.approx(20 / 3)


def test_runs_side_by_side(place, tmp_path, capsys):
    out = tmp_path / "both.html"
    shutil.copytree(place / "plain", tmp_path / "other")
    text = (tmp_path / "other/recipe.yaml").read_text()
    (tmp_path / "other/recipe.yaml").write_text(text.replace("seed: 0", "seed: 7"))
    assert cli.main(["report", str(place / "<i>run"), str(tmp_path / "other"), "--out", str(out)]) == 0
    found = Read(out.read_text())
    said = " ".join(found.words)
    assert {"scores", "curves", "differences"} <= found.ids
    assert re.search(r"seed\s+0\s+7", said)
    assert not re.search(r"pictures\s+True\s+False", said)  # it changes no weight
    assert not re.search(r"epochs\s+2\s+2", said)
    legends = [words for words in found.words if re.match(r"(<i>run|other): \d", words.strip())]
    assert len(legends) == 4  # each run in both drawings
    detector = tmp_path / "detector"
    shutil.copytree(place / "plain", detector)
    (detector / "metrics.jsonl").write_text('{"epoch": 1, "step": 1, "val_box_AP": 3.0}\n')
    capsys.readouterr()
    assert cli.main(["report", str(place / "plain"), str(detector), "--out", str(out)]) == 2
    assert "make the report of each kind alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no run given"),
        (["nowhere"], "no run"),
        (["plain", "plain"], "given more than once"),
        (["plain", "--out", "x.png"], "ends in .html"),
        (["plain", "--out", "no/x.html"], "make it first"),
    ],
)
def test_refusals_are_one_line(place, monkeypatch, capsys, words, says):
    monkeypatch.chdir(place)
    assert cli.main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_a_fault_in_it_ends_no_run(place, tmp_path, monkeypatch, capsys):
    def broken(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", broken)
    monkeypatch.setattr(snapshots.Snapshots, "_look", broken)
    summary = train(recipe(place / "data"), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "No space" in line]
    assert len(said) == 2  # of the snapshots, once, and of the report
    assert all("the run goes on" in line or "the run itself is whole" in line for line in said)
    assert summary.weights == Run(place / "plain").summary["weights"]


def test_the_papers_row_stands_beside():
    row = load_recipe("cifar100-bam")
    content = row.model_dump(mode="json")
    content["model"]["name"] = "cifar_resnet50_bam"
    scores = {"val_top1": 80.5, "val_top5": 95.0}
    found = printed(Recipe.model_validate(content), {"step": 78000, "epoch": 200, **scores})
    assert any(("80.00" not in own) and own == "19.50" for one in found for _, _, own in one.scores)
    assert any(not one.otherwise for one in found)
    sooner = printed(Recipe.model_validate(content), {"step": 4680, "epoch": 12, **scores})
    assert len(sooner) == len(found)
    assert all("12 of 200 epochs" in one.otherwise for one in sooner)
    other = Recipe.model_validate(
        content | {"batch": 32, "optimizer": content["optimizer"] | {"lr_batch": 128}}
    )
    smaller = printed(other, {"step": 1, "epoch": 1})
    assert len(smaller) == len(found)
    assert all("batch" in " ".join(one.otherwise) for one in smaller)
    assert printed(load_recipe("demo"), {"step": 1, "epoch": 1}) == []


def test_a_detector_by_its_papers_text_alone_has_the_row_and_says_so():
    content = load_recipe("coco-3x").model_dump(mode="json")
    found = {}
    for variant in ("botnet", "cloud_tpu", "torchvision"):
        content["model"] |= {"options": {"variant": variant}, "pretrained": "resnet50.tv_in1k"}
        record = {"step": 67500, "epoch": 36.5, "val_box_AP": 43.6, "val_mask_AP": 38.9}
        found[variant] = printed(Recipe.model_validate(content), record)
    assert [one.label for one in found["cloud_tpu"]] == [one.label for one in found["botnet"]] != []
    assert all("model.options.variant: botnet, not cloud_tpu" in one.otherwise for one in found["botnet"])
    assert not any("variant" in " ".join(one.otherwise) for one in found["cloud_tpu"])
    assert found["torchvision"] == []


def test_the_words_follow_the_batch():
    """Steps are counted for the recipe's own batch, milestones too."""
    content = load_recipe("coco-bam").model_dump(mode="json")
    said = dict(in_words(Recipe.model_validate(content | {"batch": 4}), {}))
    assert said["Length"].startswith("360,000 steps")
    assert "after 240,000, 320,000 steps" in said["Learning rate"]
    assert "from 0.001 of it" in said["Learning rate"]


def test_the_words_have_the_sizes_of_training():
    content = load_recipe("relations").model_dump(mode="json")
    content["data"] |= {"image_size": 32, "image_sizes": [24, 48]}
    said = dict(in_words(Recipe.model_validate(content), {}))["Images"]
    assert "Their side is 32 pixels, in training one of 24, 48 for each step" in said


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_has_words(name):
    shipped = load_recipe(name)
    said = dict(in_words(shipped, {}))
    assert shipped.model.name in said["Network"]
    assert shipped.data.name in said["Images"]
    peak = shipped.optimizer.lr * shipped.batch / (shipped.optimizer.lr_batch or shipped.batch)
    assert f"{peak:.4g}" in said["Learning rate"]
    assert all(part[0].isalnum() for part in said.values())


def test_without_the_datas_facts_the_cost_is_not_there(place, tmp_path):
    """As of a run that is kept without its data.json."""
    shutil.copytree(place / "plain", tmp_path / "run")
    for name in ("data.json", "cost.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    said = " ".join(page(tmp_path / "run").words)
    assert "multiply-adds: data.json, which says how many classes there are, is not there" in said
