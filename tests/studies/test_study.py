"""Studies: their runs are those of `attneck train`, they go on where they were, their figures are right."""

import csv
import io
import json
import math
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

from attneck import cli
from attneck.commands.recipe_words import parse
from attneck.commands.study import OWN, changes
from attneck.errors import UserError
from attneck.models import create_model
from attneck.papers.results import measured, read_runs
from attneck.processor import processor_name
from attneck.runs.train import train
from attneck.studies import report
from attneck.studies.jobs import run_all
from attneck.studies.results import Row, collect
from attneck.studies.statistics import Difference, difference, spread
from attneck.studies.study import Study, cells, load_study, shipped_studies
from attneck.tasks import task_of
from attneck.tasks.classification import build_classifier
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import flat

TINY = {
    "recipe": "relations",
    "fields": {
        "data.train_size": 32,
        "data.val_size": 16,
        "epochs": 2,
        "batch": 16,
        "schedule.warmup_epochs": 0,
    },
    "problems": {"same": {}, "path": {"data.problem": "path"}},
    "variants": {"plain": {}, "se": {"model.options.se": True}},
    "baseline": "plain",
    "seeds": [0, 1],
    "threshold": 1,
}


def study(**changes: object) -> Study:
    return Study.model_validate(TINY | changes)


@pytest.mark.parametrize("name", shipped_studies())
def test_the_command_of_every_run_trains_its_recipe(name: str) -> None:
    made = cells(load_study(name), Path("runs/x"))
    assert len({cell.name for cell in made}) == len({cell.folder for cell in made}) == len(made)
    first = made[0]
    for cell in made:  # each variant once, and each problem
        if cell.seed or (cell.problem != first.problem and cell.variant != first.variant):
            continue
        words = shlex.split(cell.command())
        assert words[:3] == ["attneck", "train", cell.source]
        arguments = parse(cell.source, words[3:])
        assert arguments.recipe == cell.recipe
        assert arguments.out == cell.folder
        assert not arguments.resume
    assert [cell.seed for cell in made] == sorted(cell.seed for cell in made)


@pytest.mark.parametrize("name", shipped_studies())
def test_every_variant_is_another_network_that_can_be_built_or_sees_other_sizes(name: str) -> None:
    known = set()
    made = cells(load_study(name), Path("x"))
    for cell in made:
        if cell.seed == 0 and cell.problem == made[0].problem:
            with torch.no_grad(), torch.device("meta"):
                asked, side = cell.recipe.model, cell.recipe.data.image_size or 32
                if task_of(cell.recipe).finds_objects:
                    model = create_model(asked.name, num_classes=2, image_size=side, **asked.options)
                    assert len(model.eval().backbone(torch.randn(1, 3, side, side))) > 1
                else:
                    model = build_classifier(asked, 2, side)
                    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 2)
            known.add((str(model), *(cell.recipe.data.image_sizes or ())))
    assert len(known) == len(load_study(name).variants)


@pytest.mark.parametrize("name", shipped_studies())
def test_what_shares_another_s_runs_has_the_same_ones_and_printed_rows_are_there(name: str) -> None:
    one = load_study(name)
    head, _ = report.table(one, [])  # refuses a paper's row that is not there
    assert ("printed" in head) == bool(one.paper)
    if one.runs is None:
        return
    known = {name: load_study(name) for name in shipped_studies()}
    here = [other for name, other in known.items() if one.runs in (name, other.runs)]
    recipes: dict[Path, list[Recipe]] = {}
    for cell in (cell for other in here for cell in cells(other, Path("x"))):
        recipes.setdefault(cell.folder, []).append(cell.recipe)
    assert all(recipe == first for first, *others in recipes.values() for recipe in others)
    assert any(len(recipes[cell.folder]) > 1 for cell in cells(one, Path("x")))


