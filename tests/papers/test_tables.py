"""The transcribed tables hold together, and what is printed beside each figure is what a count says."""

import dataclasses
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch
import yaml

import attneck
from attneck.commands import papers as command
from attneck.commands.measured import Results
from attneck.errors import UserError
from attneck.models import catalog
from attneck.papers.layout import Checked, Section, document, sheet, source_sentence, stacked, tally
from attneck.papers.results import DATA, read_runs
from attneck.papers.tables import (
    PAPERS,
    UNITS,
    Cost,
    Row,
    Table,
    Trainer,
    Verdict,
    compare,
    load_paper,
    train_command,
    verdict,
)
from attneck.runs.printed import recipe_of
from attneck.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
LOADED = {name: load_paper(name) for name in PAPERS}
TABLES = [(paper, table) for paper in LOADED.values() for table in paper.tables]
ROWS = [(paper, table, row) for paper, table in TABLES for row in table.rows]

# Keys whose figures are numbers, signed where they are differences. Others hold words, sizes and lists.
NUMERIC = re.compile(
    r"(params_m|madds_g|step_ms|top[15](_error)?|ap_\w+|map_50|\w+_ratio|speedup|params_delta_m|madds_delta_g|\w+_delta)$"
)

every_table = pytest.mark.parametrize(
    ("paper", "table"), TABLES, ids=[f"{paper.name} {table.id}" for paper, table in TABLES]
)


# What is transcribed


@every_table
def test_printed_strings_stand_in_printed_columns_and_numbers_parse(paper, table):
    known = {column.key for column in table.columns} | {column.delta for column in table.columns}
    for row in table.rows:
        assert row.printed.keys() <= known, row.label
        for key, text in row.printed.items():
            assert text == text.strip() != "", (row.label, key)
            if NUMERIC.match(key) and key != "epochs":
                assert re.fullmatch(r"[+-]?\d+(\.\d+)?", text), (row.label, key, text)
                assert not text.startswith("+") or "delta" in key, (row.label, key, text)


@every_table
def test_labels_tell_rows_apart(paper, table):
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)


def test_numbers_tell_tables_apart():
    for paper in LOADED.values():
        numbers = [table.id for table in paper.tables]
        assert len(set(numbers)) == len(numbers)


@every_table
def test_every_printed_count_says_what_is_expected_and_why_not(paper, table):
    for row in table.rows:
        assert row.expect.keys() == row.printed.keys() & UNITS.keys(), row.label
        if {Verdict.DIFFERS, Verdict.SUM} & set(row.expect.values()):
            assert row.reason.endswith("."), row.label
        else:
            assert not row.reason, row.label
        if Verdict.SUM in row.expect.values():
            assert table.base(row), row.label
        if row.expect:
            assert row.network, row.label


def _base(table: Table, row: Row, key: str, delta: str) -> Row | None:
    """The nearest row above that prints the figure and, as a base does, no difference."""
    above = table.rows[: table.rows.index(row)]
    return next(
        (other for other in reversed(above) if key in other.printed and delta not in other.printed), None
    )


@every_table
def test_differences_in_brackets_are_those_of_the_figures_or_a_note_says_otherwise(paper, table):
    for row in table.rows:
        for column in table.columns:
            if column.delta not in row.printed:
                continue
            base = _base(table, row, column.key, column.delta)
            assert base, (row.label, column.key)
            difference = Decimal(row.printed[column.key]) - Decimal(base.printed[column.key])
            if difference != Decimal(row.printed[column.delta]):
                assert row.note, (row.label, column.key, difference, row.printed[column.delta])


def test_the_misprinted_differences_are_these():
    found = [
        f"{table.id}: {row.label}: {column.key}"
        for _, table, row in ROWS
        for column in table.columns
        if column.delta in row.printed
        and "Differences are to R101" not in row.note
        and Decimal(row.printed[column.key])
        - Decimal(_base(table, row, column.key, column.delta).printed[column.key])
        != Decimal(row.printed[column.delta])
    ]
    assert found == [
        "3: BoT50, [0.5, 2.0]: ap_bbox",
        "7: BoT50, 1280: ap_mask",
        "8: R50 + BoT (c4, c5): ap_mask_75",
        "16: BoT50: ap_bbox_l",
        "3a: PreResNet 110 + BAM: madds_g",
    ]


