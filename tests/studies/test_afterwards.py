"""What is found out of finished runs: scores at other sizes, and how far attention looks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import update_bn

from attneck import cli
from attneck.data.drawn.relations import draw
from attneck.data.drawn.shapes import FIRST_VALIDATION_INDEX
from attneck.errors import UserError
from attneck.explain import maps
from attneck.layers import MHSA2d
from attneck.runs.run import Run
from attneck.runs.train import train
from attneck.studies import distance, page, report, sizes
from attneck.studies.results import Row
from attneck.studies.study import Study, cells

STUDY = {
    "recipe": "relations",
    "fields": {
        "data.train_size": 64,
        "data.val_size": 40,
        "epochs": 1,
        "batch": 16,
        "optimizer.lr": 0.2,
        "schedule.warmup_epochs": 0,
    },
    "variants": {"plain": {}, "bot": {"model.options.attend": True}},
    "baseline": "plain",
    "seeds": [0],
    "sizes": [24, 32, 64],
    "rescored": {
        "bot_kept": {"variant": "bot", "model.options.resample": "keep"},
        "bot_recalibrated": {"variant": "bot", "recalibrate": 48},
    },
    "distance_images": 5,
}
ONE = Study.model_validate(STUDY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs, and their scores at every size."""
    folder = tmp_path_factory.mktemp("study")
    made = cells(ONE, folder)
    for cell in made:
        train(cell.recipe, cell.folder)
    said: list[str] = []
    sizes.find(ONE, made, said.append)
    distance.find(ONE, made, said.append)
    assert len(said) == 4 * 3 + 2
    return folder


def drawn(first: int, count: int, size: int) -> tuple[Tensor, NDArray[np.bool_]]:
    pixels, answers = draw("same", first + np.arange(count), size)
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.22) / 0.22, answers


def by_hand(run: Run, size: int, resample: str, recalibrated: bool = False) -> dict[str, float]:
    """Scores of images of that side, which the network made for 32 pixels is given as they are."""
    model = run.model()
    for module in model.modules():
        if isinstance(module, MHSA2d):
            module.resample = resample
    if recalibrated:  # 48 of 64, evenly spread, are each first three of four
        images, _ = drawn(0, 64, size)
        update_bn([images[[index for index in range(64) if index % 4 < 3]]], model)
        model.eval()
    images, answers = drawn(FIRST_VALIDATION_INDEX, 40, size)
    with torch.no_grad():
        logits = model(images)
    margins = (logits[:, 1] - logits[:, 0]).double().numpy()
    ones, zeros = margins[answers], margins[~answers]
    above = (ones[:, None] > zeros[None, :]) + 0.5 * (ones[:, None] == zeros[None, :])
    found = logits.argmax(1).bool().numpy()
    return {"top1": float(100 * (found == answers).mean()), "auc": float(100 * above.mean())}


def test_scores_at_another_size_are_those_of_the_same_weights_on_images_of_that_size(folder: Path) -> None:
    rows = {(row.metric, row.name): row for row in sizes.collect(ONE, cells(ONE, folder))}
    assert list(rows) == [
        (metric, name)
        for metric in ("top1", "auc")
        for name in ("plain", "bot", "bot_kept", "bot_recalibrated")
    ]
    for name, variant, resample in (
        ("plain", "plain", "stretch"),
        ("bot", "bot", "stretch"),
        ("bot_kept", "bot", "keep"),
        ("bot_recalibrated", "bot", "stretch"),
    ):
        run, anew = Run(folder / variant / "seed-0"), name == "bot_recalibrated"
        if not anew:
            assert rows["top1", name].scores[32] == {0: run.history[-1]["val_top1"]}
        for size in (24, 64):
            found = {metric: rows[metric, name].scores[size][0] for metric in ("top1", "auc")}
            assert found == pytest.approx(by_hand(run, size, resample, anew))


