"""A study's page: its tables stand between two lines, and all else of the file stays as it is."""

import os
from pathlib import Path

import pytest

from attneck import cli
from attneck.errors import UserError
from attneck.studies.page import read

KEPT = Path(__file__).parents[2] / "results/studies/controls/report.json"
OURS = "<!-- study controls -->\nOLD\n<!-- end -->\n"
OTHERS = "Mine.\n<!-- study t -->\ntheirs\n<!-- end -->\n"


def study(folder: Path, page: Path) -> int:
    """What `attneck study` ends with: of a kept report, without a run."""
    where = ["--out", str(folder / "out"), "--to", str(folder / "report"), "--page", str(page)]
    return cli.main(["study", "controls", "--report", "--with", str(KEPT), *where])


def test_a_page_keeps_its_place_its_mode_and_all_else(tmp_path: Path) -> None:
    page, link = tmp_path / "docs/page.md", tmp_path / "link.md"
    page.parent.mkdir()
    page.write_text(OURS + OTHERS)
    page.chmod(0o640)
    link.symlink_to(page)
    assert study(tmp_path, link) == 0
    assert link.is_symlink()
    assert page.stat().st_mode & 0o777 == 0o640
    filled = page.read_text()
    assert "OLD" not in filled
    assert filled.endswith(f"<!-- end -->\n{OTHERS}")
    assert "(../report/report.md)" in filled


def test_what_stands_up_to_another_s_end_is_not_taken_for_old(tmp_path: Path, capsys) -> None:
    """Also where the page has a whole block too."""
    page = tmp_path / "page.md"
    page.write_text(before := OURS + OURS.replace("<!-- end -->\n", "") + OTHERS)
    assert study(tmp_path, page) == 2
    assert "put <!-- end --> where the tables end" in capsys.readouterr().err
    assert page.read_text() == before


def test_a_page_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "page.md").write_text(OURS)
    for locked in (tmp_path / "page.md", tmp_path):
        monkeypatch.setattr(os, "access", lambda path, mode, locked=locked: (path, mode) != (locked, os.W_OK))
        with pytest.raises(UserError, match=f": {locked} may not be written: allow it"):
            read(tmp_path / "page.md", "controls")


def test_a_page_without_a_place_is_refused_before_training(tmp_path: Path, capsys) -> None:
    for content, said in (
        (None, "there is no such file"),
        (b"# A page", "put them where the tables go"),
        (b"\xff\xfe", "give a file of Markdown in UTF-8"),
    ):
        if content is not None:
            (tmp_path / "page.md").write_bytes(content)
        words = ["--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")]
        assert cli.main(["study", "controls", *words]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
