"""A study: a recipe, variants of it, problems and seeds; each combination is a run in a folder of its own."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from attneck.checks import MOST
from attneck.data.table import ONLY_WITH
from attneck.errors import UserError, suggestion
from attneck.training.best import LOWER
from attneck.training.checkpoint_files import checkpoints
from attneck.training.recipe import Part, Recipe, Text, Value
from attneck.training.recipe_file import (
    changed,
    deciding,
    dotted,
    load_recipe,
    own_dict,
    read_yaml,
    refusal,
    unlike,
)

SHIPPED = Path(__file__).parent / "shipped"
BEGIN_AND_END = ("model.weights", "patience")
"""Free where a run goes on; yet its weights depend on what it started from, and on when it gives up."""
SEEN = {"data.augment", "data.image_sizes", *(f"data.{option}" for option in ONLY_WITH)}
"""Fields that change how images are seen, and not which there are."""

T = TypeVar("T")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)]


def _named(given: Any) -> Any:
    """A mapping's names as they are; YAML has yes, no, on, off and numbers that are none."""
    if isinstance(given, dict) and (odd := [name for name in given if not isinstance(name, str)]):
        raise ValueError(f"YAML reads a name in it as {odd[0]!r}: put it in quotes")
    return given


def _told_apart(given: dict[str, T]) -> dict[str, T]:
    """Names of folders, which not every file system tells apart by capitals."""
    seen: dict[str, str] = {}
    for name in given:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise ValueError(f"{other} and {name} differ in capitals alone, as folders may not")
    return given


def _number(given: Any) -> Any:
    """Anything but yes and no, which are 1 and 0 to Python."""
    if isinstance(given, bool):
        raise ValueError("wanted a number")
    return given


Fields = Annotated[dict[Text, Value | list[float] | list[Text] | None], BeforeValidator(dotted)]
"""Fields of a recipe by their dotted names, such as model.surgery_options.at, and what they are."""
Names = Annotated[dict[Name, T], BeforeValidator(_named)]
Folders = Annotated[dict[Name, T], BeforeValidator(_named), AfterValidator(_told_apart)]
"""By names that folders get."""
Size = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]


RECALIBRATE = "recalibrate"
"""A way to score runs that is no field of their recipe: see `attneck.layers.recalibrate`."""


