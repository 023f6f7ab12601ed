"""The model card of a run: what it is, how it scores, how it was made, and what reads it."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attneck import __version__
from attneck.errors import UserError, brief
from attneck.files import write_atomic
from attneck.hub.config import name_of
from attneck.models import catalog
from attneck.runs.provenance import command, environment_of, recipe_name
from attneck.runs.scored_on import HELD_OUT, scored_on
from attneck.training.recipe import TIMM

if TYPE_CHECKING:
    from torch import Tensor

    from attneck.runs.run import Run
    from attneck.training.records import Record

TASKS = {"classification": "image-classification", "detection": "object-detection"}
"""The Hub's names."""

METRICS = {"classification": "accuracy", "detection": "mean_average_precision"}

INDEXED = {"top1": "top-1", "top5": "top-5", "box_AP": "box AP", "mask_AP": "mask AP", "mAP": "mAP"}
"""Scores that the Hub lists, by their names in a record."""

NOT_SHOWN = {"epoch", "step", "lr", "seconds", "peak_gib"}
"""Of a record: what is no score."""

PLACES = {"--data.root", "--root", "--out"}
"""Options whose value is a path of one machine."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Of BatchNorm: how the names of its buffers end."""

PICTURE, CARD = "curves.png", "README.md"


def task_of(config: dict[str, Any]) -> str:
    """What a config's model is for, by the names of `attneck.tasks.TASKS`."""
    name = name_of(config)
    return "classification" if name.startswith(TIMM) else catalog.find(name).task


def write_card(
    run: Run, config: dict[str, Any], state: Mapping[str, Tensor], folder: Path, license: str | None
) -> None:
    """README.md and, where the run has records, curves.png; `config` and `state` are the saved model's."""
    picture = _curves(run)
    if picture is not None:
        write_atomic(folder / PICTURE, picture)
    write_atomic(folder / CARD, card(run, config, state, license, has_picture=picture is not None).encode())


def card(
    run: Run, config: dict[str, Any], state: Mapping[str, Tensor], license: str | None, *, has_picture: bool
) -> str:
    """The card's Markdown."""
    task, name = task_of(config), name_of(config)
    surgery = config.get("surgery")
    words = ["attneck", TASKS[task], name.removeprefix(TIMM)]
    words += surgery["name"].split("+") if surgery else []
    head: dict[str, Any] = {
        "library_name": "attneck",
        "pipeline_tag": TASKS[task],
        "tags": list(dict.fromkeys(words)),
        "metrics": [METRICS[task]],
    }
    if license is not None:
        head["license"] = license
    if (weights := run.recipe.model.pretrained) is not None and (base := _on_the_hub(weights)):
        head["base_model"] = base
    title = f"{name} after {surgery['name']}" if surgery else name
    split, saved = _which(run, state)
    if scores := _index(run, split):
        dataset = {"name": run.recipe.data.name, "type": run.recipe.data.name}
        entry = {
            "task": {"type": TASKS[task]},
            "dataset": dataset,
            "metrics": [
                {"type": METRICS[task], "name": label, "value": value} for label, value in scores.items()
            ],
        }
        head["model-index"] = [{"name": title, "results": [entry]}]
    recipe = run.recipe.model_dump(mode="json", exclude={"data": {"root"}})  # a path of another machine
    if (file := recipe["model"]["weights"]) is not None:
        recipe["model"]["weights"] = Path(file).name
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _what(run, config, task, name),
        '```python\nimport attneck\n\nmodel = attneck.load("FOLDER or OWNER/NAME")\n```',
        _elsewhere(config, task, name),
        "## Scores",
        _scores(run, saved),
        *([f"![Loss and scores by epoch]({PICTURE})"] if has_picture else []),
        "## How it was made",
        _command(run),
        "The whole recipe:",
        f"```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _on_the_hub(weights: str) -> str | None:
    """The repository of timm's weights of that name, whose licence holds for what began as them, if any."""
    import timm

    try:
        found = timm.get_pretrained_cfg(weights.removeprefix(TIMM))
    except RuntimeError:  # a name that this timm does not have
        return None
    return found.hf_hub_id.partition("@")[0] if found is not None and found.hf_hub_id else None


def check_same_network(run: Run, config: dict[str, Any]) -> None:
    """ValueError unless a config is of the network that the run trains: its card would be of another one."""
    from attneck.hub.config import describe

    own = describe(run.model())
    for key in ("architecture", "num_classes", "surgery"):
        if own.get(key) != config.get(key):
            raise ValueError(
                f"run={run.folder}: its network has {key} {brief(own.get(key))}, and the model "
                f"{brief(config.get(key))}, of which the card would say what is not so: leave run out"
            )


def _what(run: Run, config: dict[str, Any], task: str, name: str) -> str:
    whose = "timm's network" if name.startswith(TIMM) else "the network"
    network = f"{whose} `{name.removeprefix(TIMM)}`"
    if surgery := config.get("surgery"):
        from attneck.surgery.by_name import parted

        calls = [
            f"`attneck.surgery.{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})`"
            for name, options in parted(surgery["name"], surgery["options"])
        ]
        network += f", changed by {', then '.join(calls)}"
    does = "Finds objects in images" if task == "detection" else "Classifies images"
    # A detector's have the background first.
    classes = config.get("label_names", run.facts["classes"])[task == "detection" :]
    shown = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
    return (
        f"{does}: {network}, trained by attneck on `{run.recipe.data.name}`. {len(classes)} classes: {shown}."
    )


