"""A study on two machines: their reports put together are the report of one machine that ran it all."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from attneck import cli
from attneck.files import strict, write_json
from attneck.runs.train import train
from attneck.studies.elsewhere import add
from attneck.studies.report import Results, document, page
from attneck.studies.results import Row
from attneck.studies.sizes import SizeRow
from attneck.studies.study import Study, cells, load_study

STUDY = {
    "recipe": "relations",
    "fields": {
        "data.train_size": 32,
        "data.val_size": 20,
        "epochs": 1,
        "batch": 16,
        "optimizer.lr": 0.2,
        "schedule.warmup_epochs": 0,
    },
    "problems": {"same": {}, "path": {"data.problem": "path"}},
    "variants": {"plain": {}, "bot": {"model.options.attend": True}},
    "baseline": "plain",
    "seeds": [0, 1],
    "metric": "loss",
    "threshold": 1,
    "sizes": [24, 32],
    "rescored": {"bot_kept": {"variant": "bot", "model.options.resample": "keep"}},
    "distance_images": 2,
}
RESULTS = Path(__file__).parents[2] / "results/studies"
THERE = ("same/plain/seed-0", "same/bot/seed-0", "path/bot/seed-0")
HERE = ("same/plain/seed-1", "same/bot/seed-1", "path/plain/seed-0")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with six of its eight runs in `both`, and three each in `there` and `here`; all reported."""
    root = tmp_path_factory.mktemp("machines")
    (root / "s.yaml").write_text(json.dumps(STUDY))
    for cell in cells(load_study(str(root / "s.yaml")), root / "both"):
        if str(cell.folder.relative_to(root / "both")) in THERE + HERE:
            train(cell.recipe, cell.folder)
    assert report(root, "both") == 0
    for machine, its in (("there", THERE), ("here", HERE)):
        for run in its:
            shutil.copytree(root / "both" / run, root / machine / run)
    assert report(root, "there") == 0
    return root


def report(root: Path, out: str, *words: str) -> int:
    return cli.main(["study", str(root / "s.yaml"), "--report", "--out", str(root / out), *words])


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_two_machines_reports_are_that_of_one(machines: Path, tmp_path: Path) -> None:
    theirs = str(machines / "there/report/report.json")
    assert report(machines, "here", "--with", theirs, "--to", str(tmp_path / "merged")) == 0
    merged, whole = written(tmp_path / "merged"), written(machines / "both/report")
    assert set(merged) == set(whole)
    assert all(merged[name] == whole[name] for name in whole), [n for n in whole if merged[n] != whole[n]]
    assert {"sizes.svg", "curves.svg"} < set(whole)
    assert json.loads(whole["report.json"])["runs_to_come"] == 2
    # From reports alone, and from reports that overlap.
    both = str(tmp_path / "merged/report.json")
    assert report(machines, "none", "--with", theirs, both, "--to", str(tmp_path / "again")) == 0
    assert written(tmp_path / "again") == whole


def test_a_run_that_is_here_counts_for_its_report_from_elsewhere(machines: Path, tmp_path: Path) -> None:
    document = json.loads((machines / "both/report/report.json").read_text())
    for row in document["rows"]:
        row["scores"] = dict.fromkeys(row["scores"], -1.0)
        row["curves"] = {seed: [[64, -1.0]] for seed in row["scores"]}
    for row in document["sizes"]:
        row["scores"] = {side: dict.fromkeys(found, -1.0) for side, found in row["scores"].items()}
    for row in document["distances"]:
        row["heads"] = {seed: [-1.0] * 4 for seed in row["heads"]}
    (tmp_path / "report.json").write_text(json.dumps(document))
    words = ["--with", str(tmp_path / "report.json"), "--to", str(tmp_path / "merged")]
    assert report(machines, "here", *words) == 0
    found = json.loads((tmp_path / "merged/report.json").read_text())
    for row in found["rows"]:
        for seed, score in row["scores"].items():
            assert (score == -1) == (f"{row['problem']}/{row['variant']}/seed-{seed}" in THERE)
    for row in found["sizes"]:
        variant = row["name"].removesuffix("_kept")
        for scores in row["scores"].values():
            for seed, score in scores.items():
                assert (score == -1) == (f"{row['problem']}/{variant}/seed-{seed}" in THERE)
    for row in found["distances"]:
        for seed, heads in row["heads"].items():
            assert (heads[0] == -1) == (f"{row['problem']}/{row['variant']}/seed-{seed}" in THERE)


