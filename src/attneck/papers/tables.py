"""The papers' tables, read from botnet.toml and bam.toml, and the verdict on each printed count.

Nothing of ours is known here: who counts a network is handed in (`compare`).
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from attneck.errors import UserError, suggestion

PAPERS = ("botnet", "bam")

UNITS = {"params_m": 10**6, "madds_g": 10**9}
"""The printed counts, by key, and what one of them stands for."""

ParamsConvention = Literal["paper", "all", "weights"]
MaddsConvention = Literal["usual", "squeezenet"]


class Verdict(StrEnum):
    """What a count is to the figure printed for it; the values are those of `expect` in the TOML files."""

    SAME = "same"
    TRUNCATED = "truncated"
    SUM = "sum"
    DIFFERS = "differs"

    @property
    def words(self) -> str:
        """As a reader sees it."""
        return {
            Verdict.SAME: "same",
            Verdict.TRUNCATED: "same, truncated",
            Verdict.SUM: "same as round(base) + round(added)",
            Verdict.DIFFERS: "differs",
        }[self]


@dataclass(frozen=True)
class Network:
    """What is counted: the arguments of `create_model`, and how far."""

    model: str
    options: tuple[tuple[str, Any], ...]
    image_size: int
    classes: int | None
    convention: MaddsConvention = "usual"
    parameters_only: bool = False


@dataclass(frozen=True)
class Cost:
    """A network's counts, in each convention that the papers have."""

    params: dict[ParamsConvention, int]
    madds: int | None = None
    madds_no_classifier: int | None = None


@dataclass(frozen=True)
class Trainer:
    """A recipe, as far as a command has to say what it changes; `image_size` None is the data's own."""

    options: dict[str, Any]
    image_size: int | None = None


Counter = Callable[[Network], Cost | None]
"""Counts a network; None for one that the catalog does not have."""


@dataclass(frozen=True)
class Column:
    """A printed column; `delta` is the key of the difference printed in brackets after its figure."""

    key: str
    label: str
    delta: str | None = None


@dataclass(frozen=True)
class Row:
    """A printed row, as the header of botnet.toml explains it; what its table says for all is filled in."""

    label: str
    model: str
    printed: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    detector: str | None = None
    detector_options: dict[str, Any] = field(default_factory=dict)
    setup: str = ""
    expect: dict[str, Verdict] = field(default_factory=dict)
    reason: str = ""
    note: str = ""
    repeats: str = ""
    alternative: bool = False
    recipe: str = ""
    """The recipe that trains it, with what the paper changes in it."""
    base_row: str = ""
    params_convention: ParamsConvention = "all"
    madds_convention: MaddsConvention = "usual"
    classes: int | None = None
    fc: bool = True

    @property
    def counted(self) -> bool:
        """Whether the row is one of those that the tally is over: each printed count once."""
        return bool(self.expect) and not self.repeats and not self.alternative

    @property
    def trained(self) -> str:
        """The name of what the row trains: the detector, where the network is one's backbone."""
        return self.detector or self.model

    @property
    def trained_options(self) -> dict[str, Any]:
        """Its options, those of the network under it among them."""
        return self.options | self.detector_options

    @property
    def network(self) -> Network | None:
        """What there is to count; None for a row without a network."""
        if not self.model or self.image_size is None:
            return None
        return Network(
            self.model,
            tuple(
                (key, tuple(value) if isinstance(value, list) else value)
                for key, value in self.options.items()
            ),
            self.image_size,
            self.classes,
            self.madds_convention,
            parameters_only=self.model
            == self.detector,  # the whole detector: the paper has no multiply-adds for it
        )

    def of(self, cost: Cost) -> dict[str, int]:
        """A network's counts in this row's conventions, by key."""
        madds = cost.madds if self.fc else cost.madds_no_classifier
        counts = {"params_m": cost.params[self.params_convention]}
        return counts if madds is None else counts | {"madds_g": madds}


@dataclass(frozen=True)
class Table:
    """A printed table, or figures of the text under the number of their section or footnote."""

    id: str
    title: str
    task: str
    setup: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def base(self, row: Row) -> Network | None:
        """The network whose rounded count `row` adds to."""
        if not row.base_row:
            return None
        return next(other.network for other in self.rows if other.label == row.base_row)


@dataclass(frozen=True)
class Paper:
    """A paper and its tables, in its own order."""

    name: str
    title: str
    venue: str
    arxiv: str
    tables: tuple[Table, ...]

    def table(self, number: str) -> Table:
        """The table of that number.

        Raises:
            UserError: there is none.
        """
        for table in self.tables:
            if table.id == number:
                return table
        raise no_table(number, [table.id for table in self.tables], f"the {self.name} paper")


@dataclass(frozen=True)
class Comparison:
    """A count; where the paper prints it also the figure and the verdict."""

    count: int
    printed: str | None = None
    verdict: Verdict | None = None


def no_table(number: str, known: list[str], where: str) -> UserError:
    """What is said when `where` has no table of that number."""
    return UserError(
        f"no table {number!r} in {where}{suggestion(number, known)} (there are: {', '.join(known)})"
    )


def load_paper(name: str) -> Paper:
    """Read a paper's figures.

    Raises:
        UserError: neither of the two papers has that name.
        ValueError: a key that no table or row has, or a row that names a base which is not there.
    """
    if name not in PAPERS:
        raise UserError(
            f"no paper {name!r}{suggestion(name, list(PAPERS))} (there are {' and '.join(PAPERS)})"
        )
    content = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    about = content["paper"]
    tables = tuple(_table(entry, about, f"{name}.toml: table {entry['id']}") for entry in content["table"])
    return Paper(name, about["title"], about["venue"], about["arxiv"], tables)


