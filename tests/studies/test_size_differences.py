"""What ways to score differ by at other sizes, seed by seed; and a report with another baseline."""

import json
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from attneck import cli
from attneck.studies import report
from attneck.studies.results import Row
from attneck.studies.sizes import SizeRow
from attneck.studies.study import Study

KEPT = Path(__file__).parents[2] / "results/studies/zoom/report.json"
STUDY = Study.model_validate(
    {
        "recipe": "relations",
        "variants": {"plain": {}, "bot": {"model.options.attend": True}, "bam": {"model.options.bam": True}},
        "baseline": "plain",
        "sizes": [24, 48],
        "rescored": {
            "plain_anew": {"variant": "plain", "recalibrate": 8},
            "bot_anew": {"variant": "bot", "recalibrate": 8},
            "bot_kept": {"variant": "bot", "model.options.resample": "keep"},
            "bot_fewer": {"variant": "bot", "recalibrate": 4},
        },
    }
)


def results() -> report.Results:
    """Three seeds of each, on one machine but for a run of `bot`; `bam` has other held-out images."""
    machines = {seed: ["A"] for seed in range(3)}
    images = {"held-out": "40 images, aa"}
    rows = [
        Row("", "plain", dict.fromkeys(range(3), 1.0), machines=machines, data=images),
        Row("", "bot", dict.fromkeys(range(3), 1.0), machines=machines | {1: ["B"]}, data=images),
        Row("", "bam", dict.fromkeys(range(3), 1.0), machines=machines, data={"held-out": "9 images, bb"}),
    ]
    scores = {
        "plain": [50.0, 51.0, 52.5],
        "plain_anew": [60.0, 62.0, 61.0],
        "bot": [57.0, 57.5, 60.0],
        "bot_anew": [70.0, 71.0, 69.0],
        "bot_kept": [57.5, 57.0, 59.0],
        "bot_fewer": [65.0, 66.0, 64.0],
        "bam": [10.0, 11.0, 12.0],
    }
    made = [SizeRow("", name, "top1", {24: dict(enumerate(of))}) for name, of in scores.items()]
    made[2].scores[48] = {1: 40.0, 2: 41.0}  # one seed less than …
    made[0].scores[48] = {0: 30.0, 1: 32.0, 2: 33.0}  # … the baseline
    return report.Results(STUDY, "mine", rows, 0, made)


def test_each_way_is_compared_with_the_baseline_scored_likewise_and_with_its_own_variant() -> None:
    of = {row.name: [*row.scores[24].values()] for row in results().sizes}
    found = {(pair.way.name, pair.against.name): pair for pair in results().pairs}
    assert list(found) == [
        ("plain_anew", "plain"),
        ("bot", "plain"),
        ("bot_anew", "plain_anew"),
        ("bot_anew", "bot"),
        ("bot_kept", "plain"),
        ("bot_kept", "bot"),
        ("bot_fewer", "bot"),  # the baseline was scored by the statistics of no four images
    ]
    for (way, against), pair in found.items():
        one, test = pair.at(24), ttest_rel(of[way], of[against])
        assert one is not None
        assert one.n == 3
        assert one.mean == pytest.approx((sum(of[way]) - sum(of[against])) / 3)
        assert one.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert pair.apart(24) == (1 if (way.startswith("bot"), against[:5]) == (True, "plain") else 0)
    fewer = found["bot", "plain"].at(48)
    assert fewer is not None
    assert (fewer.n, fewer.mean) == (2, 8.0)


def test_the_report_says_which_are_sure_and_of_how_many_pairs(tmp_path: Path) -> None:
    report.write(results(), tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "less plain, scored likewise" in page
    assert "| top1 | bot_kept | plain | **+6.67 [+4.77, +8.56]** (1 of two machines) |  |" in page
    assert "| top1 | bot_kept | bot | -0.33 [-2.23, +1.56] |  |" in page
    assert "** (1 of two machines) | +8.00 (2 pairs, 1 of two machines) |" in page
    assert "**" not in (tmp_path / "report.tex").read_text()
    assert "bot\\_kept & plain & +6.67 [+4.77, +8.56] (1 of two machines)" in (
        (tmp_path / "report.tex").read_text()
    )
    kept = {
        (one["name"], one["less"]): one
        for one in json.loads((tmp_path / "report.json").read_text())["size_differences"]
    }
    assert [*kept["bot", "plain"]["differences"]] == ["24", "48"]
    assert kept["bot", "plain"]["differences"]["48"]["n"] == 2
    assert kept["bot_anew", "bot"]["differences"]["24"]["of_two_machines"] == 0


def test_a_report_with_another_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From kept runs: its differences are those of the whole, the other way round."""
    words = ["study", "zoom", "--report", "--with", str(KEPT), "--out", str(tmp_path / "none"), "--to"]
    assert cli.main([*words, str(tmp_path / "other"), "--baseline", "botnet"]) == 0
    found, kept = (json.loads(file.read_text()) for file in (tmp_path / "other/report.json", KEPT))
    assert (found["baseline"], kept["baseline"]) == ("botnet", "resnet")
    (there,) = (row for row in found["rows"] if row["variant"] == "resnet")
    (here,) = (row for row in kept["rows"] if row["variant"] == "botnet")
    assert there["difference"]["mean"] == pytest.approx(-here["difference"]["mean"])
    assert there["difference"]["interval"] == pytest.approx(
        [-end for end in here["difference"]["interval"]][::-1]
    )
    pairs = {(one["name"], one["less"]) for one in found["size_differences"]}
    assert {("botnet_sizes", "botnet"), ("resnet_recalibrated", "botnet_recalibrated")} < pairs
    assert cli.main([*words, str(tmp_path / "no"), "--baseline", "botne"]) == 2
    assert "perhaps you meant 'botnet'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert cli.main(["study", "zoom", "--list", "--baseline", "botnet"]) == 2
    assert "--list and --baseline are given: leave one out" in capsys.readouterr().err