@pytest.mark.parametrize("fault", ["another score", "a seed more", "a row twice"])
def test_a_report_that_contradicts_itself_is_refused(
    fault: str, machines: Path, tmp_path: Path, capsys
) -> None:
    document = json.loads((machines / "there/report/report.json").read_text())
    row = next(row for row in document["rows"] if row["scores"])
    said = "are not those that its curves end with"
    if fault == "another score":
        row["scores"]["0"] += 1
    elif fault == "a seed more":
        row["scores"]["1"] = 0.5
    else:
        document["rows"].append(row)
        said = "same/plain is in it twice"
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert report(machines, "here", "--with", str(tmp_path / "report.json")) == 2
    assert said in capsys.readouterr().err


def test_a_report_of_before_is_read(machines: Path, tmp_path: Path) -> None:
    """It does not say of which data its runs are, what they began from, nor how they were scored again."""
    document = json.loads((machines / "there/report/report.json").read_text())
    for name in ("rescored", "distance_images"):
        del document[name]
    for name in ("model.weights", "patience"):
        del document["recipe"][name]
    for row in document["rows"]:
        del row["data"]
    (tmp_path / "report.json").write_text(json.dumps(document))
    words = ["--with", str(tmp_path / "report.json"), "--to", str(tmp_path / "merged")]
    assert report(machines, "here", *words) == 0
    before, now = (
        json.loads((folder / "report.json").read_text())["rows"]
        for folder in (tmp_path / "merged", machines / "both/report")
    )
    assert [row["scores"] for row in before] == [row["scores"] for row in now]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_report_with_scores_that_are_no_numbers_is_json_and_read_back(bad: float, tmp_path: Path) -> None:
    one = Study.model_validate(STUDY | {"problems": {}, "seeds": [0, 1, 2]})
    rows = [Row("", "plain", {0: 1.0, 1: 2.0, 2: bad}), Row("", "bot", {0: 3.0, 1: bad, 2: 4.0})]
    for row in rows:
        row.curves = {seed: [(32, bad), (64, score)] for seed, score in row.scores.items()}
    sizes = [SizeRow("", "bot", "loss", {32: {0: 1.0, 1: bad}})]
    whole = Results(one, "tiny", rows, 0, sizes)
    write_json(tmp_path / "now.json", document(whole))
    json.loads((tmp_path / "now.json").read_text(), parse_constant=pytest.fail)  # of NaN and Infinity
    (tmp_path / "before.json").write_text(json.dumps(document(whole)))
    nothing = replace(whole, rows=[Row("", row.variant) for row in rows], sizes=[])
    for file in (tmp_path / "now.json", tmp_path / "before.json"):
        again = add(nothing, file)
        assert strict(document(again)) == strict(document(whole))
        assert page(again) == page(whole)


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/report.json")), ids=lambda file: file.parent.name)
def test_the_committed_reports_are_read(file: Path, tmp_path: Path, capsys) -> None:
    """Every run in them counts as ended."""
    name = file.parent.name
    ended = sum(len(row["scores"]) for row in json.loads(file.read_text())["rows"])
    assert cli.main(["study", name, "--list", "--out", str(tmp_path), "--with", str(file)]) == 0
    assert len(lines(capsys)) == len(cells(load_study(name), tmp_path)) - ended


def test_what_has_ended_elsewhere_is_not_trained_again(machines: Path, tmp_path: Path, capsys) -> None:
    """`--list` and the training choose the same runs."""
    words = ["study", str(machines / "s.yaml"), "--out", str(tmp_path / "new")]
    theirs = ["--with", str(machines / "there/report/report.json")]
    assert cli.main([*words, *theirs, "--list"]) == 0
    assert [line.split("--out ")[1].removeprefix(f"{tmp_path}/new/") for line in lines(capsys)] == [
        "path/plain/seed-0",
        "same/plain/seed-1",
        "same/bot/seed-1",
        "path/plain/seed-1",
        "path/bot/seed-1",
    ]
    assert cli.main([*words, *theirs, "--only", "/0"]) == 0
    trained = {str(file.parent.relative_to(tmp_path / "new")) for file in tmp_path.rglob("summary.json")}
    assert trained == {"path/plain/seed-0"}


