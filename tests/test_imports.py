"""Imports run one way: attention ← layers ← models ← detection, and nothing imports the commands."""

import ast
from pathlib import Path

import pytest

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
    "explain": {"attention", "data", "layers", "measure", "models", "training"},
    "surgery": {"layers", "measure", "models"},
    "tasks": {"data", "detection", "models", "surgery", "training"},
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
    "hub": {"explain", "models", "runs", "tasks", "training"},
    "export": {"detection", "layers", "models", "runs", "seal"},
    "serve": {"data", "explain", "layers", "tasks"},
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


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def arrows() -> list[tuple[Path, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from attneck import data` names the part in the list of names.
                modules = (
                    [f"{node.module}.{a.name}" for a in node.names]
                    if node.module == "attneck"
                    else [node.module]
                )
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                continue
            found += [(path, module.split(".")[1]) for module in modules if module.startswith("attneck.")]
    return found


def test_the_imports_are_read():
    assert len(arrows()) > 30


@pytest.mark.parametrize(
    ("path", "target"),
    [pytest.param(*arrow, id=f"{part_of(arrow[0])}/{arrow[0].stem}-{arrow[1]}") for arrow in arrows()],
)
def test_imports_run_one_way(path, target):
    part = part_of(path)
    if part == "__init__":  # the public face: it names everything, and imports it on first use
        assert target in {
            "attention",
            "data",
            "detection",
            "explain",
            "export",
            "hub",
            "layers",
            "measure",
            "models",
            "runs",
            "surgery",
            "timm_hook",
        }
    else:
        may = MAY[part] | {part} | COMMON
        assert target in may, f"{path.name} ({part}) must not import attneck.{target}"


def test_every_part_has_its_rule():
    assert {part_of(path) for path in PACKAGE.rglob("*.py")} <= set(MAY) | {"__init__"}