def test_differences_to_the_row_above_are_right_where_the_note_says_so():
    rows = {row.label: row.printed for row in LOADED["botnet"].table("5").rows}
    for key in ("ap_bbox", "ap_bbox_s", "ap_bbox_l", "ap_mask", "ap_mask_s", "ap_mask_l"):
        difference = Decimal(rows["BoT101"][key]) - Decimal(rows["R101"][key])
        assert difference == Decimal(rows["BoT101"][f"{key}_delta"]), key


def test_a_repeated_row_repeats_a_counted_one():
    for paper, table, row in ROWS:
        if not row.repeats:
            continue
        others = [
            other for other in paper.table(row.repeats).rows if other.counted and other.network == row.network
        ]
        assert len(others) == 1, (table.id, row.label)
        for key in row.expect:
            shorter, longer = sorted((row.printed[key], others[0].printed[key]), key=len)
            step = Decimal(1).scaleb(Decimal(shorter).as_tuple().exponent)
            assert Decimal(longer).quantize(step) == Decimal(shorter), (table.id, row.label, key)


def test_no_counted_network_is_counted_twice_for_the_same_figure():
    seen = {}
    for paper, table, row in ROWS:
        if row.counted:
            key = (
                paper.name,
                row.network,
                row.params_convention,
                tuple(row.printed.get(unit) for unit in UNITS),
            )
            assert key not in seen, (table.id, row.label, seen[key])
            seen[key] = (table.id, row.label)


def test_97_rows_are_counted_and_78_expected_to_come_out():
    counted = [row for _, _, row in ROWS if row.counted]
    assert len(counted) == 97
    assert sum(Verdict.DIFFERS not in row.expect.values() for row in counted) == 78


def test_the_table_of_depths_is_that_of_the_catalog():
    """BoTNet Table 13; SENet-350 is the one whose printed blocks are not those of its printed parameters."""
    for row in LOADED["botnet"].table("13").rows:
        if row.model in catalog.CATALOG:
            printed = tuple(map(int, re.findall(r"\d+", row.printed["blocks"])))
            assert (catalog.find(row.model).options.depths == printed) == (row.model != "senet350"), row.label


# Verdicts


@pytest.mark.parametrize(
    ("printed", "count", "unit", "base", "expected"),
    [
        ("20.8", 20_785_320, 10**6, None, Verdict.SAME),
        ("20.7", 20_785_320, 10**6, None, Verdict.TRUNCATED),
        ("20.9", 20_785_320, 10**6, None, Verdict.DIFFERS),
        ("102.98", 102_989_037_568, 10**9, None, Verdict.TRUNCATED),
        ("12", 12_233_232, 10**6, None, Verdict.SAME),
        ("0.5", 450_000, 10**6, None, Verdict.SAME),  # half way: up
        ("0.4", 450_000, 10**6, None, Verdict.TRUNCATED),
        ("20.00", 19_994_999, 10**6, None, Verdict.DIFFERS),  # all printed zeros count
        ("20.00", 19_995_000, 10**6, None, Verdict.SAME),
        ("24.10", 24_094_000, 10**6, 23_706_000, Verdict.SUM),  # 23.71 + 0.39
        ("24.10", 24_094_000, 10**6, None, Verdict.DIFFERS),
        ("24.11", 24_094_000, 10**6, 23_706_000, Verdict.DIFFERS),
    ],
)
def test_verdicts(printed, count, unit, base, expected):
    assert verdict(printed, count, unit, base) is expected


def test_a_verdict_is_computed_and_never_read():
    table = LOADED["botnet"].table("1")
    wrong = Cost({"paper": 25_404_000, "all": 0, "weights": 0}, 85_400_000_000, 1)
    row = table.rows[0]
    found = compare(table, row, lambda network: wrong)
    assert row.printed["params_m"] == "25.5"
    assert found["params_m"].verdict is Verdict.DIFFERS
    assert found["madds_g"].verdict is Verdict.DIFFERS  # this table leaves the classifier out: 1
    assert found["madds_g"].count == 1