def verdict(printed: str, count: int, unit: int, base: int | None = None) -> Verdict:
    """What `count` is to the figure `printed`, at the precision of the print.

    Rounding is half up, as by hand; the papers' counts are never exactly half way, so that half to even would
    say the same. Cutting is accepted and said; with a `base`, so is the sum of the rounded base and the
    rounded difference.
    """
    figure = Decimal(printed)
    step = Decimal(1).scaleb(int(figure.as_tuple().exponent))

    def rounded(number: int, how: str = ROUND_HALF_UP) -> Decimal:
        return (Decimal(number) / unit).quantize(step, how)

    if rounded(count) == figure:
        return Verdict.SAME
    if rounded(count, ROUND_DOWN) == figure:
        return Verdict.TRUNCATED
    if base is not None and rounded(base) + rounded(count - base) == figure:
        return Verdict.SUM
    return Verdict.DIFFERS


def compare(table: Table, row: Row, counter: Counter) -> dict[str, Comparison]:
    """The counts of a row's network by key, each beside its printed figure; empty without a network."""
    cost = counter(row.network) if row.network else None
    if cost is None:
        return {}
    base_network = table.base(row)
    base_cost = counter(base_network) if base_network else None
    base = row.of(base_cost) if base_cost else {}
    found = {}
    for key, count in row.of(cost).items():
        printed = row.printed.get(key)
        found[key] = Comparison(
            count, printed, None if printed is None else verdict(printed, count, UNITS[key], base.get(key))
        )
    return found


def train_command(row: Row, recipes: Mapping[str, Trainer]) -> str | None:
    """The command that trains a row's network as its table says; None where no recipe at hand can.

    Two, joined by &&, where what a detector starts from must be trained before.
    """
    name, *changes = row.recipe.split() or [""]
    if name not in recipes or not row.model or row.alternative:
        return None
    recipe = recipes[name]
    words = ["attneck train", name, *changes, "--model.name", row.trained]
    given = {key: value for key, value in row.trained_options.items() if recipe.options.get(key) != value}
    if given:
        words.append("--model.options")
    for key, value in given.items():
        words += [key, *map(str, value if isinstance(value, list) else [value])]
    if recipe.image_size is not None and row.image_size != recipe.image_size:
        words.append(f"--data.image-size {row.image_size}")
    trunk, start = _start(row, recipe.options)
    return " && ".join([*trunk, " ".join([*words, *start])])


def _start(row: Row, options: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """What a detector's backbone starts from: ImageNet (BoTNet footnote 6; BAM Table 4, by §4.5 and by SSD).

    Weights of torchvision's, whose training is the usual one, by timm's names. A network that they are not of
    is trained before: one with BAM, one whose strides are elsewhere by the recipe's `options`, ResNet-200 and
    this MobileNet. BoTNet's replaced layers start at random.

    Returns:
        The command that trains it, if one must, and the words of the detector's own.
    """
    if row.detector is None:
        return [], []
    if row.model.endswith(("_vgg16", "_vgg16_bam")):
        return [], ["--model.pretrained vgg16.tv_in1k"]
    network = re.fullmatch(r"(?:res|bot|se)net(\d+)(_.*)?", row.model)
    bam = row.model.endswith("_bam")
    if network and network[1] in ("50", "101", "152") and not bam and "stride_on" not in options:
        return [], [f"--model.pretrained resnet{network[1]}.tv_in1k"]
    trunk = "mobilenet" if network is None else f"resnet{network[1]}{'_bam' if bam else ''}"
    recipe = "imagenet-100" if row.model.startswith("botnet") else "imagenet-bam"
    stride = f" --model.options stride_on {options['stride_on']}" if "stride_on" in options else ""
    command = f"attneck train {recipe} --model.name {trunk}{stride} --out runs/{trunk}"
    return [command], [f"--model.weights runs/{trunk}"]


def _table(entry: dict[str, Any], about: dict[str, Any], where: str) -> Table:
    shared = {key: entry[key] for key in ("params_convention", "recipe", "classes", "fc") if key in entry}
    shared.setdefault("params_convention", about["params_convention"])
    own = {key: value for key, value in entry.items() if key not in {*shared, "columns", "row"}}
    _refuse_unknown(own, Table, where)
    columns = tuple(Column(**column) for column in entry["columns"])
    rows = tuple(_row(shared | row, f"{where}: {row['label']}") for row in entry["row"])
    labels = [row.label for row in rows]
    for row in rows:
        if row.base_row and row.base_row not in labels:
            raise ValueError(f"{where}: {row.label}: base_row={row.base_row!r} is no row of the table")
    return Table(**own, columns=columns, rows=rows)


def _row(entry: dict[str, Any], where: str) -> Row:
    _refuse_unknown(entry, Row, where)
    expect = {key: Verdict(value) for key, value in entry.get("expect", {}).items()}
    return Row(**entry | {"expect": expect})


def _refuse_unknown(entry: dict[str, Any], kind: type, where: str) -> None:
    known = {item.name for item in dataclasses.fields(kind)}
    for key in entry.keys() - known:
        raise ValueError(f"{where}: there is no key {key!r}{suggestion(key, sorted(known))}")
