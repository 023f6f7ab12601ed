"""attneck bench: its document holds together, and a mistake is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attneck import cli
from attneck.commands import bench_contest, bench_inference, bench_loop
from attneck.training import allocator

STEP = ["step", "--size", "32", "--seconds", "0.001"]
CLASSIFIERS = ["--model", "cifar_resnet20_bam", "--plain", "cifar_resnet20"]
DETECTORS = ["--model", "maskrcnn_botnet26_thin", "--plain", "maskrcnn_resnet26_thin"]
QUICK = ["--seconds", "0.001", "--no-compiled"]


@pytest.fixture(autouse=True)
def _same_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (
            [
                "attention",
                "--size",
                "4",
                "--batch",
                "2",
                "--stride",
                "2",
                "--channels",
                "16",
                "--no-memory",
                *QUICK,
            ],
            2,
        ),
        (["bam", "--size", "4", "--channels", "32", "--dtype", "bfloat16", "--no-memory", *QUICK], 4),
        # Of memory `tests/measure/test_speed.py` has the short form: here it starts Python once a contestant.
        pytest.param([*STEP, "--batch", "2", *CLASSIFIERS], 1, marks=pytest.mark.slow),
        ([*STEP, "--batch", "2", *CLASSIFIERS, "--no-memory"], 1),
        pytest.param(
            ["step", "--size", "96", "--seconds", "0.001", *DETECTORS, "--no-memory"],
            1,
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_the_document(
    words: list[str],
    rows: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "bench.json"
    monkeypatch.setattr("attneck.training.environment.gpu_name", lambda: "one that nothing is measured on")
    assert cli.main(["bench", *words, "--threads", "1", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    assert document["what"] == words[0]
    assert document["environment"]["torch_threads"] == 1
    assert (document["device"], document["environment"]["gpu"]) == ("cpu", None)
    assert len(document["rows"]) == rows
    for row in document["rows"]:
        _, *others = row["ms"]
        assert row["best_other"] == min(others, key=row["ms"].__getitem__)
        assert row["ratio"] > 0
        assert row["ratios"].keys() == {*others}
        assert row["ours"] in ("attneck", "cifar_resnet20_bam", "maskrcnn_botnet26_thin")
        if "--no-memory" not in words:
            assert row["peak_mib"].keys() == row["ms"].keys()
            assert min(row["peak_mib"].values()) > 1


def test_inference_is_one_function_by_whoever_computes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: dict[str, Any] = {}
    make = bench_inference.call

    def kept(case: Any, name: str, *rest: Any) -> Any:
        calls[name] = make(case, name, *rest)
        return calls[name]

    monkeypatch.setattr(bench_inference, "call", kept)
    words = ["inference", "--size", "32", "--batch", "2", "--model", "cifar_resnet20_bot_bam", "--no-memory"]
    assert cli.main(["bench", *words, *QUICK, "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["clock"] == "processor time"
    (row,) = document["rows"]
    assert row["direction"] == "forward"
    assert [*row["ms"]] == ["attneck", "timm BottleneckAttn", "expanded", "onnxruntime"]
    ours = calls.pop("attneck")()
    for name, theirs in calls.items():
        worst = (theirs() - ours).abs().max() / ours.abs().max()
        assert worst < 1e-4, name


def test_where_memory_has_no_counter_times_are_told_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("attneck.measure.memory._RESET", tmp_path / "none")
    words = ["bench", "attention", "--size", "4", "--channels", "16", *QUICK, "--json"]
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert "it is left out" in told.err
    assert all("peak_mib" not in row for row in json.loads(told.out)["rows"])


def test_who_finds_no_memory_is_left_out_of_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    def call(name: str, direction: str, device: str) -> Callable[[], object]:
        def run() -> None:
            if name == "wide":
                raise torch.OutOfMemoryError("full")
            if name == "broken":
                raise RuntimeError("broken")

        return run

    found = bench_contest._that_fit(["ours", "wide", "other"], call, "forward", "cpu", "80×80, forward")
    assert [*found] == ["ours", "other"]
    assert capsys.readouterr().err == "attneck: 80×80, forward: wide does not fit\n"
    for names in (["ours", "broken"], ["wide", "other"]):  # what is no lack of memory, and our own
        with pytest.raises(RuntimeError):
            bench_contest._that_fit(names, call, "forward", "cpu", "")


def test_the_table_has_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "bam", "--size", "4", "--batch", "2", *QUICK, "--no-memory"]) == 0
    said = capsys.readouterr().out
    assert said.count("b2 float32") == 4
    assert "GFLOP/s in float32" in said


def test_kept_memory_is_as_training_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "bam", "--size", "4", "--kept-memory", *QUICK, "--no-memory"]
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocator, "keep_memory", lambda device: asked.append(device) or len(asked) == 1)
        assert cli.main(words) == 0
        assert cli.main(words) == 2
    assert asked == ["cpu", "cpu"]
    assert "this process does not have" in capsys.readouterr().err


def test_the_loop_beside_a_bare_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both take their steps in turns; the two networks end as one, for they are given the same."""
    ends = []
    with pytest.MonkeyPatch.context() as patch:
        checkpoint = bench_loop._checkpoint
        patch.setattr(bench_loop, "_checkpoint", lambda *given: ends.append(given[0]) or checkpoint(*given))
        built, networks = bench_loop._built, []
        patch.setattr(bench_loop, "_built", lambda *given: networks.append(built(*given)) or networks[-1])
        out = tmp_path / "loop.json"
        words = ["bench", "step", "--loop", "--model", "cifar_resnet20", "--size", "24", "--batch", "4"]
        assert cli.main([*words, *QUICK[:2], "--threads", "1", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.read_text())
    (row,) = document["rows"]
    assert row["steps"] >= bench_loop.LEAST
    assert 0.1 < row["ratio"] < 10
    assert row["checkpoint"].keys() == {"mib", "finite_ms", "copy_ms", "write_ms"}
    assert all(value > 0 for value in row["checkpoint"].values())
    ours, bare = networks
    assert ends == [ours]
    for one, other in zip(ours.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert "of classifiers" in bench_loop_mistake(capsys)


def bench_loop_mistake(capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a detector."""
    words = ["bench", "step", "--loop", "--model", "ssd300_mobilenet", "--size", "300", "--batch", "1"]
    assert cli.main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["attention", "--batch", "2"], "give its --size too"),
        (["attention", "--size", "0"], "--size=0: wanted a whole number from 1"),
        (["bam", "--threads", "0"], "--threads=0: wanted a whole number from 1"),
        (["step", "--size", "32", "--model", "botnet5"], "perhaps you meant 'botnet50'"),
        (["step", "--size", "32", "--model", "ssd300_vgg16"], "give two of a kind"),
        (["attention", "--size", "4", "--channels", "10"], "do not split into 4 heads"),
        (
            [*STEP, *DETECTORS],
            "want 72 pixels or more",
        ),
        (["inference", "--dtype", "bfloat16"], "--dtype float32 alone"),
        (["inference", "--size", "64", "--model", "ssd300_vgg16"], "is a detector: bench inference is of"),
        (["step", "--size", "32", "--model", "resnet50"], "resnet50 and --plain resnet50 are one network"),
        (["inference", "--size", "9999", "--batch", "999"], "--batch 999: takes"),
        (["bam", "--loop"], "attneck bench bam takes no --loop"),
        (["bam", "--size", "8", "--model", "resnet50"], "bench bam takes no --model"),
        (["bam", "--size", "8", "--stride", "2"], "bench bam takes no --stride"),
        (["attention", "--size", "8", "--plain", "resnet18"], "bench attention takes no --plain"),
        (["step", "--size", "64", "--channels", "64"], "bench step takes no --channels"),
        (["bam", "--size", "4", "--batch", "1", "--no-memory", *QUICK], "give two images at a time"),
        (STEP, "give a greater --size or --batch"),
        ([*STEP, "--no-compiled"], "attneck bench step takes no --no-compiled"),
        (["step", "--loop", "--kept-memory"], "bench step --loop takes no --kept-memory"),
        (["step", "--loop", "--table", "5"], "attneck bench step --loop takes no --table"),
        ([*STEP, "--compiled"], "attneck bench step takes no --compiled"),
        (["bam", "--out", "nowhere/there.json"], "make it first"),
        (["bam", "--out", "/proc/there.json"], "nothing can be written there"),
        (["bam", "--out", "there.txt"], "wanted a file that ends in .json"),
        pytest.param(
            ["bam", "--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.data
def test_input_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "input.json"
    words = ["--images", "8", "--batch", "4", "--image-size", "32", "--seconds", "0.001"]
    assert cli.main(["bench", "input", *words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["environment"]["processor"] in said
    rows = {row["name"]: row for row in document["rows"]}
    assert [name.partition(",")[0] for name in rows] == ["attneck"] * 3 + ["torchvision"] * 2 + ["timm"]
    assert rows["attneck"]["ratio"] == 1
    assert all(row["images_per_second"] > 0 and row["name"] in said for row in rows.values())
    assert document["photographs"]["width"] > 400


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--root", "nowhere"], "is not a folder"),
        (["--root", "."], "of 128 photographs in coco/train2017"),
        (["--batch", "200"], "--batch=200: wanted a whole number from 1 to 128"),
        (["--seconds", "0"], "wanted more than 0"),
        (["--out", "a.txt"], "wanted a file that ends in .json"),
    ],
)
def test_input_refuses(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATTNECK_DATA", raising=False)
    assert cli.main(["bench", "input", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