class Study(Part):
    """What is compared. Every run is `recipe` with `fields`, its problem's, its variant's, and its seed."""

    about: Text = ""
    """The question, for the report's head."""
    recipe: Text
    """A shipped recipe, or a YAML file."""
    fields: Fields = Field(default_factory=dict)
    problems: Folders[Fields] = Field(default_factory=dict)
    """Each variant is trained on each of them; none is one problem."""
    variants: Folders[Fields]
    baseline: Text
    """The variant that the others are compared with."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    metric: Text = "top1"
    """The score of the held-out images; the averaged weights' where a run keeps them."""
    threshold: Annotated[float | None, BeforeValidator(_number)] = None
    """The report says after how many training images the score first reached this."""
    sizes: tuple[Size, ...] = ()
    """Sides of images in pixels, on which every finished run is scored too."""
    rescored: Names[Fields] = Field(default_factory=dict)
    """Other ways to score a variant's runs there: `variant`, and fields of `model` for the scoring, or
    `recalibrate`, the training images of that size whose BatchNorm statistics they are scored with."""
    distance_images: Annotated[int, Field(ge=0, le=100_000, strict=True)] = 0
    """Held-out images over which the distances of finished runs' attention are averaged, or all where there
    are fewer; 0: they are not."""
    runs: Text | None = None
    """The study in whose folder the runs lie, so that what both have is trained once; None: its own."""
    paper: Names[Text] = Field(default_factory=dict)
    """A variant's row in the papers: PAPER/TABLE/LABEL, such as bam/2/ResNet50 + BAM."""

    @property
    def less_is_better(self) -> bool:
        """Of the metric."""
        return self.metric in LOWER

    def images(self, problem: str, variant: str) -> str:
        """The fields by which its runs may have other images than the study's other runs, in words."""
        own = {**self.problems.get(problem, {}), **self.variants[variant]}
        return str(sorted(one for one in own.items() if one[0].startswith("data.") and one[0] not in SEEN))

    def against(self, baseline: str) -> Study:
        """The same study with another baseline.

        Raises:
            ValueError: it is no variant.
        """
        self._check_variant("baseline", baseline)
        return self.model_copy(update={"baseline": baseline})

    def _check_variant(self, what: str, name: str) -> None:
        if name not in self.variants:
            raise ValueError(
                f"{what} names {name!r}{suggestion(name, list(self.variants))}: "
                f"choose one of the variants, {', '.join(self.variants)}"
            )

    @model_validator(mode="after")
    def _names_are_there(self) -> Study:
        if not self.variants:
            raise ValueError("variants are none: give the baseline at least")
        if self.runs is not None and Path(self.runs).name != self.runs:
            raise ValueError(f"runs is {self.runs!r}: wanted a study's name, and no path: give --out for one")
        named = [("baseline", self.baseline), *(("paper", name) for name in self.paper)]
        named += [(f"rescored {name}", str(own.get("variant"))) for name, own in self.rescored.items()]
        for what, name in named:
            self._check_variant(what, name)
        return self

    @model_validator(mode="after")
    def _threshold_can_be_reached(self) -> Study:
        most = math.inf if self.less_is_better else 100
        if self.threshold is not None and not 0 <= self.threshold <= most:
            wanted = "0 or more" if self.less_is_better else "per cent, 0 to 100"
            raise ValueError(f"threshold is {self.threshold:g}: wanted a {self.metric} of {wanted}")
        return self

    @model_validator(mode="after")
    def _each_run_is_one(self) -> Study:
        if not self.seeds:
            raise ValueError("seeds are none: give one, or leave seeds out")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: give each once")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes are {self.sizes}: give each once")
        for changes in (self.fields, *self.problems.values(), *self.variants.values()):
            if "seed" in changes:
                raise ValueError("a field seed is given, and each run has one of seeds: leave it out")
            for name, value in changes.items():
                if value == []:
                    raise ValueError(f"{name} is an empty list, which no command line can give: leave it out")
        for (problem, changes), (variant, own) in product(self.problems.items(), self.variants.items()):
            other = [name for name in changes.keys() & own.keys() if changes[name] != own[name]]
            if both := sorted(name for name in other if name.startswith("data.") and name not in SEEN):
                raise ValueError(
                    f"{both[0]} is given by the problem {problem} and otherwise by the variant {variant}, "
                    "which would have other images under its name: give it to one of them"
                )
        return self

    @model_validator(mode="after")
    def _ways_can_be_scored(self) -> Study:
        if self.rescored and not self.sizes:
            raise ValueError("rescored is given without sizes to score at: give sizes, or leave it out")
        for name, own in self.rescored.items():
            known = ("variant", RECALIBRATE)
            others = [field for field in own if field not in known and not field.startswith("model.")]
            if name in self.variants or others or len(own) < 2:
                raise ValueError(
                    f"rescored {name}: wanted a name that no variant has, a variant, and fields of its model "
                    f"such as model.options.resample, or {RECALIBRATE}, and nothing else: "
                    f"{', '.join(others) or name}"
                )
            images = own.get(RECALIBRATE, 2)
            if isinstance(images, bool) or not isinstance(images, int) or images < 2:
                raise ValueError(
                    f"rescored {name}: {RECALIBRATE} is {images!r}: wanted how many images, 2 or more"
                )
        return self


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    problem: str
    """"" where the study has none."""
    variant: str
    seed: int
    recipe: Recipe
    source: str
    """The recipe that `fields` change."""
    fields: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """Its place in the study, such as same/bam/0."""
        return "/".join([*([self.problem] if self.problem else []), self.variant, str(self.seed)])

    def rescored(self, way: Fields) -> Recipe:
        """Its recipe, with the fields of the model that a way to score it has."""
        fields = {name: value for name, value in way.items() if name != RECALIBRATE}
        return changed(self.recipe, fields, f"{self.source} of {self.name}, rescored")

    @property
    def done(self) -> bool:
        """Whether its run came to its end."""
        return (self.folder / "summary.json").is_file()

    def words(self) -> list[str]:
        """The arguments of the `attneck` that trains it, or goes on where it was."""
        given: dict[str, list[str]] = {}
        for field, value in self.fields.items():
            whole = own_dict(field)
            said = [field.removeprefix(f"{whole}.")] if whole else []
            said += map(str, value) if isinstance(value, list) else [str(value)]
            if isinstance(value, bool) and not whole:
                given[f"--{_dashed(field)}" if value else f"--{_negated(_dashed(field))}"] = []
            else:
                given.setdefault(f"--{_dashed(whole or field)}", []).extend(said)
        words = []
        for flag, values in given.items():  # joined, a value that begins with a dash is no flag
            words += [f"{flag}={values[0]}"] if values and values[0].startswith("--") else [flag, *values]
        resume = ["--resume"] if checkpoints(self.folder / "checkpoints") else []
        return ["train", self.source, *words, "--out", str(self.folder), *resume]

    def command(self) -> str:
        """`words` as a shell takes them."""
        return shlex.join(["attneck", *self.words()])

    def differs(self) -> list[str]:
        """How the recipe of the run in its folder, if there is one, is not its own."""
        if not (self.folder / "recipe.yaml").is_file():
            return []
        return unlike(made_of(load_recipe(str(self.folder))), made_of(self.recipe))


