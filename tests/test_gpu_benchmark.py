"""benchmarks/gpu on the CPU, tiny: every part runs, goes on where it was, and none stops another."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch.torch_version import TorchVersion

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_parts import __main__ as command  # noqa: E402
from gpu_parts import apart, attention, cifar, kept, steps, thresholds  # noqa: E402
from gpu_parts.kept import Job, Kept  # noqa: E402


def trained_here(words: list[str], seconds: float) -> int:
    """`attneck WORDS` in this process, which has torch loaded."""
    from attneck import cli

    return cli.main(words)


TINY = ["--device", "cpu", "--tiny", "--minutes", "60"]


def documents(out: Path) -> dict[str, Any]:
    return {name: json.loads((out / f"{name}.json").read_bytes()) for name in command.PARTS}


@pytest.mark.parametrize("flex", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "flex"])
def test_every_part_runs_tiny_on_the_cpu_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flex: bool
) -> None:
    """One run of all parts serves all of this: it is the dear part.

    flex: with FlexAttention, which is compiled, in the smallest case.
    """
    out = tmp_path / "out"
    words = ["--out", str(out), "--runs", str(tmp_path / "runs"), *TINY]
    small, (smallest, other) = steps.cases(job(tmp_path))[:1], attention.cases(job(tmp_path))
    assert attention.FLEX in attention.contestants(smallest)
    assert attention.FLEX not in attention.contestants(other)
    monkeypatch.setattr(attention, "cases", lambda job: [smallest, other] if flex else [other])
    with monkeypatch.context() as patch:
        # What takes long and is tested elsewhere. A part's process is forked, and has these too.
        patch.setattr(cifar, "train", trained_here)
        patch.setattr(steps, "cases", lambda job: small)
        patch.setattr(attention, "gemm_ceiling", lambda *_: 1e11)
        patch.setattr(attention, "bandwidth_ceiling", lambda *_: 1e10)
        before = signal.getsignal(signal.SIGTERM)
        assert command.main(words) == 0
        signal.signal(signal.SIGTERM, before)
    found = documents(out)
    assert {name: document["state"] for name, document in found.items()} == dict.fromkeys(found, "done")
    assert {row["outcome"] for row in found["tests"]["rows"].values()} <= {"passed", "skipped"}
    assert any(attention.FLEX in row["ms"] for row in found["attention"]["rows"].values()) == flex
    for key, row in found["attention"]["rows"].items():
        assert row["ms"].keys() >= {"plain", "sdpa", "tiled"}, key
        assert "triton" in row["left_out"], "it wants a GPU: said, not failed"
        limit = attention.LARGEST[row["dtype"]]
        assert all(check["error"] < limit for check in row["checks"].values()), key
    for row in found["steps"]["rows"].values():
        assert row["ms"].keys() == row["peak_mib"].keys() == {*row["names"]}
    assert found["thresholds"]["rows"].keys() == {"forward", "training"}
    assert [row["history"][-1]["epoch"] for row in found["cifar"]["rows"].values()] == [1, 1]
    assert "over R50's" in found["table14"]["table"]
    patch_file = (out / thresholds.PATCH).read_text()
    assert patch_file.startswith(f"--- a/{thresholds.LIMITS}\n+++ b/{thresholds.LIMITS}\n")
    assert '+    ("0.0", "forward"): Limits(plain_below=' in patch_file

    assert command.main(words) == 0  # nothing is measured again
    assert documents(out) == found

    file = out / "attention.json"
    document = json.loads(file.read_bytes()) | {"state": "unfinished"}
    last, row = document["rows"].popitem()
    file.write_text(json.dumps(document))
    assert command.main([*words, "--only", "attention"]) == 0
    after = documents(out)["attention"]
    assert after["state"] == "done"
    assert after["rows"].pop(last)["ms"] != row["ms"]
    assert after["rows"] == document["rows"]
    assert "nothing is left" in capsys.readouterr().out

    kept = Kept(file)  # a part without time keeps what it has
    assert not attention.work(kept_without_rows(kept), job(out, seconds=0))

    kept = Kept(out / "steps.json")  # times of two machines do not meet
    there = kept.document["where"]
    with pytest.raises(
        command.UserError, match=r"measured with gpu None, and here it is H100.*another --out"
    ):
        kept.on(there | {"gpu": "H100"})


def kept_without_rows(kept: Kept) -> Kept:
    kept.rows.clear()
    kept.path = kept.path.with_name("other.json")
    return kept


def job(out: Path, seconds: float = 60) -> Job:
    return Job(out, "cpu", True, time.monotonic() + seconds, out)


def rows_of(*faults: Any) -> Any:
    """Work of a row for each of these, which are called in it."""

    def work(kept: Kept, job: Job) -> bool:
        for number, fault in enumerate(faults):
            key = f"row {number}"
            if key in kept.rows or key in kept.left_out:
                continue
            if job.left <= 0:
                return False
            kept.doing(key, "someone")
            fault()
            kept.row(key, {})
        return True

    return work


def nothing() -> None:
    pass


def crash() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest's handler, and who else has one, may wait
    os.kill(os.getpid(), signal.SIGSEGV)


def test_what_an_old_compiler_would_make_plain_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = [(case, True) for case, _ in steps.cases(job(tmp_path))]
    monkeypatch.setattr(steps, "cases", lambda job: compiled[:1])
    monkeypatch.setattr(steps, "COMPILES", TorchVersion("99"))
    document = Kept(tmp_path / "steps.json")
    assert steps.work(document, job(tmp_path))
    assert not document.rows
    ((_, left),) = document.left_out.items()
    assert "older than 99" in left[""]


def test_a_crash_loses_its_row_alone(tmp_path: Path) -> None:
    assert apart.apart("part", rows_of(nothing, crash, nothing), job(tmp_path)) == "done"
    document = json.loads((tmp_path / "part.json").read_bytes())
    assert [*document["rows"]] == ["row 0", "row 2"]
    assert document["left_out"] == {"row 1": {"someone": "its process ended: SIGSEGV"}}


def test_a_lost_context_goes_on_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def work(kept: Kept, job: Job) -> bool:
        if "spoilt" not in kept.left_out:
            kept.doing("spoilt")
            apart.sound(kept, "cuda")
            raise AssertionError("nothing more may run in this process")
        return True

    monkeypatch.setattr("torch.cuda.synchronize", lost)
    assert apart.apart("part", work, job(tmp_path)) == "done"
    document = json.loads((tmp_path / "part.json").read_bytes())
    assert document["left_out"] == {"spoilt": {"": "an illegal memory access was encountered"}}


def test_a_row_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    work = rows_of(nothing, lambda: time.sleep(60))
    assert apart.apart("part", work, job(tmp_path, seconds=3), grace=0.2) == "unfinished"
    assert time.monotonic() - began < 45
    document = json.loads((tmp_path / "part.json").read_bytes())
    assert [*document["rows"]] == ["row 0"]
    assert not document["left_out"], "it began too late to be one that takes too long"


def test_what_ends_the_whole_command_three_times_is_left_out(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "part.json")
    for _ in range(3):
        kept.doing("row 0", "someone")  # and no more: killed
        assert apart.apart("part", lambda kept, job: True, job(tmp_path)) == "done"
        kept = Kept(kept.path)
    assert "row 0" in kept.left_out


def test_a_part_that_fails_says_so_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(kept: Kept, job: Job) -> bool:
        raise ValueError("no such thing")

    monkeypatch.setattr("gpu_parts.cuda_tests.work", fails)
    monkeypatch.setattr("gpu_parts.cifar.work", lambda kept, job: True)
    only = ["--only", "cifar", "--only", "tests"]
    assert command.main(["--out", str(tmp_path), *TINY, *only]) == 1
    said = capsys.readouterr().out
    assert "tests: failed: ValueError: no such thing" in said
    assert "cifar: done" in said
    assert "left: tests" in said


def test_the_command_refuses_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "steps.json").write_text("[1]")
    for words, says in (
        (["--minutes", "0"], "wanted a number above 0"),
        ([], "no CUDA device"),
        (["--device", "cpu", "--tiny"], "move it away"),
    ):
        if says == "no CUDA device" and kept.where(job(tmp_path))["gpu"]:
            continue
        assert command.main(["--out", str(tmp_path), *words]) == 2
        assert says in (said := capsys.readouterr().err)
        assert said.count("\n") == 1


def row(size: int, direction: str = "forward", **ms: float) -> dict[str, Any]:
    checks = {name: {"error": 0.0} for name in ms}
    return {"size": size, "dtype": "bfloat16", "direction": direction, "ms": ms, "checks": checks}


def test_limits_are_where_the_fastest_backend_changes() -> None:
    rows = [
        row(7, plain=1, sdpa=2, triton=3),
        row(14, plain=1, sdpa=2, triton=3),
        row(20, plain=3, sdpa=2, triton=3),
        row(32, plain=9, sdpa=2, triton=3),
        row(64, plain=99, sdpa=4, triton=3),
    ]
    assert thresholds.best(rows, (20, 64)) == ((20, 32), 1.0)
    assert thresholds.best(rows, (17, 40)) == ((17, 40), 1.0), "no change that gains nothing"
    rows[3]["checks"]["sdpa"]["error"] = 1.0  # wrong there, however fast
    (plain, sdpa), _ = thresholds.best(rows, (20, 64))
    assert thresholds.backend(32, plain, sdpa) == "triton"
    large = [row(size, plain=1, sdpa=2, triton=3) for size in (14, 32, 64)]
    (plain, _), _ = thresholds.best(large, (20, 64))
    assert plain == 33, "no N×N above it, however fast"


def test_the_patch_is_of_the_table() -> None:
    source = (ROOT / thresholds.LIMITS).read_text()
    for limits in ((14, 48), (10, 32)):  # a new row, then its other values
        source = thresholds.replaced(source, "9.0", "forward", limits)
        there: dict[str, Any] = {}
        exec(source, there)
        assert there["limits"]((9, 0), "forward") == limits
        assert there["limits"]((8, 0), "forward") == there["LIMITS"]["any", "forward"]