def test_scoring_goes_on_where_it_was_and_needs_no_checkpoint_afterwards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells(ONE, folder)[1]
    file = cell.folder / sizes.FILE
    whole = file.read_text()
    lost = dict(list(json.loads(whole).items())[:3])  # the digest of the weights, and two sizes
    file.write_text(json.dumps(lost))
    asked: list[int] = []
    real = Run.evaluate

    def evaluate(self: Run, *, image_size: int, **others: object) -> object:
        asked.append(image_size)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, image_size=image_size, **others)

    monkeypatch.setattr(Run, "evaluate", evaluate)
    for _ in range(2):
        try:
            sizes.find(ONE, [cell], lambda line: None)
        except KeyboardInterrupt:
            assert len(json.loads(file.read_text())) == len(lost) + 1  # what was found is kept
    assert json.loads(file.read_text()) == json.loads(whole)
    assert len(asked) == 1 + (len(json.loads(whole)) - len(lost))  # the one that was broken off twice
    checkpoints = cell.folder / "checkpoints"
    checkpoints.rename(tmp_path / "elsewhere")
    try:
        file.write_text(json.dumps(lost))
        sizes.find(ONE, [cell], lambda line: pytest.fail(line))
        scored = {(row.metric, row.name): [*row.scores] for row in sizes.collect(ONE, [cell])}
        assert scored == {("top1", "bot"): [24, 32], ("auc", "bot"): [24, 32]}
    finally:
        (tmp_path / "elsewhere").rename(checkpoints)
        file.write_text(whole)


def test_what_was_found_of_weights_before_the_run_went_on_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on with more patience ends with other weights."""
    cell = cells(ONE, folder)[1]
    files = {name: (cell.folder / name).read_text() for name in ("summary.json", sizes.FILE, distance.FILE)}
    digest = json.loads(files["summary.json"])["weights"]
    assert all(json.loads(text)["weights"] == digest for text in files.values())
    before = sizes.collect(ONE, [cell]), distance.collect(ONE, [cell])
    assert all(before)
    try:
        # A file of before has no digest: it is of the weights as they are.
        for name in (sizes.FILE, distance.FILE):
            found = json.loads(files[name])
            del found["weights"]
            (cell.folder / name).write_text(json.dumps(found))
        assert (sizes.collect(ONE, [cell]), distance.collect(ONE, [cell])) == before
        for name in (sizes.FILE, distance.FILE):
            (cell.folder / name).write_text(files[name])
        (cell.folder / "summary.json").write_text(files["summary.json"].replace(digest, "of others"))
        assert (sizes.collect(ONE, [cell]), distance.collect(ONE, [cell])) == ([], [])
        monkeypatch.setattr(sizes, "_scores", lambda cell, size, part: {"top1": 7.0})
        monkeypatch.setattr(distance, "_heads", lambda cell, images: {"layer": [7.0]})
        sizes.find(ONE, [cell], lambda line: None)
        distance.find(ONE, [cell], lambda line: None)
        assert sizes.collect(ONE, [cell])[0].scores == {size: {0: 7.0} for size in (24, 32, 64)}
        assert [row.heads for row in distance.collect(ONE, [cell])] == [{0: [7.0]}]
    finally:
        for name, text in files.items():
            (cell.folder / name).write_text(text)


def test_each_block_of_a_page_has_its_picture_or_none(tmp_path: Path) -> None:
    rows = [Row("", variant, {0: 1.0}) for variant in ONE.variants]
    text = "".join(f"<!-- study mine{table} -->\nold\n<!-- end -->\n" for table in (": table", "", ": table"))
    (tmp_path / "page.md").write_text(text)
    page.fill(tmp_path / "page.md", report.Results(ONE, "mine", rows, 0), tmp_path / "report")
    blocks = (tmp_path / "page.md").read_text().split("<!-- end -->\n")[:-1]
    assert [block.splitlines()[0] for block in blocks] == text.splitlines()[::3]
    assert ["curves.svg" in block for block in blocks] == [False, True, False]


def test_the_distances_are_the_means_over_evenly_spread_images(folder: Path) -> None:
    made = cells(ONE, folder)
    rows = distance.collect(ONE, made)
    assert {(row.variant, row.layer) for row in rows} == {
        ("bot", f"layer3.{number}.conv2") for number in range(3)
    }
    run = Run(made[1].folder)
    held_out, model = run.data(), run.model()
    want = torch.stack([maps(model, held_out[index][0]).mhsas[1].distance() for index in range(0, 40, 8)])
    assert rows[1].heads == {0: pytest.approx(want.mean(0).tolist(), rel=1e-5)}
    assert all(0 < one < 32 for row in rows for one in row.heads[0])
    _, body = distance.table(ONE, rows)
    assert body[1][-2:] == [f"{pick(rows[1].heads[0]):.2f} (1)" for pick in (min, max)]


def test_the_data_is_looked_for_where_the_study_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lay as the run was trained it may be no more."""
    (_, bot) = cells(ONE, folder)
    moved = bot.recipe.model_copy(update={"data": bot.recipe.data.model_copy(update={"root": "elsewhere"})})
    asked = []

    def noted(*_: object, root: str | None = None, **__: object) -> None:
        asked.append(root)
        raise InterruptedError

    monkeypatch.setattr(Run, "evaluate", noted)
    monkeypatch.setattr(Run, "samples", noted)
    for find in (lambda cell: sizes._scores(cell, 24, {}), lambda cell: distance._heads(cell, 5)):
        with pytest.raises(InterruptedError):
            find(replace(bot, recipe=moved))
    assert asked == ["elsewhere", "elsewhere"]