def test_a_base_is_counted_in_the_convention_of_the_row_that_names_it():
    table = LOADED["bam"].table("1a")
    row = next(row for row in table.rows if row.label == "r = 32")
    costs = {
        "cifar_resnet50": Cost({"all": 23_705_252, "paper": 1, "weights": 2}, 1, 1),
        "cifar_resnet50_bam": Cost({"all": 23_864_900, "paper": 1, "weights": 2}, 1, 1),
    }
    assert compare(table, row, lambda network: costs[network.model])["params_m"].verdict is Verdict.SUM


@pytest.fixture(scope="module")
def sections():
    """Every table with every network's counts, and no runs."""
    return command.compare_all(command.choose(None, None), Results([]))


def test_computed_verdicts_are_the_expected_ones(sections):
    mismatches = [
        f"{section.paper.name} {section.table.id}: {checked.row.label}: {key} {found.printed} printed, "
        f"{found.count} computed: {found.verdict}, expected {checked.row.expect[key]}"
        for section in sections
        for checked in section.rows
        for key, found in checked.counts.items()
        if found.verdict is not checked.row.expect.get(key)
    ]
    assert not mismatches, "\n".join(mismatches)
    pending = [checked.row for section in sections for checked in section.rows if checked.pending]
    assert [row.label for row in pending if row.model != row.detector] == []
    for section in sections:
        for checked in section.rows:
            if checked.row.expect and not checked.pending:
                assert checked.counts.keys() >= checked.row.expect.keys(), checked.row.label


def test_78_of_97_rows_come_out(sections):
    found = tally(sections)
    assert found["rows"] == 97
    assert found["differ"] == 19
    assert found["same"] + found["not_built"] == 78


def test_every_sheet_is_a_rectangle_whose_differences_have_reasons(sections):
    for section in sections:
        laid = sheet(section)
        assert {len(cells) for cells in laid.rows} == {len(laid.header)}, section.table.id
        for checked in section.rows:
            if checked.differs:
                assert checked.row.reason in laid.footnotes
        into = re.findall(r"--out (\S+)", " ".join(command for _, command in laid.commands))
        assert len(set(into)) == len(into), "the second command would find the first one's run there"
    json.loads(json.dumps(document(sections, "")))


# Training

RECIPES = command._recipes(TABLES)


def test_every_train_command_makes_the_rows_recipe():
    """Each is parsed once for all models that it is printed for: parsing takes longest."""
    from attneck.commands.recipe_words import parse

    found, parsed = set(), {}
    for _, _, row in ROWS:
        said = command._train(row, RECIPES)
        if said is None:
            continue
        *trunk, own = said.split(" && ")
        program, verb, recipe, *words = own.split()
        assert (program, verb) == ("attneck", "train")
        assert words[words.index("--model.name") + 1] == row.trained
        for before in trunk:
            _, _, its, *out = before.split()
            assert parse(its, out[:-2]).recipe.model.name in row.trained.replace("bot", "res")
            assert out[-2:] == ["--out", words[words.index("--model.weights") + 1]]
        shape = (recipe, *(word for word in words if word != row.trained))
        if shape not in parsed:
            parsed[shape] = parse(recipe, words).recipe
        model = parsed[shape].model
        made = parsed[shape].model_copy(update={"model": model.model_copy(update={"name": row.trained})})
        wanted = command.architecture(row.trained, row.trained_options)
        assert command.architecture(made.model.name, dict(made.model.options)) == wanted, said
        assert made.data.image_size in (None, row.image_size), said
        other = recipe_of(row, RECIPES)
        assert made.model_dump(exclude={"model"}) == other.model_dump(exclude={"model"}), said
        assert command.architecture(other.model.name, dict(other.model.options)) == wanted, said
        found.add(recipe)
    assert 20 < len(parsed) < 60
    assert found >= {"cifar100-bam", "imagenet-100", "imagenet-200", "imagenet-350", "imagenet-bam"}
    assert found >= {"coco-1x", "coco-2x", "coco-3x", "coco-6x", "coco-1280", "coco-bam", "voc-ssd300"}


