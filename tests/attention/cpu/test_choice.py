"""Which library multiplies float32 matrices: a rule of the processor, an override, and no clock."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from attneck.attention import relative_attention_2d
from attneck.attention.cpu import choice
from attneck.processor import processor

CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model name\t: a name: with a colon
flags\t\t: fpu avx2 {flags}

processor\t: 1
vendor_id\t: another
cpu family\t: 26
"""


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process; what a test chooses is forgotten after it."""
    monkeypatch.setattr(choice, "_products", None)
    monkeypatch.delenv(choice.VARIABLE, raising=False)


needs_onednn = pytest.mark.skipif(not choice.onednn_works(), reason="this PyTorch has no oneDNN operator")


@pytest.mark.parametrize(
    ("vendor", "family", "flags", "tokens"),
    [
        ("AuthenticAMD", 26, "avx512f avx512bw", 144),
        ("AuthenticAMD", 26, "avx512bw", None),  # a virtual machine that hides it
        ("AuthenticAMD", 25, "avx512f", 400),
        ("AuthenticAMD", 25, "", None),
        ("AuthenticAMD", 23, "avx512f", None),
        ("GenuineIntel", 26, "avx512f", None),
    ],
)
def test_only_processors_that_were_measured_take_onednn(
    vendor: str, family: int, flags: str, tokens: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(vendor=vendor, family=family, flags=flags))
    found = processor(cpuinfo)
    assert found["model name"] == "a name: with a colon"
    assert choice.onednn_from(found) == tokens
    monkeypatch.setattr(choice, "processor", lambda: found)
    monkeypatch.setattr(choice, "_tokens", choice._tokens.__wrapped__)
    for works in (False, True):
        monkeypatch.setattr(choice, "onednn_works", lambda works=works: works)
        choice.set_float32_products(None)
        assert choice.float32_products() == ("onednn" if tokens and works else "mkl")
        for count in (143, 144, 399, 400):
            assert choice.attends_by_onednn(count) == (works and tokens is not None and count >= tokens)
    choice.set_float32_products("onednn")  # as asked for, or as a run on another machine was
    assert choice.attends_by_onednn(tokens or 144)
    assert not choice.attends_by_onednn((tokens or 144) - 1)


def test_a_system_without_cpuinfo_takes_pytorch_s_own(tmp_path: Path) -> None:
    assert processor(tmp_path / "none") == {}
    assert choice.onednn_from({}) is None


def test_the_choice_is_made_once_and_reads_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def ticks() -> float:
        raise AssertionError("a clock was read")

    for name in ("perf_counter", "perf_counter_ns", "monotonic", "time", "process_time"):
        monkeypatch.setattr(time, name, ticks)
    first = choice.float32_products()
    monkeypatch.setattr(choice, "processor", ticks)
    assert choice.float32_products() == first


@needs_onednn
@pytest.mark.parametrize("name", ["onednn", "mkl"])
def test_the_variable_and_the_setter_override_the_processor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "processor", lambda: pytest.fail("the processor was asked"))
    monkeypatch.setenv(choice.VARIABLE, name)
    assert choice.float32_products() == name
    other = {"onednn": "mkl", "mkl": "onednn"}[name]
    choice.set_float32_products(other)
    assert choice.float32_products() == other


@needs_onednn
def test_a_choice_that_is_set_is_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    onednn = choice.onednn
    for module in ("attneck.attention.cpu.products", "attneck.attention.cpu.choice"):
        monkeypatch.setattr(f"{module}.onednn", lambda *a: used.append(1) or onednn(*a))
    q, k, v = torch.randn(3, 1, 2, 144, 8)
    tables = torch.randn(2, 23, 8).unbind()
    monkeypatch.setattr(choice, "_tokens", lambda: 144)
    for name in ("mkl", "onednn", "mkl"):
        choice.set_float32_products(name)
        used.clear()
        relative_attention_2d(q, k, v, *tables, (12, 12), backend="cpu")
        assert bool(used) == (name == "onednn")


def test_another_name_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "openblas")
    for ask in (choice.float32_products, lambda: choice.set_float32_products("openblas")):
        with pytest.raises(ValueError, match=r"^unknown library .openblas.*onednn, mkl.*ATTNECK_PRODUCTS"):
            ask()


def test_onednn_is_left_alone_where_it_is_missing_broken_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("another schema")

    for broken in (fails, lambda a, b: a @ b.T + 1, lambda a, b: a @ b.T * float("nan")):
        with monkeypatch.context() as patch:
            patch.setattr(choice, "onednn", broken)
            assert choice.onednn_works() is False
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert choice.onednn_works() is False
    with pytest.raises(ValueError, match=r"^oneDNN was asked for.*choose 'mkl'.*$"):
        choice.set_float32_products("onednn")
