"""What the pages under docs/ show works as it stands there, from top to bottom."""

import functools
import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from attneck.commands import study
from attneck.commands.arguments import parse
from attneck.commands.recipe_words import parse as parse_recipe_words
from attneck.commands.study import divided
from attneck.data.readers.folder import resize_and_centre
from attneck.data.table import SETS
from attneck.studies.study import load_study

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


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (225, 1001), (224, 224)])
@pytest.mark.parametrize(
    ("share", "way"), [(0.875, "bilinear"), (0.9, "bicubic"), (0.95, "nearest"), (1.0, "box")]
)
def test_export_s_page_prepares_images_as_the_program_does(
    size: tuple[int, int], share: float, way: str
) -> None:
    text = (ROOT / "docs/export.md").read_text()
    (lines,) = re.findall(r"^(shorter, least = .*?)^pixels", text, re.DOTALL | re.MULTILINE)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    names = {"image": image, "height": 224, "width": 224, "share": share, "way": way, "Image": Image}
    exec(lines, names)
    want = resize_and_centre(image, 224, share, way)
    assert np.array_equal(np.asarray(names["image"]), np.asarray(want))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    sorted(path for place in ("*.md", "docs/*.md", "results/**/*.md") for path in ROOT.glob(place)),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_leads_somewhere(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / unquote(file) if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_the_tables_of_when_to_attend_are_those_of_the_reports() -> None:
    page = ROOT / "docs/when-to-attend.md"
    blocks = re.findall(r"<!-- study (.*?)(?:: table)? -->\n(.*?)\n<!-- end -->", page.read_text(), re.DOTALL)
    assert len(blocks) == 8
    for name, block in blocks:
        if block == f"*Not measured yet*: `attneck study {name} --jobs 2`.":
            continue
        (target,) = re.findall(rf"\[{name}\]\((.*?)\)", block)
        report = (page.parent / target).read_text()
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len(lines) > 2
        assert all(line in report for line in lines)


@pytest.mark.parametrize(
    "page",
    [
        path
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        if path.name != "papers.md"
    ],
    ids=lambda page: page.name,
)
def test_every_command_is_one_and_says_its_data(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is understood; one that trains on a folder of photos has its place and size, one on a published
    set its place, or the page says where it is looked for. (docs/papers.md is held by its own tests.)"""
    text = page.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = "".join(block for kind, block in blocks if not kind).replace("\\\n", " ").splitlines()
    commands = [line for line in lines if line.startswith("attneck ")]
    assert len(commands) == len(re.findall(r"^attneck ", text, re.MULTILINE))
    for line in commands:
        name, *rest = shlex.split(line, comments=True)[1:]
        if name == "train" and not rest[0].startswith("runs/"):
            data = parse_recipe_words(rest[0], rest[1:]).recipe.data
            own = data.name == "folder" and rest[0] == "surgery"
            assert SETS[data.name].drawn or "--data.root" in rest or (not own and "ATTNECK_DATA" in text), (
                line
            )
            assert not own or "--data.image-size" in rest, line
        elif name == "study":
            own_words, changed = divided(rest[1:])
            parse(study.Arguments, "study", own_words)
            if "--data.root" in changed:  # the folder's images, at their size
                assert load_study(rest[0]).fields["data.image_size"] >= 224, line
        elif name != "train":
            for called in (name, "bench_input", "data_pack"):  # of bench and data, by a word of their own
                monkeypatch.setattr(import_module(f"attneck.commands.{called}"), "call", understood)
            import_module(f"attneck.commands.{name}").main(rest)


def understood(command: Callable[..., None], prog: str, words: list[str]) -> None:
    """The words are the command's, which is not run. Raises UserError where they are not."""

    @functools.wraps(command)
    def nothing(*args: object, **options: object) -> None:
        pass

    parse(nothing, prog, words)
