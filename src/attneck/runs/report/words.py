"""A recipe in words, for whoever does not know its fields."""

from __future__ import annotations

from typing import Any

from attneck.data.table import SETS
from attneck.runs.scored_on import HELD_OUT, scored_on
from attneck.training.recipe import Recipe

DONE = {
    "adopt": "other people's attention in it is taken over as this project's own layers",
    "attend": "3×3 convolutions of it are replaced by self-attention",
    "insert_attention_block": "blocks of self-attention are put into it",
    "insert_bam": "BAM is put into it",
    "insert_se": "squeeze-and-excitation is put into it",
}
AUGMENTATIONS = {
    "none": "as they are, without augmentation",
    "crop_flip": "augmented by padding and a random crop, and flips",
    "inception": "augmented by random resized crops and flips",
    "randaugment": "augmented by random resized crops, flips and RandAugment",
    "scale_crop": "augmented by random scales, crops and flips, and in other light",
    "flip": "augmented by flips",
    "scale_jitter": "augmented by random scales and flips",
    "ssd": "augmented as SSD does: colours, zoom, crops around objects, flips",
}


def in_words(recipe: Recipe, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """A sentence or two on each part.

    facts: the run's, with the fingerprints of its data; may be empty.
    """
    return [
        ("Network", _network(recipe, facts)),
        ("Images", _images(recipe, facts)),
        ("Length", _length(recipe, facts)),
        ("Steps", _steps(recipe)),
        ("Learning rate", _rate(recipe)),
        ("Scored", _scored(recipe, facts)),
    ]


def images_of(facts: dict[str, Any], part: str) -> int | None:
    """How many images a set of the run has, "training" or "held-out", by its fingerprint."""
    try:
        return sum(int(row[0]) for row in facts["data"][part].values()) or None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _network(recipe: Recipe, facts: dict[str, Any]) -> str:
    model = recipe.model
    said = model.name + _options(model.options)
    if model.surgery != "none":
        done = ", then ".join(DONE[name] for name in model.surgery.split("+"))
        said += f"; {done}{_options(model.surgery_options)}"
    start = model.pretrained or model.weights
    said += f". It starts from {start}" if start else ". Its weights start at random"
    if recipe.optimizer.freeze is not None:
        stages = recipe.optimizer.freeze
        frozen = f"the stem and {_many(stages, 'stage')}" if stages else "the stem"
        new = " but for what is new" if model.surgery not in ("none", "adopt") else ""
        said += f"; {frozen} keep their weights{new}" if stages else f"; {frozen} keeps its weights"
    classes = len(facts.get("classes", []))
    return f"{said}.{f' It tells {classes:,} classes apart.' if classes else ''}"


def _options(options: dict[str, Any]) -> str:
    return f" ({', '.join(f'{name} {_value(value)}' for name, value in options.items())})" if options else ""


def _value(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _images(recipe: Recipe, facts: dict[str, Any]) -> str:
    data = recipe.data
    name = data.name + (f" ({data.problem or 'same'})" if data.name == "relations" else "")
    trained, held_out = images_of(facts, "training"), images_of(facts, "held-out")
    said = f"{name}: {f'{trained:,} ' if trained else ''}images of {data.train_split} are trained on"
    said += f", {f'{held_out:,} ' if held_out else 'those '}of {data.val_split} are scored"
    if data.val_share is not None:
        said += f" (a share of {data.val_share:g} is held out by the hash of its names)"
    size = facts.get("image_size") or data.image_size
    said += f". Their side is {_value(size)} pixels" if size else ""
    if data.image_sizes:
        said += f", in training one of {', '.join(map(str, data.image_sizes))} for each step"
    said += f"; {AUGMENTATIONS.get(data.augment, f'augmented by {data.augment}')}"
    if data.augment == "randaugment":
        said += f" ({data.randaugment_layers} operations of magnitude {data.randaugment_magnitude})"
    return f"{said}.{' The program draws them.' if SETS[data.name].drawn else ''}"


def _length(recipe: Recipe, facts: dict[str, Any]) -> str:
    images = images_of(facts, "training")
    if recipe.steps is None:
        said = _many(recipe.epochs or 1, "epoch")
        said += f" of {_many(images // recipe.batch, 'step')}" if images else ""
    else:
        said = _many(recipe.total_steps(0), "step")
    said += f", each of {_many(recipe.batch, 'image')}"
    said += f" in {recipe.accumulate} micro-batches" if recipe.accumulate > 1 else ""
    said += f"; it ends sooner after {recipe.patience} scorings that are no better" if recipe.patience else ""
    return f"{said}. Everything random comes from seed {recipe.seed}."


def _steps(recipe: Recipe) -> str:
    optimizer = recipe.optimizer
    said: str = "SGD" if optimizer.name == "sgd" else optimizer.name
    if optimizer.name == "sgd":
        said += f" with {'Nesterov momentum' if optimizer.nesterov else 'momentum'} {optimizer.momentum:g}"
    elif optimizer.betas:
        said += f" with betas {', '.join(f'{beta:g}' for beta in optimizer.betas)}"
    what = "every parameter" if optimizer.decay_all else "weights, not biases and norms"
    said += f", weight decay {optimizer.weight_decay:g} of {what}"
    parts = []
    if optimizer.clip_norm:
        parts.append(f"gradients are clipped to a norm of {optimizer.clip_norm:g}")
    if optimizer.layer_decay:
        parts.append(f"each layer has {optimizer.layer_decay:g} of the next one's rate")
    if recipe.label_smoothing:
        parts.append(f"{recipe.label_smoothing:g} of each label is spread over all classes")
    if recipe.ema:
        parts.append(f"a moving average of the weights is kept (decay {recipe.ema:g})")
    if recipe.precision != "float32":
        parts.append(f"products are in {recipe.precision}")
    return "; ".join([said, *parts]) + "."


def _rate(recipe: Recipe) -> str:
    optimizer, schedule = recipe.optimizer, recipe.schedule
    peak = optimizer.lr * recipe.batch / (optimizer.lr_batch or recipe.batch)
    said = f"{peak:.4g} at its peak"
    if optimizer.lr_batch and optimizer.lr_batch != recipe.batch:
        said += f" ({optimizer.lr:g} for a batch of {optimizer.lr_batch})"
    warmup = (
        f"{schedule.warmup_steps:,} steps" if schedule.warmup_steps else f"{schedule.warmup_epochs:g} epochs"
    )
    if schedule.warmup_steps or schedule.warmup_epochs:
        said += f", reached in a line over {warmup}"
        said += f" from {schedule.warmup_start:g} of it" if schedule.warmup_start else ""
    if schedule.kind == "cosine":
        return f"{said}; then it falls to 0 along half a cosine."
    by_steps = recipe.steps is not None
    marks = ", ".join(f"{mark * recipe.unit(0) if by_steps else mark:,.10g}" for mark in schedule.milestones)
    unit = "steps" if by_steps else "epochs"
    return f"{said}; it is times {schedule.gamma:g} after {marks} {unit}."


def _scored(recipe: Recipe, facts: dict[str, Any]) -> str:
    every = "each epoch" if recipe.eval_epochs == 1 else f"every {recipe.eval_epochs} epochs"
    best = f"; the best checkpoint is kept by {recipe.metric}" if recipe.metric else ""
    what = scored_on(recipe, facts)
    images = f"The {what}" if what == HELD_OUT else what.capitalize()
    return f"{images} are scored after {every}, and at the end{best}."


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
