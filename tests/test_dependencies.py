"""Every declared dependency is used, every import is declared, and constraints.txt pins all that comes."""

import ast
import platform
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CONSTRAINTS = ROOT / "constraints.txt"

# Where the package may import what an extra brings: inside functions, so that all else works without.
EXTRA_OF = {
    "commands/bench_inference.py": "export",
    "explain/gradcam.py": "explain",
    "export/": "export",
    "hub/": "hub",
    "measure/contestants.py": "dev",
}

# Used, but by no import of ours: the place that uses it, and how.
USED_BY = {
    "ruff": ("Makefile", "$(BIN)/ruff check"),
    "mypy": ("Makefile", "$(BIN)/mypy"),
    "pytest-xdist": ("Makefile", "pytest -n"),
    "types-pyyaml": ("src/attneck/training/recipe_file.py", "import yaml"),  # mypy reads its types
}

# A dependency brings it: torch on the systems that have it, and timm to download weights with.
BROUGHT_BY = {"triton": "torch", "huggingface-hub": "timm", "fonttools": "matplotlib"}


def group(name: str) -> list[Requirement]:
    """The requirements of one extra, or of the package itself where the name is empty."""
    lines = EXTRAS[name] if name else PROJECT["dependencies"]
    return [Requirement(line) for line in lines if not line.startswith("attneck[")]


DECLARED = {one or "package": {canonical(r.name) for r in group(one)} for one in ("", *EXTRAS)}


def modules(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Each imported module, also by `pytest.importorskip`, and whether a function's call imports it."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            names = [ast.literal_eval(node.args[0])]
        yield from ((name, id(node) in inside) for name in names)


distributions = cache(metadata.packages_distributions)


@cache
def modules_of(path: Path) -> list[tuple[str, bool]]:
    """`modules` of a file."""
    return list(modules(ast.parse(path.read_text())))


def imports(*folders: str) -> Iterator[tuple[Path, str, bool]]:
    """File, distribution, and whether it is imported inside a function, for every third-party import."""
    ours = {"attneck", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    ours |= {path.name for path in (ROOT / "benchmarks").iterdir() if path.is_dir()}
    brings = distributions()
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for module, lazy in modules_of(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in ours:
                for distribution in {canonical(name) for name in brings.get(top, [top])}:
                    yield path, distribution, lazy


def missing(found: Iterator[tuple[Path, str, bool]]) -> list[str]:
    """What is imported where its group isn't declared, or where it is imported too early."""
    wrong = []
    for path, distribution, lazy in found:
        file = str(path.relative_to(ROOT))
        inside = file.removeprefix("src/attneck/")
        extra = next((extra for start, extra in EXTRA_OF.items() if inside.startswith(start)), None)
        extra = extra if file.startswith("src/") else "dev"
        if distribution in DECLARED["package"]:
            continue
        if not file.startswith("src/"):
            known = set().union(*DECLARED.values())
        else:
            known = DECLARED[extra] if extra and lazy else set()
        brought = BROUGHT_BY.get(distribution)
        if distribution not in known and not (brought and distribution in names_required_by(brought)):
            wrong.append(f"{file} imports {distribution}")
    return wrong


def names_required_by(distribution: str) -> set[str]:
    return {canonical(Requirement(line).name) for line in metadata.requires(distribution) or ()}


def test_every_import_is_declared_where_it_is_used() -> None:
    assert missing(imports("src", "tests", "benchmarks", "examples")) == []


def test_every_declared_dependency_is_used() -> None:
    package = {name for _, name, _ in imports("src")}
    anywhere = package | {name for _, name, _ in imports("tests", "benchmarks", "examples")}
    for name, (file, words) in USED_BY.items():
        assert words in (ROOT / file).read_text(), f"{name}: no {words!r} in {file}"
        assert name not in anywhere, f"{name} is imported: it needs no reason"
        anywhere.add(name)
        package |= {name} if file.startswith("src/") else set()
    for kind, names in DECLARED.items():
        unused = names - (anywhere if kind == "dev" else package)
        assert not unused, f"{kind}: nothing uses {sorted(unused)}"
    assert set().union(*DECLARED.values()) >= set(USED_BY), "a reason for what isn't declared"


@pytest.mark.parametrize("kind", ["", *EXTRAS])
def test_every_dependency_has_an_oldest_and_a_first_version_that_is_too_new(kind: str) -> None:
    """`make test-oldest` reads the oldest out of `name>=version`."""
    for requirement in group(kind):
        assert sorted(one.operator for one in requirement.specifier) == ["<", ">="], str(requirement)


def pins() -> dict[str, str]:
    lines = CONSTRAINTS.read_text().split()
    found = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    assert len(found) == len(lines), "a name twice"
    return found


def everything() -> dict[str, list[Requirement]]:
    """Each distribution that attneck[dev] brings on this machine, and what is required of it."""
    found: dict[str, list[Requirement]] = {}
    todo = [requirement for kind in ("", *EXTRAS) for requirement in group(kind)]
    seen = set()
    while todo:
        requirement = todo.pop()
        name = canonical(requirement.name)
        found.setdefault(name, []).append(requirement)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                lines = [Requirement(line) for line in metadata.requires(name) or ()]
                todo += [one for one in lines if one.marker is None or one.marker.evaluate({"extra": extra})]
    return found


def test_constraints_pin_all_that_is_installed_with_the_package() -> None:
    """As it is here, and within the bounds of everything that requires it."""
    pinned = pins()
    for name, requirements in everything().items():
        assert pinned.get(name) == metadata.version(name), f"{name} in constraints.txt, and installed"
        for requirement in requirements:
            assert requirement.specifier.contains(pinned[name], prereleases=True), str(requirement)


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="other systems need less"
)
def test_constraints_pin_nothing_else() -> None:
    assert sorted(set(pins()) - set(everything())) == []


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