def test_a_command_says_what_its_recipe_does_not():
    table = LOADED["botnet"].table("12")
    row = next(row for row in table.rows if row.label == "BoT50")
    start = "attneck train imagenet-200 --optimizer.weight-decay 4e-5 --model.name botnet50"
    assert train_command(row, {}) is None
    assert train_command(row, {"demo": Trainer({})}) is None
    assert train_command(row, {"imagenet-200": Trainer({}, 160)}) == (
        f"{start} --model.options se 2 3 4 activation silu --data.image-size 224"
    )
    started = Trainer({"activation": "silu"}, 224)
    assert train_command(row, {"imagenet-200": started}) == f"{start} --model.options se 2 3 4"
    full = Trainer({"activation": "relu", "se": [2, 3, 4], "drop_path": 0.2}, 224)
    assert train_command(row, {"imagenet-200": full}) == f"{start} --model.options activation silu"
    table = LOADED["botnet"].table("7")
    row = next(row for row in table.rows if row.label == "BoT50, 1280")
    detection = dataclasses.replace(row, recipe="coco-6x")
    assert train_command(detection, {"coco-6x": Trainer({}, 1024)}) == (
        "attneck train coco-6x --model.name maskrcnn_botnet50 --data.image-size 1280 "
        "--model.pretrained resnet50.tv_in1k"
    )
    heads = command.architecture("maskrcnn_botnet50", {"drop_path": 0.1})
    assert heads == command.architecture("maskrcnn_resnet50", {"attend": [1]})
    assert heads == command.architecture("maskrcnn_botnet50", {"variant": "cloud_tpu"})
    assert heads != command.architecture("maskrcnn_botnet50", {"variant": "torchvision"})
    assert heads != command.architecture("fasterrcnn_botnet50", {})
    assert heads == command.architecture("maskrcnn_botnet50", {"attend": [1, 1, 1]})
    without = [dataclasses.replace(row, recipe="") for row in LOADED["bam"].table("4b").rows]
    assert all(command._train(row, RECIPES) is None for row in without)


def test_one_network_is_known_by_whatever_options_it_is_given():
    bam, bot = "cifar_resnet50_bam", "botnet50"
    for name, said, plain in (
        (bam, {"bam_combine": "sum"}, {}),
        (bam, {"bam_variant": "official", "bam_combine": "prod"}, {"bam_variant": "official"}),
        (bot, {"attend": [1, 1, 1]}, {}),
        (bot, {"attend": [0, 0, 0]}, {"attend": [0]}),
        ("resnet50", {"attend": [0]}, {}),
    ):
        assert command.architecture(name, said) == command.architecture(name, plain), said
    for name, said in ((bam, {"bam_combine": "prod"}), (bot, {"attend": [0, 1, 1]})):
        assert command.architecture(name, said) != command.architecture(name, {}), said


def test_a_row_may_have_a_recipe_and_detector_options_of_its_own():
    said = {
        (table.id, row.label): command._train(row, RECIPES)
        for table in map(LOADED["botnet"].table, ("3", "7", "9"))
        for row in table.rows
    }
    network = "--model.name maskrcnn_botnet50 --model.pretrained resnet50.tv_in1k"  # footnote 6
    assert said["3", "BoT50, [0.8, 1.25]"] == f"attneck train coco-6x {network}"
    jittered = f"attneck train coco-6x --data.jitter 0.1 2.0 {network}"
    assert said["3", "BoT50, [0.1, 2.0]"] == said["7", "BoT50, 1024"] == jittered
    assert said["9", "BoT200"] == (
        "attneck train imagenet-100 --model.name resnet200 --out runs/resnet200 && "
        "attneck train coco-1280 --model.name maskrcnn_botnet200 --model.options mask_convs 8 "
        "--model.weights runs/resnet200"
    )


