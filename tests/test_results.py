"""The pages' tables are those that the files in results/ make, and every run there is in them."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    """docs/tables.py, which is no part of the package, where its command runs: its paths are so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        patch.chdir(ROOT)
        yield importlib.import_module("tables")


@pytest.fixture(scope="module")
def costs(tables):
    """docs/costs.py."""
    return tables.costs


def test_the_pages_are_current(tables):
    for name, text in tables.pages().items():
        assert (ROOT / name).read_text() == text, f"{name}: run make tables"


def test_the_picture_is_current(tables, tmp_path):
    """By its words and figures; the lines' places are matplotlib's own, from version to version."""
    tables.attention_picture.draw(tmp_path / "anew.svg")
    anew, there = (
        re.findall(r"<text.*?>([^<]*)</text>", path.read_text())
        for path in (tmp_path / "anew.svg", tables.attention_picture.PICTURE)
    )
    assert "4,320" in there
    assert there == anew, "run make tables"


def test_the_picture_of_gains_is_current(tables, tmp_path):
    tables.gains_picture.draw(tmp_path / "anew.svg")
    anew, there = (
        re.findall(r"<(?:text|tspan).*?>([^<]*)</", path.read_text())
        for path in (tmp_path / "anew.svg", tables.gains_picture.PICTURE)
    )
    assert {"are two alike?", "94.7", "68.3"} <= {*there}
    assert there == anew, "run make tables"


def test_gains_are_those_of_the_reports(tables):
    base, gains = tables.gains_picture._gains("relations", "same", "")
    assert (round(base, 2), {name: round(mean, 2) for name, (mean, _) in gains.items()}) == (
        94.73,
        {"BoTNet's attention": 2.65, "BAM": 4.83, "both": 4.35},
    )
    base, gains = tables.gains_picture._gains("resolutions", "same", "64")
    assert gains["BoTNet's attention"][0] == pytest.approx(17.15)  # bot_recalibrated, in its report.md


def test_figure_9_is_current(tables, tmp_path):
    """By its words, which stand as comments beside their outlines."""
    tables.figure_9(tmp_path / "anew.svg")
    anew, there = (
        sorted(re.findall(r"<!-- (.*?) -->", path.read_text()))
        for path in (tmp_path / "anew.svg", ROOT / "docs" / "botnet-figure-9.svg")
    )
    assert any("H100" in word for word in there)
    assert there == anew, "run make tables"


def test_every_table_stands_in_a_page(tables):
    shown = [name for page in tables.PAGES for _, name, _ in tables.MARKED.findall((ROOT / page).read_text())]
    assert sorted(shown) == sorted(tables.TABLES)


def test_every_run_is_in_the_readme_or_said_to_be_elsewhere(tables):
    rows = json.dumps(tables.yaml.safe_load((ROOT / "docs" / "tables.yaml").read_text()))
    found = {run.folder.removeprefix("results/") for run in tables.Results([ROOT / "results"]).runs}
    shown = set(re.findall(r'"run": "([^"]+)"', rows))
    assert shown <= found
    assert all(f"results/{run}" in tables.runs() for run in found)


def test_a_command_that_is_not_the_runs_own_is_refused(tables, tmp_path):
    file = tmp_path / "environment.json"
    file.write_text(json.dumps({"command": "attneck train surgery --model.surgery attend --out x"}))
    tables._same_command("`… --model.surgery attend`", file)
    tables._same_command("`attneck train surgery --model.weights RUN`", file)
    with pytest.raises(ValueError, match="insert_bam is no part"):
        tables._same_command("`… --model.surgery insert_bam`", file)


# What trainings cost


def test_hours_by_a_printed_step(costs):
    """Table 5's BoT50 over 36 epochs: 67,500 steps of 1,032.7 ms on eight cores."""
    training = next(
        one
        for one in costs.trainings()
        if one.row.trained == "maskrcnn_botnet50" and one.images == 67_500 * 64 and not one.row.options
    )
    step = costs.printed_steps()[costs._key(training.row)]
    assert costs._hours(training, step) == pytest.approx(67_500 * 1.0327 * 8 / 3600)


def test_hours_of_an_imagenet_training_by_its_own_step_or_by_its_multiply_adds(costs):
    """T7: 350 epochs of 1,281,167 images; 45.801 G multiply-adds."""
    training = next(one for one in costs.trainings() if one.row.label == "T7 BoTNet-S1-128")
    images = 350 * 1_281_167
    assert training.images == images
    step = costs.printed_steps()[costs._key(training.row)]
    assert costs._hours(training, step) == pytest.approx(images / 32 * 0.8045 / 3600)
    own = {costs._key(training.row): 500.0}
    assert costs._measured_hours(training, own, 1e12) == pytest.approx(images * 0.5 / 3600)
    by_rate = costs._measured_hours(training, {}, 1e12)
    assert by_rate == pytest.approx(images * 6 * training.madds / 1e12 / 3600)
    assert round(training.madds / 1e9, 1) == 45.8


def test_a_copied_step_time_costs_nothing(costs):
    row = next(one.row for one in costs.trainings() if one.row.label == "S5 SENet-350")
    assert costs._key(row) not in costs.printed_steps()


def test_a_detector_without_its_mask_is_another_one(costs):
    row = next(one.row for one in costs.trainings() if one.row.detector == "fasterrcnn_botnet50")
    assert costs._key(row) not in costs.printed_steps()


def test_each_training_is_counted_once(costs):
    rows = [(one.row.trained, str(one.row.trained_options), one.row.image_size) for one in costs.trainings()]
    assert rows.count(("maskrcnn_resnet101", "{}", 1024)) == 1  # of Tables 5 and 6
    assert len(rows) > 100


def test_a_study_s_report_becomes_a_table(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert tables.studies() == "No study's report is in results/ yet."
    row = {
        "problem": "",
        "variant": "plain",
        "n": 2,
        "mean": 60.0,
        "std": 0.25,
        "scores": {"0": 59.75, "1": 60.25},
        "difference": None,
        "verdict": None,
    }
    other = row | {
        "variant": "bam",
        "mean": 61.5,
        "scores": {"0": 61.25, "1": 61.75},
        "difference": {"n": 2, "mean": 1.5, "interval": [-0.5, 3.5], "of_two_machines": 1},
        "verdict": "no difference that counts",
    }
    broken = other | {
        "variant": "se",
        "mean": None,
        "scores": {"0": None, "1": 61.0},
        "difference": {"n": 2, "mean": None, "interval": None, "of_two_machines": 0},
        "verdict": "a score is no number",
    }
    report = {
        "study": "mine",
        "about": "Does it?",
        "metric": "top1",
        "baseline": "plain",
        "runs_to_come": 1,
        "rows": [row, other, broken],
    }
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text(json.dumps(report))
    said = tables.studies()
    assert "| [mine](../mine/report.md) | top1 | plain | 2 | none |" in said
    other["difference"]["interval"] = [0.5, 2.5]
    (tmp_path / "mine" / "report.json").write_text(json.dumps(report))
    assert "| [mine](../mine/report.md) | top1 | plain | 2 | bam +1.50 [+0.50, +2.50] |" in tables.studies()