def _elsewhere(config: dict[str, Any], task: str, name: str) -> str:
    """Which other libraries read the folder."""
    if task == "detection":
        return (
            "timm and transformers have no such detector: they do not read it. `attneck export` makes ONNX."
        )
    if "surgery" in config:
        return (
            "timm and transformers know no surgery: they do not read it. `attneck export` makes ONNX of it."
        )
    first = "" if name.startswith(TIMM) else "import attneck  # its networks in timm's registry\n"
    return (
        "timm and transformers read it too:\n\n"
        f"```python\n{first}import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf_hub:OWNER/NAME"\n```\n\n'
        f"```python\n{first}import transformers\n\n"
        'model = transformers.AutoModelForImageClassification.from_pretrained("FOLDER or OWNER/NAME")\n```'
    )


def _record(run: Run) -> Record | None:
    """That of the checkpoint; the last one, where it was saved between two; None where there is none."""
    try:
        records = run.history
    except UserError:
        return None
    return next((one for one in records if one.get("step") == run.step), records[-1])


def _index(run: Run, split: str | None) -> dict[str, float]:
    """What the Hub lists: scores on held-out images of the very weights that are saved, by their names."""
    record = _record(run)
    if record is None or record.get("step") != run.step or scored_on(run.recipe, run.facts) != HELD_OUT:
        return {}
    found = {label: record.get(f"{split}_{key}") for key, label in INDEXED.items()}
    there = {label: value for label, value in found.items() if isinstance(value, int | float) and value >= 0}
    return {f"{label} (%)": float(f"{value:.4g}") for label, value in there.items()}


def _scores(run: Run, saved: str) -> str:
    """`_record` as a table; before it `saved`, which weights the folder has."""
    record = _record(run)
    if record is None:
        return f"{saved} The run was never scored."
    rows = [
        f"| {key} | {value:.4g} |" if isinstance(value, float) else f"| {key} | {value} |"
        for key, value in record.items()
        if key not in NOT_SHOWN and isinstance(value, (int, float))
    ]
    averages = ", `ema` of their average" if any(key.startswith("ema_") for key in record) else ""
    step = record.get("step", run.step)
    said = f"{saved} The scores are those after {step:,} steps"
    said += "" if step == run.step else f", not of the weights here, which are of step {run.step:,}"
    said += f"; `val` is of the weights on {scored_on(run.recipe, run.facts)}{averages}:"
    return "\n".join([said, "", "| | |", "|---|---|", *rows])


def _which(run: Run, state: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """Which of its checkpoint's weights `state` is: what its scores begin with, if it has some; in words."""
    own, average = run.weights(average=False), run.weights()
    for split, weights, words in (
        ("ema" if average is not own else "val", average, "the moving average of the weights (`ema`)"),
        ("val", own, "the weights (`val`), not their average,"),
    ):
        if _same(state, weights, but=STATISTICS):
            words = words if average is not own else "the weights (`val`)"
            said = f"This folder has {words} after {run.step:,} steps"
            if _same(state, weights):
                return split, f"{said}."
            return None, (
                f"{said}, with BatchNorm statistics taken anew; the scores below are by those of training."
            )
    return None, "This folder has weights that are none of the run's checkpoint."


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    """Whether two states are equal, apart from what ends in `but`."""
    return one.keys() == other.keys() and all(
        tensor.equal(other[name]) for name, tensor in one.items() if not name.endswith(but)
    )


def _command(run: Run) -> str:
    around, name = environment_of(run.folder), recipe_name(run.folder)
    by = f"attneck {around.get('attneck', __version__)}"
    torch = f" on torch {around['torch']}" if "torch" in around else ""
    recipe = f", recipe `{name}`" if name else ""
    ran = command(run.folder)
    how = f":\n\n```\n{_without_places(ran)}\n```" if ran else ", by `attneck.train` in Python."
    return f"{by}{torch}{recipe}{how}"


def _without_places(ran: str) -> str:
    """A command without the options that say where on its machine the data and the run lie.

    Of an absolute path elsewhere, of weights that it began from, its last part is left.
    """
    try:
        words = shlex.split(ran)
    except ValueError:  # of a version that wrote it without quotes
        words = ran.split()
    kept = [
        word
        for before, word in pairwise(["", *words])
        if before not in PLACES and word.partition("=")[0] not in PLACES
    ]
    return shlex.join(re.sub(r"^(--[^=]+=)?/.*/", r"\1", word) for word in kept)


def _curves(run: Run) -> bytes | None:
    """The run's curves as PNG; None where it has no records yet."""
    from attneck.explain.figures import curves

    with tempfile.TemporaryDirectory() as place:
        try:
            held_out = scored_on(run.recipe, run.facts) == HELD_OUT
            curves([run.folder], Path(place) / PICTURE, held_out=held_out)
        except UserError:
            return None
        return (Path(place) / PICTURE).read_bytes()