def test_what_the_detectors_of_each_table_start_from():
    """ImageNet (BoTNet footnote 6; BAM Table 4), by weights of timm's that there are, as far as there are."""
    from timm import is_model_pretrained

    said: dict[str, set[str]] = {}
    for _, _, row in ROWS:
        command_said = command._train(row, RECIPES) if row.detector else None
        if command_said is not None:
            start = re.search(r"--model\.(pretrained|weights) \S+", command_said)
            assert start, "no detector starts at random"
            said.setdefault(start[0], set()).add(row.trained.partition("_")[2])
    r50, r101, r152, vgg = (
        f"--model.pretrained {name}.tv_in1k" for name in ("resnet50", "resnet101", "resnet152", "vgg16")
    )
    trunks = {
        name: f"--model.weights runs/{name}"
        for name in ("resnet101", "resnet101_bam", "resnet200", "mobilenet")
    }
    assert said.keys() == {r50, r101, r152, vgg, *trunks.values()}
    assert said[r101] == {"resnet101", "botnet101"}
    assert said[r152] == {"resnet152", "botnet152"}
    assert said[vgg] == {"vgg16", "vgg16_bam"}
    assert said[trunks["resnet101"]] == {"resnet101"}  # BAM's, which stride on the 1×1
    assert said[trunks["resnet101_bam"]] == {"resnet101_bam"}
    assert said[trunks["resnet200"]] == {"botnet200"}
    assert said[trunks["mobilenet"]] == {"mobilenet", "mobilenet_bam"}
    assert said[r50] >= {"resnet50", "botnet50", "botnet50_011", "resnet50_se_c5", "resnet50_nl_c4"}
    assert all(is_model_pretrained(start.split()[1]) for start in (r50, r101, r152, vgg))


@pytest.mark.parametrize(
    ("trunk", "detector"),
    [
        ("resnet101", "fasterrcnn_resnet101"),
        ("resnet101_bam", "fasterrcnn_resnet101_bam"),
        ("resnet200", "maskrcnn_botnet200"),
        ("mobilenet", "ssd300_mobilenet"),
        ("mobilenet", "stairnet_mobilenet_bam"),
    ],
)
def test_a_trunk_that_is_trained_before_fills_its_detector(trunk, detector):
    """All of it but the classifier, and for BoTNet the convolutions that attention stands for."""
    from attneck.detection.weights import load_weights

    with torch.device("meta"):
        state = attneck.create_model(trunk).state_dict()
    made, given = (
        attneck.create_model(detector),
        {name: torch.zeros_like(one, device="cpu") for name, one in state.items()},
    )
    replaced = "bot" in detector
    assert all(
        name.startswith("fc.") or (replaced and re.fullmatch(r"layer4\.\d\.conv2\.\w+", name))
        for name in load_weights(made, given).unused
    )


def test_a_quoted_network_that_the_recipe_does_not_fit_has_no_command():
    table = LOADED["botnet"].table("14")
    said = {row.label: command._train(row, RECIPES) for row in table.rows}
    assert said["B0 EfficientNet"] is None
    assert said["T7 BoTNet-S1-128"] == (
        "attneck train imagenet-350 --model.name botnet_s1_128 --data.image-size 384"
    )


# Measurements


def _write_run(
    folder: Path, table: str, label: str, scores: dict, images: int | None = None, **changes
) -> None:
    """A run of a row's own recipe, with some of its fields changed, on so many images."""
    found, row = next((one, row) for _, one, row in ROWS if (one.id, row.label) == (table, label))
    recipe = recipe_of(row, RECIPES).model_dump(mode="json")
    for path, value in changes.items():
        *parts, last = path.split("__")
        place = recipe
        for part in parts:
            place = place[part]
        place[last] = value
    an_epoch = (images or DATA[found.task]) // recipe["batch"]
    steps = Recipe.model_validate(recipe).total_steps(an_epoch)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = {"steps": steps, "epoch": round(steps / an_epoch, 3), "weights": folder.name, **scores}
    (folder / "summary.json").write_text(json.dumps(record))


def _beside(folder: Path, number: str) -> dict[str, list[str]]:
    """The runs beside each row of a table that has any."""
    sections = command.compare_all(command.choose(None, number), Results([folder]))
    rows = [checked for section in sections for checked in section.rows]
    return {checked.row.label: [run.folder for run in checked.runs] for checked in rows if checked.runs}