def test_a_word_of_the_command_line_changes_every_run() -> None:
    given = changes(study(), ["--epochs", "3", "--data.train-size", "64", "--optimizer.clip-norm", "None"])
    assert given == {"epochs": 3, "data.train_size": 64, "optimizer.clip_norm": None}
    for cell in cells(study(), Path("x"), given):
        assert (cell.recipe.epochs, cell.recipe.optimizer.clip_norm) == (3, None)
        assert parse(cell.source, shlex.split(cell.command())[3:]).recipe == cell.recipe
    with pytest.raises(UserError, match="--seed is a run's"):
        changes(study(), ["--seed", "3"])


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (  # the recipe's own value, and not the study's; an option of the recipe that is taken back
            ["--epochs", "8", "--pictures", "--model.options.depths=None"],
            {"epochs": 8, "pictures": True, "model.options.depths": None},
        ),
        (
            ["--no-pictures", "--batch=128", "--model.options", "depths", "2", "2", "stem", "8"],
            {"pictures": False, "batch": 128, "model.options.depths": [2, 2], "model.options.stem": 8},
        ),
    ],
)
def test_a_word_counts_also_where_it_is_what_the_recipe_has(words: list[str], found: dict) -> None:
    given = changes(study(), words)
    assert given == found
    cell = cells(study(), Path("x"), given)[0]
    assert {field: flat(cell.recipe).get(field) for field in found} == found
    assert parse(cell.source, shlex.split(cell.command())[3:]).recipe == cell.recipe


IN_OTHER_WORDS = {
    "epochs of a recipe in steps": ("voc-overfit", {"epochs": 20}, []),
    "no steps": ("coco-1x", {"steps": None, "epochs": 4}, []),
    "epochs for the study's own steps": (
        "coco-1x",
        {"steps": 1000, "steps_batch": 64, "schedule.milestones": [900], "schedule.warmup_steps": 100},
        ["--epochs", "10"],
    ),
    "an option of the study's own optimiser": (
        "demo",
        {"optimizer.name": "adamw", "optimizer.lr": 0.001},
        ["--optimizer.betas", "0.9", "0.95"],
    ),
    "milestones of the study's own schedule": (
        "demo",
        {"schedule.kind": "step", "schedule.milestones": [2, 4]},
        ["--schedule.milestones", "3"],
    ),
    "a list of one": ("surgery", {"model.surgery": "attend", "model.surgery_options.blocks": [1]}, []),
    "options of several surgeries": (
        "surgery",
        {
            "model.surgery": "attend+insert_bam",
            "model.surgery_options.attend.blocks": [1],
            "model.surgery_options.insert_bam.reduction": 8,
        },
        ["--model.surgery-options.insert_bam.start", "paper", "--model.surgery-options.attend.heads=2"],
    ),
    "a dash": ("demo", {"reach": "--epochs"}, []),
}


