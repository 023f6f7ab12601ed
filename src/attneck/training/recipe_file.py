"""Recipes as files: found, read within bounds, refused in a line, changed, written, and compared.

Nothing is built from YAML before its size and shape are known.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from attneck.errors import UserError, brief, one_line, suggestion, user_mistakes
from attneck.training.recipe import Part, Recipe, no_rate

SHIPPED = Path(__file__).parent / "recipes"
RECIPE = "recipe.yaml"
"""The file in a run's folder that says what it was made from."""
OWN_DICTS = ("model.options", "model.surgery_options")
"""Fields whose values are an option's name and value: `model.options.bam stages` gives one option."""
COMPLAINTS = 4
"""What is said of a recipe at most; more are counted."""

BYTES, DEPTH, NODES = 1 << 16, 8, 4000
"""Of a file at most; the longest shipped recipe has 2,300 bytes, 3 levels and 60 nodes."""

NUMBERS_OF_YAML_1_1 = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Octal and base-60 numbers: 010 would be 8, and 1:30 would be 90."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: mappings, lists, numbers and words; None where it is empty.

    Args:
        path: a regular file, as the caller has made sure: a pipe or a device might never end.

    Raises:
        UserError: what is too long, too deep, or not plain YAML in UTF-8: aliases and anchors, tags, several
            documents, keys that are given twice, and numbers of a base that nobody expects are refused.
        OSError: a file that cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(BYTES + 1)
    try:
        if len(raw) > BYTES:
            raise ValueError(f"longer than {BYTES:,} bytes")
        text = raw.decode("utf-8")
        _check(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # dates and numbers that there are not, too
        raise UserError(f"{path}: not YAML that a recipe may have: {one_line(error, 300)}") from None


def _check(text: str) -> None:
    """ValueError for what is not bounded, or would not be what it looks like."""
    depth = nodes = documents = 0
    event: Any
    for event in yaml.parse(text, yaml.SafeLoader):  # one at a time, and nothing is built
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if documents > 1:
            raise ValueError(f"line {line} begins a second document; wanted one")
        if depth > DEPTH or nodes > NODES:
            raise ValueError(f"at line {line} deeper than {DEPTH} levels, or more than {NODES:,} values")
        if getattr(event, "anchor", None) is not None:  # an alias too: a few of them stand for gigabytes
            raise ValueError(f"line {line} has an anchor or alias, {event.anchor!r}; write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has a tag, {event.tag!r}; leave it out")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            if NUMBERS_OF_YAML_1_1.fullmatch(event.value):
                raise ValueError(f"line {line}: YAML takes {event.value} for an octal or base-60 number")
            if event.value == "<<":
                raise ValueError(f"line {line} merges a mapping (<<); write the values out")


# Fields that may change between a run and its continuation: they change no weight.
FREE_ON_RESUME = {
    "reach",
    "model.weights",  # the checkpoint has the weights by then
    "data.root",
    "data.workers",
    "data.md5",
    "data.max_pixels",
    "data.on_bad_image",  # until a bad image is met both train the same
    "checkpoint_minutes",
    "checkpoint_steps",
    "patience",  # each step is the same; how many there are differs
    "log",
    "pictures",
}


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, of that YAML file, or of that run folder.

    A folder without a recipe.yaml is no run, so it hides no shipped recipe of its name.

    Raises:
        UserError: nothing of that name, YAML that does not parse, or a field that a recipe does not have.
    """
    if not str(name):  # Path("") would be the current folder
        raise UserError("the recipe has an empty name: give one of `attneck train`, a file or a run")
    path = Path(name)
    known = shipped_recipes()
    if is_run(path):
        path = path / RECIPE
    elif path.is_dir() and name not in known:
        raise UserError(f"{path} is no run: there is no {RECIPE} in it (attneck train says where a run is)")
    elif path.suffix not in {".yaml", ".yml"}:
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"no recipe {name!r}{suggestion(name, known)} (there are {', '.join(known)}; or a file, or a run)"
        )
    content = read_yaml(path)
    return parse_recipe({} if content is None else content, str(path))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return os.path.isfile(folder / RECIPE)  # a name that no file can have is none


def parse_recipe(content: Any, source: str) -> Recipe:
    """`content` as a recipe.

    Raises:
        UserError: one line that names every field that does not fit, with the nearest one that would.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise refusal(error, source) from None


def dotted(given: Any, before: str = "") -> Any:
    """Mappings in mappings, as a recipe has them, with dotted names."""
    if not isinstance(given, dict):
        return given
    found: dict[Any, Any] = {}
    for name, value in given.items():
        name = f"{before}.{name}" if before else name
        own = dotted(value, name) if isinstance(value, dict) and value else {name: value}
        if twice := found.keys() & own.keys():
            raise ValueError(f"{sorted(twice)[0]} is given twice")
        found |= own
    return found


def changed(base: Recipe, fields: Mapping[str, Any], source: str) -> Recipe:
    """`base` with other values of some fields, by their dotted names; an option of None is taken back.

    With epochs a recipe of steps is counted in these, as on the command line.

    Raises:
        UserError: a field that a recipe does not have, or a value that it cannot have.
    """
    with user_mistakes():
        fields = dotted(dict(fields))
    epochs = fields.get("epochs")
    if type(epochs) is int and epochs > 0 and fields.get("steps") is None:
        base = base.in_epochs(epochs)
    content = base.model_dump(mode="json")
    for name, value in fields.items():
        part: Any = content
        own = own_dict(name)
        *path, last = name.split(".") if own is None else (*own.split("."), name.removeprefix(f"{own}."))
        for step in path:
            part = part.get(step)
            if not isinstance(part, dict):
                raise UserError(f"{source}: there is no field {name!r} in a recipe")
        part[last] = value
        if value is None and own is not None:
            del part[last]
    made = parse_recipe(content, source)
    if made.optimizer.name not in ("sgd", base.optimizer.name) and "optimizer.lr" not in fields:
        raise UserError(f"{source}: {no_rate(made.optimizer.name)}")
    return made


def own_dict(field: str) -> str | None:
    """The one of `OWN_DICTS` that a dotted name is an option of; all after it is the option's own name."""
    return next((one for one in OWN_DICTS if field.startswith(f"{one}.")), None)


WANTED = {
    "tuple_type": "wanted a list, in [ ]",
    "list_type": "wanted a list, in [ ]",
    "dict_type": "wanted names with their values, NAME: VALUE",
    "model_type": "wanted names with their values, NAME: VALUE",
}
"""In place of pydantic's words for what Python calls them."""


def refusal(error: ValidationError, source: str) -> UserError:
    """One line with all that does not fit in a recipe."""
    items: list[dict[str, Any]] = [dict(item) for item in error.errors()]
    # A number that is infinite is refused by each member of a union; one of them says why.
    infinite = {item["loc"][:3] for item in items if item["type"] == "finite_number"}
    told = [item for item in items if item["type"] == "finite_number" or item["loc"][:3] not in infinite]
    said = list(dict.fromkeys(map(_complaint, told)))
    more = [f"and {len(said) - COMPLAINTS} more"] if len(said) > COMPLAINTS else []
    return UserError(f"{source}: {'; '.join([*said[:COMPLAINTS], *more])}")


def _complaint(error: dict[str, Any]) -> str:
    path = error["loc"]
    field = one_line(".".join(map(str, path[:3])))  # then comes the member of a union that was tried
    if error["type"] == "extra_forbidden":
        part: Any = Recipe
        for step in path[:-1]:
            part = part.model_fields[step].annotation
        return f"there is no field {field!r}{suggestion(str(path[-1]), list(part.model_fields))}"
    wanted: str = WANTED.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | Part):
        return wanted  # fields that do not go together
    wanted = wanted[0].lower() + wanted[1:]
    said = f"{field}={brief(error['input'])}: {wanted}" if field else wanted
    choices = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    return said + suggestion(str(error["input"]), choices)


def dump_recipe(recipe: Recipe) -> str:
    """`recipe` as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The fields, as `part.field: old → new`, in which two recipes would train different weights."""
    return unlike(deciding(old), deciding(new))


def unlike(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`differences` of two recipes' `deciding` fields."""
    return [
        f"{key}: {old.get(key)} → {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
    ]


def deciding(recipe: Recipe) -> dict[str, Any]:
    """The fields that the trained weights depend on, by their dotted names."""
    return {
        key: value
        for key, value in flat(recipe).items()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    }


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every field by its dotted name."""
    return _flat(recipe.model_dump(mode="json"))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