def test_runs_of_a_rows_recipe_stand_beside_it_and_no_others(tmp_path):
    results = tmp_path / "results"
    wrn, error = ("5", "WideResNet28 (w=8)"), {"val_top1": 79.0}
    _write_run(results / "a", *wrn, error)
    _write_run(results / "deep" / "b", *wrn, {"val_top1": 1.0, "ema_top1": 80.0}, seed=1)
    _write_run(results / "tried", *wrn, error, data__workers=2, data__root="/disk", checkpoint_minutes=1.0)
    _write_run(results / "long", *wrn, error, precision="bfloat16", accumulate=2)
    # A default that is written out is the row's network; less data, and another recipe, are not.
    _write_run(results / "named", "5", "ResNet50 + BAM", error, model__options={"bam_dilation": 4})
    _write_run(results / "toy", *wrn, error, images=256, data__train_size=256)
    _write_run(results / "cut", *wrn, error, images=40_000)
    _write_run(results / "short", *wrn, error, epochs=199)
    _write_run(results / "impatient", *wrn, {**error, "steps": 120 * 390, "epoch": 120.0}, patience=5)
    _write_run(results / "begun", *wrn, {**error, "steps": 1, "epoch": 0.0})  # of an epoch, rounded
    _write_run(results / "patient", *wrn, error, patience=5)
    _write_run(results / "rate", *wrn, error, optimizer__lr=0.2)
    _write_run(results / "batch", *wrn, error, batch=64)
    _write_run(results / "held", *wrn, error, data__val_size=100)
    _write_run(results / "ema", *wrn, error, ema=0.999)
    _write_run(results / "smooth", *wrn, error, label_smoothing=0.1)
    _write_run(results / "shapes", *wrn, error, data__name="shapes", data__md5=[])
    _write_run(results / "gone", *wrn, error, model__name="no_such_model")
    _write_run(results / "timm", *wrn, error, model__name="timm/resnet18")
    _write_run(results / "tuned", *wrn, error, model__weights="imagenet.pth")
    _write_run(results / "surgery", *wrn, error, model__surgery="insert_bam")
    _write_run(results / "dropout", *wrn, error, model__options={"dropout": 0.1})
    (results / "no-recipe").mkdir()
    (results / "no-recipe" / "summary.json").write_text("{}")
    wide = ["results/a", "results/deep/b", "results/long", "results/patient", "results/tried"]
    assert _beside(results, "5") == {
        "WideResNet28 (w=8)": wide,
        "ResNet50 + BAM": ["results/named"],
    }
    assert list(_beside(results, "1a")) == ["d = 4", "r = 16"]

    (section,) = command.compare_all(command.choose("bam", "5"), Results([results]))
    laid = sheet(section)
    column = laid.header.index("Error measured")
    assert {cells[0].split(" ")[0]: cells[column] for cells in laid.rows if cells[column]} == {
        "ResNet50": "21.00",
        "WideResNet28": "20.80 ± 0.45 (n = 5)",
    }
    (note,) = [text for text in laid.footnotes if "results/long" in text]
    assert "results/long (accumulate: 1 → 2, precision: float32 → bfloat16)" in note
    json.loads(json.dumps(document([section], "")))


def test_a_run_of_another_version_is_passed_over_with_a_word(tmp_path, capsys):
    _write_run(tmp_path / "a", "5", "WideResNet28 (w=8)", {"val_top1": 79.0})
    with (tmp_path / "a" / "recipe.yaml").open("a") as recipe:
        recipe.write("of_the_future: 1\n")
    assert _beside(tmp_path, "5") == {}
    assert "there is no field 'of_the_future'; passed over" in capsys.readouterr().err


def test_copies_of_a_run_count_once(tmp_path):
    for place in ("results", "runs"):
        _write_run(tmp_path / place / "a", "5", "WideResNet28 (w=8)", {"val_top1": 79.0})
    found = Results([tmp_path / "results", tmp_path / "runs"])
    assert [run.folder for run in found.runs] == ["results/a"]