@pytest.mark.parametrize("case", IN_OTHER_WORDS)
def test_words_change_what_the_study_s_own_fields_made(case: str) -> None:
    recipe, fields, words = IN_OTHER_WORDS[case]
    one = Study(recipe=recipe, fields=fields, variants={"a": {}}, baseline="a")
    cell = cells(one, Path("x"), changes(one, words))[0]
    assert parse(cell.source, shlex.split(cell.command())[3:]).recipe == cell.recipe
    if words[:1] == ["--epochs"]:
        schedule = cell.recipe.schedule
        assert (schedule.milestones, schedule.warmup_epochs, schedule.warmup_steps) == ([9], 1, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.problem", "path"], "--data.problem: path of the study have values of their own"),
        (["--model.options.se", "False"], "--model.options.se: se of the study have values of their own"),
    ],
)
def test_what_tells_variants_or_problems_apart_is_not_made_one(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cells(study(), Path("x"), changes(study(), words))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--lst", "unknown option --lst; perhaps you meant '--list' (attneck study --help)"),
        ("--basline", "perhaps you meant '--baseline' (attneck study"),
        ("--epoch", "unknown option --epoch; perhaps you meant --epochs (attneck train relations --help)"),
        ("--resume", "--resume, --accept-changes and --processes are a run's"),
        ("--seed", "--seed is a run's: give the study --seeds N"),
    ],
)
def test_a_flag_is_told_as_what_it_is_nearest_to(word: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        changes(study(), [word, *(["3"] if word in {"--seed", "--epoch", "--basline"} else [])])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"baseline": "plan"}, "baseline names 'plan'; perhaps you meant 'plain'"),
        ({"seeds": [1, 1]}, "give each once"),
        ({"fields": {"seed": 3}}, "a field seed is given, and each run has one of seeds"),
        ({"variants": {"plain": {"schedule.milestones": []}}}, "is an empty list"),
        ({"variants": {"../x": {}}}, "variants"),
        ({"variants": {"plain": {"model.nam": "x"}}}, "no field 'model.nam'; perhaps you meant 'name'"),
        ({"variants": {"plain": {"modl.name": "x"}}}, "no field 'modl.name' in a recipe"),
        ({"variants": {"plain": {"epochs": -1}}}, "relations of same/plain: epochs=-1"),
        ({"paper": {"plain": "bam/4a/nothing"}}, "no such row"),
        ({"variants": {"plain": {"optimizer.name": "adamw"}}}, "adamw is given without optimizer.lr"),
        ({"sizes": [24, 24]}, "sizes are (24, 24): give each once"),
        ({"rescored": {"x": {"variant": "se"}}}, "rescored is given without sizes"),
        (
            {"sizes": [24], "rescored": {"x": {"variant": "s"}}},
            "rescored x names 's'; perhaps you meant 'se'",
        ),
        ({"sizes": [24], "rescored": {"x": {"variant": "se", "epochs": 1}}}, "nothing else: epochs"),
        ({"sizes": [24], "rescored": {"x": {"variant": "se", "recalibrate": 1}}}, "recalibrate is 1: wanted"),
        ({"metric": "AP"}, "no score 'AP': give the study a metric of loss, top1, top5"),
        ({"seeds": 3}, "seeds=3: wanted a list"),
        ({"seeds": []}, "seeds are none"),
        ({"variants": {}}, "variants are none"),
        ({"variants": {"plain": {}, "a": {}, "Plain": {}}}, "plain and Plain differ in capitals alone"),
        ({"threshold": True}, "threshold=True: wanted a number"),
        ({"threshold": 950}, "threshold is 950: wanted a top1 of per cent, 0 to 100"),
        ({"threshold": -1, "metric": "loss"}, "threshold is -1: wanted a loss of 0 or more"),
        ({"runs": "../x"}, "runs is '../x': wanted a study's name"),
        (
            {
                "variants": {"plain": {}, "se": {"data.problem": "path"}},
                "problems": {"a": {"data.problem": "same"}},
            },
            "data.problem is given by the problem a and otherwise by the variant se",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(content: dict, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(TINY | {"problems": {"same": {}}, "seeds": [0]} | content))
    if "paper" in content or content.keys() == {"metric"}:  # found by the report
        cell = cells(load_study(str(tmp_path / "s.yaml")), tmp_path / "out")[0]
        train(cell.recipe, cell.folder)
    capsys.readouterr()
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--report", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the eight runs, all of one problem."""
    folder = tmp_path_factory.mktemp("study")
    for cell in cells(study(), folder):
        if cell.problem == "same":
            train(cell.recipe, cell.folder)
    return folder


def test_the_report_has_what_the_runs_have(trained: Path, tmp_path: Path) -> None:
    one = study()
    rows = collect(one, cells(one, trained))
    assert [(row.problem, row.variant) for row in rows] == [
        (problem, variant) for problem in ("same", "path") for variant in ("plain", "se")
    ]
    for row in rows[:2]:
        for seed in (0, 1):
            records = (trained / "same" / row.variant / f"seed-{seed}" / "metrics.jsonl").read_text()
            last = json.loads(records.splitlines()[-1])
            assert row.scores[seed] == last["val_top1"]
            assert row.curves[seed][-1] == (2 * 32, last["val_top1"])
        assert row.images_to(0) == {0: 32, 1: 32}
        assert row.images_to(101) == {0: None, 1: None}
    assert rows[0].cost is not None
    assert rows[1].cost is not None
    assert rows[0].cost.params < rows[1].cost.params
    assert rows[2].scores == {}
    printed = one.model_copy(update={"paper": {"se": "bam/2/ResNet50 + BAM"}})
    head, body = report.table(printed, rows)
    assert [line[head.index("printed")] for line in body[:2]] == ["", "20.00 (error, table 2)"]
    written = report.write(report.Results(one, "tiny", rows, 4), tmp_path / "report")
    assert sorted(file.name for file in written) == sorted(
        file.name for file in (tmp_path / "report").iterdir()
    )
    text = (tmp_path / "report/report.md").read_text()
    assert f"| {rows[0].spread.mean:.2f} ± {rows[0].spread.std:.2f} (2) |" in text
    assert text.count("not run") == 4  # in the overview and in the table
    assert "4 runs have not ended" in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report/report.csv").read_text())))
    assert [float(line["score"]) for line in lines] == [
        row.scores[seed] for row in rows[:2] for seed in (0, 1)
    ]
    document = json.loads((tmp_path / "report/report.json").read_text())
    assert document["rows"][1]["difference"]["mean"] == pytest.approx(
        rows[1].spread.mean - rows[0].spread.mean
    )
    assert r"\pm" in (tmp_path / "report/report.tex").read_text()
    told = re.findall(r"<text.*?>([^<]*)</text>", (tmp_path / "report/differences.svg").read_text())
    assert {"se", f"{rows[1].spread.mean:.2f} ± {rows[1].spread.std:.2f} (2)"} <= {*told}
    assert not any("path" in words for words in told), "nothing of it ran"
    with Image.open(tmp_path / "report/curves.png") as picture:
        assert picture.width == pytest.approx(120 * (0.8 + 2.8), abs=1), "a panel: of `path` nothing ran"


def test_the_papers_tables_take_their_measured_figures_from_a_study_s_runs(trained: Path) -> None:
    row = collect(study(), cells(study(), trained))[0]
    runs = [run for run in read_runs(trained) if "/plain/" in run.folder]
    assert str(measured("top1", runs)) == f"{row.spread.mean:.2f} ± {row.spread.std:.2f} (n = 2)"


def test_the_report_needs_no_checkpoint_once_the_cost_is_known(trained: Path, tmp_path: Path) -> None:
    one, copied = study(), tmp_path / "study"
    before = [row.cost for row in collect(one, cells(one, trained))]
    shutil.copytree(trained, copied, ignore=shutil.ignore_patterns("checkpoints"))
    assert [row.cost for row in collect(one, cells(one, copied))] == before


def test_seconds_of_one_machine_never_stand_for_those_of_another(trained: Path, tmp_path: Path) -> None:
    """One seed ran on a GPU, and another began here and went on there."""
    copied = tmp_path / "study"
    shutil.copytree(trained, copied)
    one = study()
    here = collect(one, cells(one, copied))
    assert report.timed_on(here) == [
        f"Seconds an epoch are those of the fastest seed on {processor_name()}; "
        "runs beside each other take longer."
    ]
    for variant, gpus in {"se": ["GPU"], "plain": [None, "GPU"]}.items():
        file = copied / f"same/{variant}/seed-1/environment.json"
        environment = json.loads(file.read_text())
        environment["starts"] = [environment["starts"][0] | {"gpu": gpu} for gpu in gpus]
        file.write_text(json.dumps(environment))
    plain, se, *_ = rows = collect(one, cells(one, copied))
    assert list(plain.seconds) == [processor_name()]
    assert list(se.seconds) == [processor_name(), "GPU"]
    head, body = report.table(one, rows)
    at = head.index("seconds an epoch")
    assert [line[at].count("; ") for line in body] == [0, 1, 0, 0]
    assert body[0][at].endswith(f"({processor_name()})")
    assert body[1][at].endswith("(GPU)")


def test_seconds_of_a_run_that_was_resumed_are_of_the_steps_since(trained: Path, tmp_path: Path) -> None:
    """Its last record's began anew with its last step; all steps took two seconds, or three."""
    copied = tmp_path / "study"
    shutil.copytree(trained, copied)
    for seed in (0, 1):
        folder = copied / f"same/plain/seed-{seed}"
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = records[-1]
        an_epoch = last["step"] / last["epoch"]
        assert an_epoch > 1
        ends = [0, *(one["step"] for one in records)]
        steps = [end - begin for begin, end in pairwise(ends)]
        for record, count in zip(records, steps, strict=True):
            record["seconds"] = (2.0 + seed) * count
        last["seconds"] = 2.0 + seed
        environment = json.loads((folder / "environment.json").read_text())
        environment["starts"].append(environment["starts"][0] | {"step": last["step"] - 1})
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    one = study()
    row = collect(one, cells(one, copied))[0]
    assert row.seconds == {processor_name(): pytest.approx(2.0 * an_epoch)}


def test_the_averaged_weights_score_counts_where_there_is_one(trained: Path, tmp_path: Path) -> None:
    copied = tmp_path / "study"
    shutil.copytree(trained, copied)
    file = copied / "same/plain/seed-0/metrics.jsonl"
    records = [json.loads(line) | {"ema_top1": 12.5} for line in file.read_text().splitlines()]
    file.write_text("".join(f"{json.dumps(one)}\n" for one in records))
    row = collect(study(), cells(study(), copied))[0]
    assert row.scores[0] == row.curves[0][-1][1] == 12.5


def test_a_run_of_another_recipe_is_no_part_of_it(trained: Path) -> None:
    other = study(fields=TINY["fields"] | {"epochs": 3})
    with pytest.raises(UserError, match="another recipe"):
        collect(other, cells(other, trained))
    with pytest.raises(UserError, match="another recipe"):
        run_all(cells(other, trained), 1)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("data.json", "{", "data.json is missing or damaged: attneck train "),
        ("environment.json", "[]", "environment.json is missing or damaged: attneck train "),
        (
            "metrics.jsonl",
            None,
            "its last record is of step 2, and its summary.json of step 4: attneck train ",
        ),
    ],
)
def test_what_is_damaged_in_a_run_is_a_line_and_the_resume_that_it_names_mends_it(
    trained: Path, tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    copied = tmp_path / "the study"
    shutil.copytree(trained, copied)
    cell = next(cell for cell in cells(study(), copied) if cell.done)
    before = (cell.folder / file).read_text()
    (cell.folder / file).write_text(before.splitlines(keepends=True)[0] if content is None else content)
    with pytest.raises(UserError) as found:
        collect(study(), cells(study(), copied))
    assert said in str(found.value)
    assert f"attneck train '{cell.folder}' --resume" in str(found.value)
    train(cell.recipe, cell.folder, resume=True)
    collect(study(), cells(study(), copied))
    if file != "environment.json":
        assert (cell.folder / file).read_text() == before


def test_where_there_was_nothing_to_find_no_verdict_is_made(trained: Path, tmp_path: Path) -> None:
    """COCO's score is -1 then, of every network."""
    folder = tmp_path / "study"
    shutil.copytree(trained, folder)
    for file in folder.glob("same/*/*/metrics.jsonl"):
        rows = [json.loads(line) | {"val_top1": -1.0} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="none has anything that top1 scores"):
        collect(study(), cells(study(), folder))


def test_the_interval_is_the_paired_t_test_s() -> None:
    ours, base = {0: 71.2, 1: 70.1, 2: 72.9, 7: 3.0}, {0: 70.0, 1: 69.8, 2: 70.5}
    found = difference(ours, base)
    want = ttest_rel([71.2, 70.1, 72.9], [70.0, 69.8, 70.5]).confidence_interval(0.95)
    assert found.n == 3
    assert found.mean == pytest.approx((1.2 + 0.3 + 2.4) / 3)
    assert found.interval == pytest.approx((want.low, want.high))
    assert found.verdict() == "no difference that counts"
    # By a printed table of t: 4.303 at two degrees of freedom.
    assert difference({0: 1, 1: 2, 2: 3}, {0: 0, 1: 0, 2: 0}).interval == pytest.approx(
        (2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3
    )
    assert difference({0: 10, 1: 11}, {0: 0, 1: 0.9}).verdict() == "higher by 10.05"
    assert difference({0: 0, 1: 0.9}, {0: 10, 1: 11}).verdict() == "lower by 10.05"
    assert difference({0: 1}, {0: 0}).verdict() == "one seed says nothing"
    alike = difference({0: 70.3, 1: 80.3, 2: 10.3}, {0: 70.1, 1: 80.1, 2: 10.1})  # to rounding
    assert (alike.interval, alike.verdict()) == (None, "the same difference each time")
    assert difference({0: 1}, {1: 0}) is None
    assert spread({3: 5.0}).std is None
    assert spread({0: 1.0, 1: 3.0}).std == pytest.approx(2**0.5)
    assert Row("", "x").spread is None


@pytest.mark.parametrize(
    ("interval", "above", "below", "said"),
    [
        ((1.0, 2.0), True, False, "higher by 1.50"),
        ((-2.0, -1.0), False, True, "lower by 1.50"),
        ((-1.0, 4.0), False, False, "no difference that counts"),
        ((-4.0, 1.0), False, False, "no difference that counts"),
        ((0.0, 3.0), False, False, "no difference that counts"),
        ((-3.0, 0.0), False, False, "no difference that counts"),
    ],
)
def test_what_counts_lies_on_one_side_of_0(interval: Any, above: bool, below: bool, said: str) -> None:
    found = Difference(3, sum(interval) / 2, interval)
    assert (found.surely(), found.surely(lower=True), found.verdict()) == (above, below, said)


@pytest.mark.parametrize(
    ("interval", "told", "verdict"),
    [
        ((0.0004, 0.0076), "+0.0040 [+0.0004, +0.0076]", "higher by 0.0040"),
        ((-0.02, -0.004), "-0.012 [-0.020, -0.004]", "lower by 0.012"),
        ((0.006, 0.5), "+0.25 [+0.01, +0.50]", "higher by 0.25"),
        ((-0.001, 0.02), "+0.01 [-0.00, +0.02]", "no difference that counts"),
    ],
)
def test_no_end_of_an_interval_that_counts_is_told_as_0(interval: Any, told: str, verdict: str) -> None:
    found = Difference(3, sum(interval) / 2, interval)
    assert (found.told(), found.verdict()) == (told, verdict)


def test_two_seeds_of_one_difference_are_alike() -> None:
    assert difference({0: 2, 1: 3}, {0: 1, 1: 2}).verdict() == "the same difference each time"
    assert difference({0: 2, 1: 3}, {0: 2, 1: 3}).verdict() == "no difference"
    assert difference({0: 0.3, 1: 1}, {0: 0.1 + 0.2, 1: 1}).interval is None  # 0 to rounding


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_told_and_has_no_interval(bad: float, tmp_path: Path) -> None:
    rows = [Row("same", "plain", {0: 1.0, 1: 2.0, 2: -bad}), Row("same", "se", {0: 3.0, 1: bad, 2: 4.0})]
    for row in rows:
        row.curves = {seed: [(32, 1.0), (64, score)] for seed, score in row.scores.items()}
    one = study(problems={"same": {}}, metric="loss")
    head, body = report.table(one, rows)
    assert body[1][head.index("verdict")] == "a score is no number"
    assert body[1][head.index("loss, mean ± std (n)")] == "nan ± nan (3)"
    assert body[1][head.index("difference to plain [95 %]")] == "+nan"
    assert difference({0: bad}, {0: 1.0}).verdict() == "a score is no number"
    files = report.write(report.Results(one, "tiny", rows, 0), tmp_path)
    assert all(file.stat().st_size for file in files)


def test_means_of_other_seeds_than_the_pairs_are_told() -> None:
    rows = [
        Row("same", "plain", {0: 1.0, 1: 2.0, 2: 6.0}),
        Row("same", "se", {0: 3.0, 1: 5.0}),
        Row("path", "plain", {0: 1.0}),
        Row("path", "se", {0: 3.0, 1: 3.0}),
    ]
    head, body = report.table(study(), rows)
    told = [line[head.index("difference to plain [95 %]")] for line in body]
    assert told[0] == told[2] == ""
    assert told[1].startswith("+2.50 [-3.85, +8.85] (2 pairs)")
    assert told[3] == "+2.00 (1 pair)"


def test_less_loss_is_better() -> None:
    """The score that is reached is at most the threshold, and bold is what is surely below the baseline."""
    losses = study(metric="loss", threshold=0.5)
    curve = [(10, 0.9), (20, 0.6), (30, 0.4)]
    rows = [
        Row("same", "plain", {0: 0.9, 1: 0.9, 2: 0.91}, {0: curve[:2], 1: curve[:2], 2: curve[:2]}),
        Row("same", "se", {0: 0.4, 1: 0.41, 2: 0.4}, {0: curve, 1: [(10, 0.2)], 2: curve[:1]}),
    ]
    head, body = report.table(losses, rows)
    assert [line[head.index("images to 0.5")] for line in body] == ["never, in 20", "20 (2 of 3)"]
    assert report.overview(losses, rows)[1][1][1] == "**0.4033 ± 0.0058 (3)**"
    assert "Bold: below" in report.bold(losses)
    laid = dict(zip(*report.table(losses, rows)[:1], report.table(losses, rows)[1][1], strict=True))
    assert laid["difference to plain [95 %]"].startswith("-0.5000 [-0.5")
    assert laid["verdict"] == "lower by 0.5000"
    just = Row("same", "se", {}, {0: [(10, 0.5)]})
    assert just.images_to(0.5) == just.images_to(0.5, less_is_better=True) == {0: 10}
    better = study(threshold=0.5)
    assert report.overview(better, rows)[1][1][1] == "_0.40 ± 0.01 (3)_"


def test_what_all_runs_have_in_common_is_said_once() -> None:
    rows = [
        Row("same", "plain", recipe={"epochs": 2, "model.options.se": False, "seen": 1}),
        Row("same", "se", recipe={"epochs": 2, "model.options.se": True}),
    ]
    document: Any = report.document(report.Results(study(), "tiny", rows, 0))
    assert document["recipe"] == {"epochs": 2}
    assert document["rows"][0]["recipe"] == {"model.options.se": False, "seen": 1}


def test_pairs_of_two_machines_are_said() -> None:
    """Their arithmetic may differ; of runs whose machine is not known nothing is said."""
    plain = Row("", "plain", {0: 1.0, 1: 2.0, 2: 3.0}, machines={0: ["A"], 1: ["A"], 2: ["A", "B"]})
    other = Row("", "se", {0: 2.0, 1: 3.1, 2: 4.0}, machines={0: ["A"], 1: ["B"], 2: ["A"]})
    unknown = Row("", "bam", {0: 2.0, 1: 3.1}, machines={1: ["unknown"]})
    head, body = report.table(study(problems={}), [plain, other, unknown])
    said = [line[head.index("difference to plain [95 %]")] for line in body]
    assert said[1].endswith("] (2 of two machines)")
    assert said[2].endswith("] (2 pairs)")


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    cell = cells(study(), tmp_path)[0]
    assert "--resume" not in cell.command()
    (cell.folder / "checkpoints").mkdir(parents=True)
    (cell.folder / "checkpoints/step-00000001.pt").touch()
    assert "--resume" not in cell.command()  # a write that was cut short, or no checkpoint of ours
    (cell.folder / "checkpoints/step-00000001.pt.sha256").touch()
    assert cell.command().endswith("--resume")


def test_the_commands_on_the_screen(trained: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["study", "--help"]) == 0
    assert "relations" in (told := capsys.readouterr().out)
    assert all(flag in told for flag in OWN), "each option, with what it does"
    assert cli.main(["study", "tiny.yaml", "--list", "--out", str(trained)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("attneck train relations --data.train-size 32") for line in lines)
    assert cli.main(["study", "tiny.yaml", "--report", "--out", str(trained)]) == 0
    assert "4 of 8 runs have not ended" in capsys.readouterr().err
    for words, said in {
        ("relation",): "perhaps you meant 'relations'",
        ("tiny.yaml", "--list", "--report"): "leave one out",
        ("tiny.yaml", "--list", "--page", "page.md"): "--list and --page are given: leave one out",
        ("tiny.yaml", "--report", "--jobs=2"): "--report and --jobs are given: leave one out",
        ("tiny.yaml", "--jobs", "0"): "--jobs=0",
        ("tiny.yaml", "--seeds", "0"): "--seeds=0",
        ("tiny.yaml", "--only", "zz"): "no run's name has it, such as same/plain/0",
        ("tiny.yaml", "--report"): "no run of the study has ended, runs/study-tiny",
        ("tiny.yaml", "--epoch", "3"): "--epochs",
        ("--jobs", "2"): "the study comes first",
    }.items():
        assert cli.main(["study", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_fields_may_stand_as_in_a_recipe() -> None:
    nested = {"model": {"name": "timm/resnet18", "surgery_options": {"stage": -2}}, "epochs": 3}
    made = study(variants={"plain": nested})
    assert made.variants["plain"] == {
        "model.name": "timm/resnet18",
        "model.surgery_options.stage": -2,
        "epochs": 3,
    }
    for wrong in ({"model.name": "a", "model": {"name": "b"}}, {"model.options": {}}):
        with pytest.raises(ValueError, match=r"is given twice|valid"):
            study(variants={"plain": wrong})


def test_fields_may_be_lists(tmp_path: Path) -> None:
    """Of numbers and of words; the command of each run has them too."""
    own = {
        "optimizer.name": "adamw",
        "optimizer.lr": 0.001,
        "optimizer.betas": [0.8, 0.95],
        "log.trackers": ["wandb", "mlflow"],
        "data.md5": ["0" * 32],
        "model.options.depths": [1, 1, 1],
    }
    (tmp_path / "s.yaml").write_text(json.dumps(TINY | {"problems": {}, "variants": {"plain": own}}))
    cell = cells(load_study(str(tmp_path / "s.yaml")), tmp_path)[0]
    assert cell.recipe.optimizer.betas == [0.8, 0.95]
    assert cell.recipe.model.options["depths"] == [1, 1, 1]
    _, name, *words = cell.words()
    assert parse(name, words).recipe == cell.recipe


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"metric": "AP"},
            "metric is 'AP', which same/plain/0 will not have: give it one of top1, top5, loss",
        ),
        ({"paper": {"plain": "bam/4a/nothing"}}, "no such row"),
        (
            {"sizes": [24], "rescored": {"x": {"variant": "se", "model.options.widthz": 3}}},
            "same/se/0, rescored as x: ",
        ),
    ],
)
@pytest.mark.parametrize("words", [[], ["--list"]])
def test_what_no_report_could_say_is_refused_before_training(
    content: dict, said: str, words: list[str], tmp_path: Path, capsys
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(TINY | content))
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"sizes": [32, 30]}, "same in images of 30 pixels: wanted a multiple of 4"),
        (
            {"sizes": [24], "rescored": {"x": {"variant": "se", "recalibrate": 33}}},
            "rescored x: recalibrate is 33, and same/se/0 has 32 training images: give fewer",
        ),
    ],
)
def test_what_no_run_could_be_scored_as_is_refused_before_training(
    content: dict, said: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(TINY | content))
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_that_yaml_takes_for_something_else_want_quotes(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("recipe: relations\nbaseline: 'yes'\nvariants: {yes: {}}\n")
    with pytest.raises(UserError, match="a name in it as True: put it in quotes"):
        load_study(str(tmp_path / "s.yaml"))


def test_a_study_that_is_not_there_is_told_from_a_file_that_is_not() -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: there is no such file"):
        load_study("mine.yaml")
    with pytest.raises(UserError, match=r"no study 'relationz'; perhaps you meant 'relations'"):
        load_study("relationz")


def test_a_variant_may_change_what_a_problem_gives_but_for_its_images() -> None:
    problems = {"short": {"epochs": 1, "data.problem": "path"}, "long": {"epochs": 2, "data.problem": "path"}}
    made = study(problems=problems, variants={"plain": {}, "more": {"epochs": 3, "data.problem": "path"}})
    assert [cell.recipe.epochs for cell in cells(made, Path("x")) if cell.seed == 0] == [1, 3, 2, 3]


def test_runs_are_shared_with_a_study_that_there_is(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("s", {"runs": "relationz"}), ("t", {"runs": "s"}), ("my u", {"runs": "a pool"})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(TINY | content))
    assert cli.main(["study", "s.yaml", "--list"]) == 2
    said = "runs is 'relationz', which is no study's name; perhaps you meant 'relations'; if not, give --out"
    assert said in capsys.readouterr().err
    for name, folder in (("t", "study-s"), ("my u", "'runs/study-a pool")):
        assert cli.main(["study", f"{name}.yaml", "--list"]) == 0
        assert f"{folder}/same/plain/seed-0" in capsys.readouterr().out


def test_where_nothing_has_ended_a_line_says_what_to_do(tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "my s.yaml", tmp_path / "out"
    file.write_text(json.dumps(TINY))
    assert cli.main(["study", str(file), "--report", "--out", str(out)]) == 2
    assert "train them first, by the same command without --report" in capsys.readouterr().err


def test_a_warm_up_longer_than_a_run_is_refused_before_training(tmp_path: Path, capsys) -> None:
    fields = {**TINY, "fields": {**TINY["fields"], "schedule.warmup_steps": 5}}  # type: ignore[dict-item]
    (tmp_path / "s.yaml").write_text(json.dumps(fields))
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "schedule.warmup_steps is 5 of a run of 4 steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