def test_of_another_study_s_report_the_runs_count_that_both_have(machines: Path, tmp_path: Path) -> None:
    """Whatever they are called there, and none of its others: other recipes, other seeds."""
    document = json.loads((machines / "there/report/report.json").read_text())
    for row in document["rows"]:
        row["variant"] = f"their-{row['variant']}"
        row["scores"] |= {"7": 0.5}
        row["curves"] |= {"7": [[32, 0.5]]}
    odd = document["rows"][0] | {"variant": "odd", "recipe": {"model.name": "cifar_resnet20"}}
    document |= {"study": "other", "distance_images": 9, "rows": [*document["rows"], odd]}
    (tmp_path / "report.json").write_text(json.dumps(document))
    words = ["--with", str(tmp_path / "report.json"), "--to", str(tmp_path / "merged")]
    assert report(machines, "here", *words) == 0
    merged, whole = (
        json.loads((folder / "report.json").read_text())
        for folder in (tmp_path / "merged", machines / "both/report")
    )
    assert merged["rows"] == whole["rows"]
    assert merged["runs_to_come"] == whole["runs_to_come"]
    assert merged["sizes"] != whole["sizes"]  # nothing else of another study counts


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def changed(document: dict, **changes: object) -> dict:
    return document | changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: changed(d, study="other", recipe=d["recipe"] | {"epochs": 3}),
            "is a report of the study 'other', which has no run of 's': give one that has",
        ),
        (
            lambda d: changed(d, recipe=d["recipe"] | {"epochs": 3}),
            "runs of same/plain are of another recipe (epochs: 3 → 1)",
        ),
        (
            lambda d: changed(d, recipe=d["recipe"] | {"patience": 3}),
            "runs of same/plain are of another recipe (patience: 3 → None)",
        ),
        (
            lambda d: changed(d, metric="top1"),
            "is a report with metric 'top1', and the study has 'loss': write it anew",
        ),
        (lambda d: changed(d, distance_images=9), "is a report with distance_images 9, and the study has 2:"),
        (
            lambda d: changed(d, rescored={"bot_kept": {"variant": "bot", "model.options.heads": 1}}),
            "is a report with rescored {'bot_kept': {'variant': 'bot', 'model.options.heads': 1}}, and ",
        ),
        (
            lambda d: changed(d, rows=[d["rows"][0] | {"variant": "other"}]),
            "has runs that this study does not have: same/other",
        ),
        (
            lambda d: changed(d, rows=[d["rows"][0] | {"scores": {"7": 1.0}, "curves": {"7": [[32, 1.0]]}}]),
            "has a seed 7 of same/plain, and the study has 0, 1: give --seeds 8",
        ),
        (lambda d: changed(d, rows=[d["rows"][0] | {"scores": {"0": "x"}}]), "is no report.json"),
        (
            lambda d: changed(d, sizes=[d["sizes"][0] | {"name": "bot_other"}]),
            "is no report.json of this version (the study has no way 'bot_other' to score)",
        ),
        (
            lambda d: changed(d, sizes=[d["sizes"][0] | {"scores": {"99": {"0": 1.0}}}]),
            "is no report.json of this version (the study does not score at 99 pixels)",
        ),
        (lambda d: [d], "is no report.json"),
        (lambda d: {name: found for name, found in d.items() if name != "recipe"}, "is no report.json"),
        (lambda d: None, "there is no such file"),
    ],
)
def test_what_is_no_report_of_the_study_is_refused(machines, tmp_path, capsys, change, said) -> None:
    file = tmp_path / "report.json"
    if (made := change(json.loads((machines / "there/report/report.json").read_text()))) is not None:
        file.write_text(json.dumps(made))
    capsys.readouterr()
    assert report(machines, "here", "--with", str(file), "--to", str(tmp_path / "to")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "to").exists()
    # Before anything is trained, too.
    words = ["study", str(machines / "s.yaml"), "--out", str(tmp_path / "new"), "--with", str(file)]
    assert cli.main([*words, "--list"]) == 2
    assert said in capsys.readouterr().err
