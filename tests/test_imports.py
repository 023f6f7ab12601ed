"""Imports run one way: attention ← layers ← models ← detection, and nothing imports the commands."""

import ast
from pathlib import Path

import pytest

import attneck

PACKAGE = Path(__file__).parents[1] / "src" / "attneck"

COMMON = {"checks", "errors", "files", "imagenet", "processor", "signals", "__version__"}
"""What every part may import."""

# What each part may import of the package, beside itself and `COMMON`.
MAY = {
    "attention": set(),
    "layers": {"attention"},
    "models": {"attention", "layers"},
    "detection": {"attention", "layers", "models"},
    "data": set(),
    "papers": set(),
    "training": {"attention", "data"},
    "measure": {"attention", "data", "layers", "models"},
    "explain": {"attention", "data", "layers", "measure", "models", "surgery", "training"},
    "surgery": {"layers", "measure", "models"},
    "tasks": {"data", "detection", "layers", "models", "surgery", "training"},
    "runs": {
        "attention",
        "data",
        "explain",
        "layers",
        "measure",
        "models",
        "papers",
        "tasks",
        "training",
    },
    "studies": {"data", "explain", "layers", "measure", "papers", "runs", "tasks", "training"},
    "hub": {"explain", "layers", "models", "runs", "surgery", "tasks", "training"},
    "export": {"detection", "layers", "models", "runs", "seal"},
    "serve": {"data", "detection", "explain", "layers", "tasks"},
    "commands": {
        "attention",
        "data",
        "detection",
        "explain",
        "export",
        "hub",
        "layers",
        "measure",
        "models",
        "papers",
        "runs",
        "serve",
        "studies",
        "surgery",
        "tasks",
        "training",
    },
    "__main__": {"cli"},
    "cli": {"commands"},
    "timm_hook": {"models"},
    "checks": {"errors"},
    "errors": set(),
    "files": set(),
    "imagenet": set(),
    "processor": set(),
    "signals": set(),
    "seal": set(),
}


PUBLIC = {home.partition(":")[0].split(".")[1] for home in attneck._HOMES.values()} | {"timm_hook"}
"""What the package names."""


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def arrows(path: Path) -> set[str]:
    """The parts that it imports of the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path} imports by dots, line {node.lineno}: the package's name is wanted"
            )
            # `from attneck import data` names the part in the list of names.
            whole = node.module == "attneck"
            modules = [f"attneck.{a.name}" for a in node.names] if whole else [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {module.split(".")[1] for module in modules if module.startswith("attneck.")}
    return found


FILES: dict[str, list[Path]] = {}
for path in sorted(PACKAGE.rglob("*.py")):
    FILES.setdefault(part_of(path), []).append(path)


@pytest.mark.parametrize("part", FILES)
def test_imports_run_one_way(part: str) -> None:
    """Of `__init__`, the public face, too: it imports what it names on first use."""
    may = MAY[part] | {part} | COMMON if part != "__init__" else PUBLIC
    for path in FILES[part]:
        assert arrows(path) <= may, f"{path.relative_to(PACKAGE)} must not import {arrows(path) - may}"


def test_the_imports_are_read() -> None:
    assert sum(len(arrows(path)) for paths in FILES.values() for path in paths) > 300


def test_every_part_has_its_rule() -> None:
    assert FILES.keys() == MAY.keys() | {"__init__"}
