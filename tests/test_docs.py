"""What the pages under docs/ show works as it stands there, from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text())


def test_there_are_pages() -> None:
    assert PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_runs(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block, in one session; what a block prints that is shown after it is what it prints."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    parts = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
    said = ""
    for language, text in parts:
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            said = capsys.readouterr().out
        elif not text.startswith("attneck "):
            assert text.strip() == said.strip()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tables_of_when_to_attend_are_those_of_the_reports() -> None:
    page = ROOT / "docs/when-to-attend.md"
    blocks = re.findall(r"<!-- study (.*?)(?:: table)? -->\n(.*?)\n<!-- end -->", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    for name, block in blocks:
        if block == f"*Not measured yet*: `attneck study {name} --jobs 2`.":
            continue
        (target,) = re.findall(rf"\[{name}\]\((.*?)\)", block)
        report = (page.parent / target).read_text()
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len(lines) > 2
        assert all(line in report for line in lines)