def test_folders_of_one_name_are_told_apart(tmp_path):
    """Runs at one place in two of them are judged each by its own recipe, and both count."""
    wrn, error = ("5", "WideResNet28 (w=8)"), {"val_top1": 79.0}
    folders = [tmp_path / place / "runs" for place in ("here", "there", "mine")]
    for folder, changes in zip(folders, ({}, {"seed": 1}, {"optimizer__lr": 0.2}), strict=True):
        _write_run(folder / "a", *wrn, error, **changes)
        summary = folder / "a" / "summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"weights": folder.parent.name}))
    sections = command.compare_all(command.choose("bam", "5"), Results(folders))
    found = [run.folder for section in sections for checked in section.rows for run in checked.runs]
    assert found == [(folder / "a").as_posix() for folder in folders[:2]]
    assert source_sentence(["x"], 3, sections).startswith("Measured: 2 of 3 finished runs")


def test_detectors_have_ap_where_they_started_from_weights(tmp_path, monkeypatch, capsys):
    scores = {"val_box_AP": 43.5, "val_box_AP50": 65.0, "val_mask_AP": 38.5}
    wide = {"data__jitter": [0.8, 1.25]}
    start = {"model__weights": "resnet50.safetensors"}
    _write_run(tmp_path / "runs" / "a", "3", "BoT50, [0.1, 2.0]", scores, images=117_266, **start)
    _write_run(tmp_path / "runs" / "scratch", "3", "BoT50, [0.1, 2.0]", scores)
    _write_run(tmp_path / "runs" / "jitter", "3", "BoT50, [0.1, 2.0]", scores, **start, **wide)
    _write_run(tmp_path / "runs" / "voc", "4b", "MobileNet SSD", {"val_mAP": 68.5}, **start)
    assert _beside(tmp_path / "runs", "3") == {
        "BoT50, [0.8, 1.25]": ["runs/jitter"],
        "BoT50, [0.1, 2.0]": ["runs/a"],
    }
    assert _beside(tmp_path / "runs", "4b") == {"MobileNet SSD": ["runs/voc"]}

    monkeypatch.chdir(tmp_path)  # runs/ is read unasked
    command.main(["botnet", "--table", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    row = found["papers"][0]["tables"][0]["rows"][5]["measured"]
    assert row["ap_bbox"] == {"mean": 43.5, "std": None, "n": 1}
    assert row["runs"] == [{"folder": "runs/a", "note": "started from resnet50.safetensors"}]
    assert found["measured"].startswith("Measured: 2 of 4 finished runs in runs/,")
    command.main(["botnet", "--table", "3"])
    assert re.search(
        r"BoT50, \[0.1, 2.0\].* 45.9 \(\+2.1\) +43.50 +40.7 \(\+1.5\) +38.50 ", capsys.readouterr().out
    )


def test_a_validation_score_is_none_of_the_test_set(tmp_path):
    """Table 18's rows are Table 12's networks and recipe, scored on images whose labels are not public."""
    run, label = tmp_path / "runs" / "a", "BoT-S1-50"
    _write_run(run, "12", label, {"val_top1": 80.5})
    assert _beside(tmp_path / "runs", "18") == {}
    assert [*_beside(tmp_path / "runs", "12").values()] == [["runs/a"]]


def test_ap_of_small_and_large_objects_stands_beside_the_printed_one(tmp_path):
    scores = {"val_box_AP": 43.5, "val_box_APs": 25.0, "val_box_APl": 59.0, "val_mask_APs": 20.5}
    start = {"model__weights": "resnet50.safetensors"}
    _write_run(tmp_path / "runs" / "a", "5", "BoT 50 [1,1,1]", scores, images=117_266, **start)
    (section,) = command.compare_all(command.choose("botnet", "5"), Results([tmp_path / "runs"]))
    laid = sheet(section)
    (cells,) = (cells for cells in laid.rows if cells[0].startswith("BoT 50 [1,1,1]"))
    found = {head: cells[laid.header.index(f"{head} measured")] for head in ("APbbS", "APbbL", "APmkS")}
    assert found == {"APbbS": "25.00", "APbbL": "59.00", "APmkS": "20.50"}


def test_an_imagenet_run_needs_its_rows_image_size_folder_and_drop_path(tmp_path):
    label = {320: "T7-320 BoTNet-S1-128", 384: "T7 BoTNet-S1-128"}
    for side in label:
        _write_run(tmp_path / str(side), "14", label[side], {"val_top1": 80.0}, data__root="/disk/imagenet")
    _write_run(tmp_path / "photos", "14", label[384], {"val_top1": 99.0}, data__root="/disk/photos")
    _write_run(
        tmp_path / "plain", "14", label[384], {"val_top1": 80.0}, model__options={"activation": "silu"}
    )
    found = _beside(tmp_path, "14")
    assert {key: Path(*folders).name for key, folders in found.items()} == {label[s]: str(s) for s in label}


@pytest.mark.parametrize("damage", ["{", "[]", '{"steps": 1}', '{"val_top1": "high"}'])
def test_a_damaged_run_is_named(tmp_path, damage):
    _write_run(tmp_path / "a", "5", "WideResNet28 (w=8)", {"val_top1": 79.0})
    (tmp_path / "a" / "summary.json").write_text(damage)
    with pytest.raises(UserError, match="is no run that attneck wrote") as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_the_committed_results_are_read():
    """None of them is a paper's row: they are short, or small."""
    found = Results([ROOT / "results"])
    assert len(found.runs) >= 10
    sections = command.compare_all(command.choose(None, None), found)
    assert not [run for section in sections for checked in section.rows for run in checked.runs]


# The command and its mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["botnett"], "perhaps you meant 'botnet'"),
        (["bam", "--table", "3"], "perhaps you meant '3b'|perhaps you meant '3a'"),
        (["botnet", "--table", "3a"], "in the botnet paper"),
        (["--table", "twenty"], "no table 'twenty'"),
        (["--results", "/no/such/folder"], "no such folder"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, said):
    with pytest.raises(UserError, match=said) as error:
        command.main(words)
    assert "\n" not in str(error.value)


def test_a_key_that_does_not_exist_is_refused():
    from attneck.papers.tables import _row

    with pytest.raises(ValueError, match="perhaps you meant 'printed'"):
        _row({"label": "x", "model": "", "print": {}}, "here")
    with pytest.raises(ValueError, match="maybe"):
        _row({"label": "x", "model": "", "printed": {}, "expect": {"params_m": "maybe"}}, "here")


def test_one_table_as_text_as_markdown_and_as_json(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no results/
    command.main(["botnet", "--table", "1"])
    text = capsys.readouterr().out
    assert re.search(r"BoTNet-50.*20\.8 .*20\.785 .*same .*102\.98 .*102\.989 .*same, truncated", text)
    assert "2 rows print parameters or multiply-adds, each counted once: 2 come out, 0 differ." in text

    command.main(["botnet", "--table", "1", "--markdown"])
    page = capsys.readouterr().out
    assert "| BoTNet-50 ¹ | 20.8 | 20.785 | same | 102.98 | 102.989 | same, truncated | 1032.66 |" in page
    assert "Made by `attneck papers botnet --table 1 --markdown`" in page

    command.main(["botnet", "--table", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["tally"] == {"rows": 2, "same": 2, "differ": 0, "not_built": 0}
    row = found["papers"][0]["tables"][0]["rows"][1]
    assert row["computed"]["madds_g"] == {"count": 102_989_037_568, "verdict": "same, truncated"}
    assert row["printed"]["madds_g"] == "102.98"


def test_a_narrow_terminal_has_every_cell(sections):
    for section in sections:
        laid = sheet(section)
        told = stacked(laid, 80)
        for cells in laid.rows:
            for name, cell in zip(laid.header[1:], cells[1:], strict=True):
                assert not cell or f"{name} {cell}" in told
    told = stacked(sheet(next(one for one in sections if one.table.id == "9")), 80).splitlines()
    assert max(map(len, told)) <= 80


def test_a_network_that_is_not_here_is_said_not_guessed():
    paper = LOADED["bam"]
    table = paper.table("4b")
    row = dataclasses.replace(table.rows[0], model="no_such_detector")
    assert command.cost(row.network) is None
    checked = Checked(row, compare(table, row, command.cost), [], None)
    assert checked.pending
    laid = sheet(Section(paper, table, [checked]))
    assert "not built" in laid.rows[0]
    assert tally([Section(paper, table, [checked])]) == {"rows": 1, "same": 0, "differ": 0, "not_built": 1}