@pytest.mark.parametrize("content", ["[1]", "{", "1"])
def test_what_was_kept_and_is_damaged_is_a_line(folder: Path, content: str) -> None:
    cell = cells(ONE, folder)[0]
    file = cell.folder / sizes.FILE
    whole = file.read_text()
    file.write_text(content)
    try:
        with pytest.raises(UserError, match=r"sizes.json is damaged \(.*remove it, it is found out again"):
            sizes.collect(ONE, [cell])
    finally:
        file.write_text(whole)


def test_the_report_and_a_page_have_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(
        json.dumps(STUDY | {"problems": {"same": {}, "path": {"data.problem": "path"}}})
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out/same").symlink_to(folder)
    text = "# A page\n\n<!-- study mine -->\nold\n<!-- end -->\n\nafter\n"
    (tmp_path / "page.md").write_text(text)
    words = ["study", str(tmp_path / "mine.yaml"), "--report", "--out", str(tmp_path / "out")]
    words += ["--to", str(tmp_path / "to/there")]
    assert cli.main([*words, "--page", str(tmp_path / "page.md")]) == 0
    assert "scored" not in capsys.readouterr().err  # all of it is kept
    written = (tmp_path / "page.md").read_text()
    assert written.startswith("# A page\n\n<!-- study mine -->\n| problem | score | scored as | 24 pixels |")
    assert written.endswith("\n<!-- end -->\n\nafter\n")
    assert "](to/there/sizes.svg)" in written
    assert "2 runs have not ended" in written
    whole = (tmp_path / "to/there/report.md").read_text()
    assert "| variant | same | path | parameters |" in whole
    assert "| same | top1 | bot_kept | " in whole
    assert "| same | bot | layer3.2.conv2 | " in whole
    document = json.loads((tmp_path / "to/there/report.json").read_text())
    assert [row["name"] for row in document["sizes"]] == [
        *["plain", "bot", "bot_kept", "bot_recalibrated"] * 2
    ]
    assert len(document["distances"]) == 3
    assert (tmp_path / "to/there/sizes.svg").stat().st_size > 5_000
    (tmp_path / "page.md").write_bytes(text.replace("\n", "\r\n").encode())
    assert cli.main([*words, "--page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_bytes().decode() == written.replace("\n", "\r\n")
    capsys.readouterr()
    for name, said in (
        ("nowhere.md", "there is no such file"),
        ("mine.yaml", "put them where the tables go"),
    ):
        assert cli.main([*words, "--page", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert said in error


def test_bold_is_what_is_surely_above_the_baseline() -> None:
    rows = [
        Row("", "plain", {0: 50.0, 1: 51.0, 2: 50.5}),
        Row("", "bot", {0: 90.0, 1: 91.5, 2: 90.2}),
    ]
    _, body = report.overview(ONE, rows)
    assert [line[1][:2] for line in body] == ["50", "**"]
    rows[1].scores = {0: 50.5, 1: 50.9, 2: 50.6}
    assert report.overview(ONE, rows)[1][1][1] == "50.67 ± 0.21 (3)"


def test_eval_at_another_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "bot/seed-0"
    assert cli.main(["eval", str(run), "--image-size", "24", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["image_size"] == 24
    found = {name: document[f"val_{name}"] for name in ("top1", "auc")}
    assert found == pytest.approx(by_hand(Run(run), 24, "stretch"))
    assert err == ""  # other sizes were asked for: nothing has changed
    for size, said in (("0", "data.image_size=0"), ("30", "wanted a multiple of 4")):
        assert cli.main(["eval", str(run), "--image-size", size]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_more_images_than_there_are_are_all_of_them(folder: Path) -> None:
    many = ONE.model_copy(update={"distance_images": 200})
    made = cells(many, folder)
    said: list[str] = []
    distance.find(many, made, said.append)
    assert said[-1] == "bot/0: distances of attention over 40 images"
    assert {row.variant for row in distance.collect(many, made)} == {"bot"}


def test_what_cannot_be_found_out_is_said_and_the_rest_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("no such image")

    monkeypatch.setattr(Run, "evaluate", fail)
    monkeypatch.setattr(Run, "samples", fail)
    (tmp_path / "s.yaml").write_text(json.dumps(STUDY | {"sizes": [24, 40], "distance_images": 7}))
    where = ["--out", str(folder), "--to", str(tmp_path / "report")]
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--report", *where]) == 0
    said = capsys.readouterr().err
    assert "plain/0: not scored as plain at 40 pixels: no such image" in said
    assert "bot/0: no distances of attention: no such image" in said
    written = (tmp_path / "report/report.md").read_text()
    assert "24 pixels" in written
    ways = "; ".join(f"{way} at 40 pixels" for way in ("plain", "bot", "bot_kept", "bot_recalibrated"))
    assert f"Not scored: {ways}." in written


def test_a_size_that_cannot_be_had_takes_no_other_with_it(folder: Path, tmp_path: Path, capsys) -> None:
    ways = {"x": {"variant": "bot", "recalibrate": 1000}}
    own = {"sizes": [24, 30, 36], "distance_images": 0, "rescored": ways}
    (tmp_path / "s.yaml").write_text(json.dumps(STUDY | own))
    shutil.copytree(folder, tmp_path / "out")
    words = ["--out", str(tmp_path / "out"), "--to", str(tmp_path / "report")]
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--report", *words]) == 0
    said = capsys.readouterr().err
    assert "plain/0: not scored as plain at 30 pixels: " in said
    assert "plain/0: scored as plain at 36 pixels" in said
    written = (tmp_path / "report/report.md").read_text()
    assert "Not scored: plain at 30 pixels; bot at 30 pixels; x at 24, 30, 36 pixels." in written


def test_where_nothing_could_be_scored_the_report_says_so(folder: Path, tmp_path: Path, capsys) -> None:
    """Options that change what the weights are: a way that no run can be scored in."""
    own = {"sizes": [24], "distance_images": 0, "variants": {"bot": {"model.options.attend": True}}}
    other = {"baseline": "bot", "rescored": {"plain": {"variant": "bot", "model.options.attend": False}}}
    (tmp_path / "s.yaml").write_text(json.dumps(STUDY | own | other))
    where = ["--out", str(folder), "--to", str(tmp_path / "report")]
    assert cli.main(["study", str(tmp_path / "s.yaml"), "--report", *where]) == 0
    assert "its weights do not fit cifar_resnet20 with these options" in capsys.readouterr().err
    assert "Not scored: plain at 24 pixels." in (tmp_path / "report/report.md").read_text()