def made_of(recipe: Recipe) -> dict[str, Any]:
    """The fields that a finished run's weights depend on, by their dotted names."""
    return {**deciding(recipe), "model.weights": recipe.model.weights, "patience": recipe.patience}


def shipped_studies() -> list[str]:
    """The names of the studies that come with the package, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_study(name: str) -> Study:
    """The study of that name, or of that YAML file.

    Raises:
        UserError: no such study, YAML that does not parse, or one that is no study.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        if path == Path(name):
            raise UserError(f"{path}: there is no such file; write one as attneck study --help describes it")
        known = shipped_studies()
        raise UserError(
            f"no study {name!r}{suggestion(name, known)} (there are {', '.join(known)}; or a file)"
        )
    try:
        return Study.model_validate(read_yaml(path) or {})
    except ValidationError as error:
        raise refusal(error, str(path)) from None


def cells(study: Study, folder: Path, fields: Mapping[str, Any] | None = None) -> list[Cell]:
    """Every run of `study`, in folders under `folder`: seed by seed, so that each is whole early.

    Args:
        fields: fields of the recipe that change every run, by their dotted names.

    Raises:
        UserError: a variant whose recipe does not stand, with its name; one of `fields` that variants or
            problems have for themselves.
    """
    base = load_recipe(study.recipe)
    own_fields = [*study.problems.items(), *study.variants.items()]
    for field in fields or {}:
        if whose := [name for name, own in own_fields if field in own]:
            said = ", ".join(whose[:3]) + ", …" * (len(whose) > 3)
            raise UserError(
                f"--{_dashed(field)}: {said} of the study have values of their own, which one for all would "
                "make alike: leave it out, or write a study of your own"
            )
    made = []
    problems = study.problems or {"": {}}
    for (problem, of_problem), (variant, own) in product(problems.items(), study.variants.items()):
        both = _as_given({**study.fields, **of_problem, **own, **(fields or {})})
        for seed in study.seeds:
            mine = {**both, "seed": seed}
            where = Path(problem, variant, f"seed-{seed}")
            recipe = changed(base, mine, f"{study.recipe} of {where.parent}")
            made.append(Cell(problem, variant, seed, recipe, study.recipe, mine, folder / where))
    return sorted(made, key=lambda cell: study.seeds.index(cell.seed))


def _as_given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """As a command line says them: of options, a list of one thing and that thing are the same words."""
    return {
        name: value[0]
        if isinstance(value, list) and len(value) == 1 and own_dict(name) is not None
        else value
        for name, value in fields.items()
    }


def _dashed(field: str) -> str:
    return field.replace("_", "-")


def _negated(field: str) -> str:
    """tyro's word for False: --model.no-x."""
    *path, last = field.split(".")
    return ".".join([*path, f"no-{last}"])
