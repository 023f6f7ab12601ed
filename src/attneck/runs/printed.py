"""Which rows of the papers a recipe trains, and what is printed there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attneck.models import catalog
from attneck.models.detector_options import RCNNOptions
from attneck.models.options import FamilyOptions
from attneck.papers.results import SCORES, FinishedRun, same_data
from attneck.papers.tables import PAPERS, Row, load_paper
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import changed, differences, load_recipe, shipped_recipes

HOW_IT_RAN = {"accumulate", "precision", "channels_last", "sync_bn", "compile"}
"""What may differ from the row's recipe and is said then: how a step is computed, not what it is."""

FREE = {
    "seed",
    "eval_epochs",
    "metric",
    "model.name",
    "model.options",
    "model.weights",
    "model.pretrained",
    "data.root",
}
"""What is looked at otherwise than by comparing it, or not at all."""


@dataclass(frozen=True)
class Printed:
    """A row that a recipe's network is in, with its scores.

    Attributes:
        where: the paper, and the number of the table.
        scores: (column, printed, the run's own or "").
        otherwise: how the recipe differs from the row's, in words.
    """

    where: str
    title: str
    label: str
    scores: list[tuple[str, str, str]]
    otherwise: list[str]


def printed(recipe: Recipe, record: dict[str, Any]) -> list[Printed]:
    """The rows with scores of the recipe's network on its data; none where the papers have none.

    Args:
        record: the run's last one.
    """
    try:
        own = architecture(recipe.model.name, dict(recipe.model.options))
    except ValueError:  # one of timm's
        return []
    if recipe.model.surgery != "none":
        return []
    prefix = "ema_" if recipe.ema else "val_"
    scores = {
        key.removeprefix(prefix): float(score) for key, score in record.items() if key.startswith(prefix)
    }
    run = FinishedRun("", recipe.model_dump(mode="json"), record["step"], record["epoch"], scores, "")
    found = []
    for paper in map(load_paper, PAPERS):
        for table in paper.tables:
            columns = [column for column in table.columns if column.key in SCORES]
            for row in table.rows if columns else ():
                wanted = _of_row(row, own)
                if wanted is None or wanted.data.name != recipe.data.name:
                    continue
                if recipe.data.name == "folder" and not (
                    same_folder(wanted, recipe) and same_data(run, table)
                ):
                    continue
                beside = [
                    (column.label, row.printed[column.key], _own(column.key, scores))
                    for column in columns
                    if column.key in row.printed
                ]
                if beside:
                    found.append(
                        Printed(
                            f"{paper.venue}, table {table.id}",
                            table.title,
                            row.label,
                            beside,
                            [*_otherwise(row, wanted, recipe), *_shorter(recipe, record)],
                        )
                    )
    return found


def architecture(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A model's options, all of them but those of its training; ValueError for what the catalog lacks."""
    every = by_the_text(catalog.find(name, options).options).as_dict()
    return {key: value for key, value in every.items() if key not in {"drop_path", "dropout"}}


def by_the_text(options: FamilyOptions) -> FamilyOptions:
    """A detector by its paper's text alone is its row's as well as one by all of the code base it names."""
    options = options.shortest()
    by_its_code = getattr(options, "variant", None) == "cloud_tpu"
    return options.replace(variant="botnet") if by_its_code else options


def variant_of(recipe: Recipe) -> Any:
    """Of a detector what it has of its paper's code base; of a classifier, which has none, the default."""
    return recipe.model.options.get("variant", RCNNOptions().variant)


def _of_row(row: Row, own: dict[str, Any]) -> Recipe | None:
    """The recipe of a row whose network is this one; None of any other."""
    name = row.recipe.partition(" ")[0]
    if not row.model or name not in shipped_recipes():
        return None
    with suppress(ValueError):
        if architecture(row.trained, row.trained_options) == own:
            return recipe_of(row, {name: load_recipe(name)})
    return None


def _own(key: str, scores: dict[str, float]) -> str:
    value = scores.get(SCORES[key])
    return "" if value is None else f"{100 - value if key.endswith('_error') else value:.2f}"


def _otherwise(row: Row, wanted: Recipe, recipe: Recipe) -> list[str]:
    said = [change for change in differences(wanted, recipe) if not is_of(change, FREE)]
    if not same_network(wanted, recipe):
        said.append("drop_path or dropout of the model")
    own, theirs = variant_of(recipe), variant_of(wanted)
    if own != theirs:
        said.append(f"model.options.variant: {own}, not {theirs}")
    if started(recipe) != (row.detector is not None):
        said.append("started from weights" if started(recipe) else "started at random")
    return said


def _shorter(recipe: Recipe, record: dict[str, Any]) -> list[str]:
    """That the record is not of the run's end, in words."""
    done, of = recipe.reached(record["epoch"], record["step"])
    unit = "epochs" if recipe.steps is None else "steps"
    return [f"{done:,g} of {of:,} {unit}"] if done < of else []


def recipe_of(row: Row, shipped: dict[str, Recipe]) -> Recipe | None:
    """The recipe that the row's command trains; None where it has none."""
    name, *changes = row.recipe.split() or [""]
    if name not in shipped or not row.model or row.alternative:
        return None
    fields: dict[str, Any] = {"model.name": row.trained}
    fields |= {f"model.options.{option}": value for option, value in row.trained_options.items()}
    if shipped[name].data.image_size is not None:
        fields["data.image_size"] = row.image_size
    field: list[Any] = []
    given: dict[str, list[Any]] = {}
    for word in changes:
        if word.startswith("--"):
            field = given.setdefault(word[2:].replace("-", "_"), [])
        else:
            field.append(_value(word))
    fields |= {path: values if len(values) > 1 else values[0] for path, values in given.items()}
    return changed(shipped[name], fields, name)


def _value(word: str) -> Any:
    """A word of a command as YAML would have it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(word)
    return word


def same_network(wanted: Recipe, recipe: Recipe) -> bool:
    """Whether two recipes train one network, by whatever names and options they give it."""
    try:
        one, other = (catalog.find(each.model.name, dict(each.model.options)) for each in (wanted, recipe))
    except ValueError:  # one of timm's, or of another version
        return False
    return by_the_text(one.options) == by_the_text(other.options)


def same_folder(wanted: Recipe, recipe: Recipe) -> bool:
    """A folder of images goes by its name."""
    one, other = (Path(each.data.root or "").name for each in (wanted, recipe))
    return wanted.data.name != "folder" or one == other


def started(recipe: Recipe) -> bool:
    """Whether it starts from weights that there were."""
    return recipe.model.weights is not None or recipe.model.pretrained is not None


def is_of(said: str, fields: set[str]) -> bool:
    """Whether a difference, 'model.options.heads: 4 → 8' say, is in one of the fields."""
    return any(said.startswith((f"{field}:", f"{field}.")) for field in fields)
