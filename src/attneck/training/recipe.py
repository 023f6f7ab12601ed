"""A recipe: everything that a run is made from, typed and strict, read from and written as YAML."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from attneck.checks import MOST
from attneck.data.table import ONLY_WITH, SETS, Augment, HeldOutSplit, Name, TrainingSplit
from attneck.errors import UserError, brief, one_line, suggestion
from attneck.training.recipe_file import read_yaml

SHIPPED = Path(__file__).parent / "recipes"
RECIPE = "recipe.yaml"
"""The file in a run's folder that says what it was made from."""
TIMM = "timm/"
"""What a name of timm's begins with."""
DRAWN = 1 << 36
"""Bytes that the images of a drawn set may take."""
COMPLAINTS = 4
"""What is said of a recipe at most; more are counted."""


def _word(value: str) -> str:
    if "\0" in value:
        raise ValueError("leave the NUL character out")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


# Counts are whole numbers, not words or True. The bounds are far above any use: what is more is refused
# before memory is asked for.
Count = Annotated[int, Field(gt=0, le=10**9, strict=True)]
Images = Annotated[int, Field(gt=0, le=1 << 17, strict=True)]
"""In one batch."""
Number = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1e9)]
Rate = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e6)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Text = Annotated[str, Field(max_length=4000, strict=True), AfterValidator(_word)]
Value = bool | int | float | Text | list[int]


class Part(BaseModel):
    """A part of a recipe: unknown fields, infinite numbers and NaN are refused. It cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Part):
    name: Text = "cifar_resnet20"
    """A name of `attneck list`, or timm/NAME for a classifier of timm's."""
    options: dict[Text, Value] = {}
    """Options of the model, such as bam_dilation 2; added to the recipe's own."""
    weights: Text | None = None
    """The weights that it starts from: safetensors, a file of torch.save, or the folder of a run. A detector
    may start from another detector, or from a classifier. Tensors that fit by name and shape are taken."""
    pretrained: Text | None = None
    """timm's weights that it starts from, by timm's name, such as resnet50.a1_in1k: downloaded once, then in
    the run's checkpoint. They fill what fits, a detector's backbone say; images are normalised for them."""
    surgery: Literal["none", "adopt", "attend", "insert_attention_block", "insert_bam", "insert_se"] = "none"
    """Classifiers: the function of `attneck.surgery` that changes the model before training."""
    surgery_options: dict[Text, Value] = {}
    """Arguments of that function, such as start paper, or stage -2."""

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        if self.weights is not None and self.pretrained is not None:
            raise ValueError(
                "model.weights and model.pretrained are given: leave one out (on the command line: None)"
            )
        return self


class Data(Part):
    name: Name = "shapes"
    """shapes: drawn by the program; clear_shapes: easier ones. cifar100: as published. folder:
    {train,val}/CLASS/*. Detectors have shapes (scenes with boxes and masks), coco, voc2007, voc2012 and
    voc0712, which is both."""
    train_split: TrainingSplit = "train"
    """The images that are trained on."""
    val_split: HeldOutSplit = "val"
    """The images that are scored: test is VOC 2007's; train shows whether a network over-fits."""
    root: Text | None = None
    """Where the data lies; ATTNECK_DATA where not given."""
    image_size: Annotated[int, Field(gt=0, le=MOST, strict=True)] | None = None
    """Side in pixels; the data set's own where not given, a detector's where it is one."""
    augment: Augment = "none"
    """crop_flip: 4-pixel padding, random crop, flip. inception: random resized crop, flip. Detectors: flip;
    scale_jitter: scaled at random, cut or padded, flip; ssd: colours, zoom, crops around objects, flip."""
    jitter: tuple[Rate, Rate] | None = None
    """scale_jitter: the least and the greatest factor; 0.8 and 1.25 where not given."""
    randaugment_layers: Annotated[int, Field(ge=0, le=100, strict=True)] = 2
    """randaugment: operations on each image, each one always applied."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30, strict=True)] = 10
    """randaugment: how strong they are; 10 is 30 degrees of rotation."""
    train_size: Count | None = None
    """This many training images, evenly spread over the set; of shapes, how many are drawn."""
    val_size: Count | None = None
    """The same of those that are held out."""
    md5: list[Text] = []
    """Sums of downloaded files to accept beside the official ones."""
    max_pixels: Annotated[int, Field(gt=0, le=1 << 40, strict=True)] | None = None
    """Sets of image files: a larger image is refused; 178,956,970, Pillow's own limit, where not given."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Sets of image files: what training does at an image that cannot be read. skip: another one takes its
    place, of its class where it has one; over 1 % of them stop. Held-out images always stop."""
    workers: Annotated[int, Field(ge=0, le=256, strict=True)] = 0
    """Processes that load images; 0 loads in the training process. The result is the same."""

    @model_validator(mode="after")
    def _own_options(self) -> Data:
        """Each augmentation has its own options: another value than the default's goes with it alone."""
        for option, augment in ONLY_WITH.items():
            if getattr(self, option) != type(self).model_fields[option].default and self.augment != augment:
                raise ValueError(
                    f"data.{option} goes with data.augment {augment}, not {self.augment}: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _drawn_images_fit(self) -> Data:
        """The images of a drawn set are all held in memory."""
        count, side = max(self.train_size or 0, self.val_size or 0, 2000), self.image_size or 32
        if SETS[self.name].drawn and (size := count * side**2 * 3) > DRAWN:
            raise ValueError(
                f"{count:,} drawn images of {side}×{side} take {size / 2**30:,.0f} GiB: give a smaller "
                "data.image_size, or fewer by data.train_size and val_size"
            )
        return self

    def augmentation(self) -> dict[str, Any]:
        """The augmentation and its own options, as `open_data` takes them."""
        own = [option for option, augment in ONLY_WITH.items() if augment == self.augment]
        return {"augment": self.augment} | {option: getattr(self, option) for option in own}


class Optimizer(Part):
    """SGD, as both papers use it."""

    lr: Rate = 0.1
    """Peak learning rate for a batch of `lr_batch`; scaled linearly to the recipe's own batch."""
    lr_batch: Images | None = None
    """The batch that `lr` is meant for; the recipe's own where not given."""
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: Number = 1e-4
    decay_all: bool = False
    """Decay biases, BatchNorm and position tables too; else only weights with two or more dimensions."""
    clip_norm: Rate | None = None
    """Greatest norm of the whole gradient; no clipping where not given."""


class Schedule(Part):
    kind: Literal["cosine", "step"] = "cosine"
    warmup_epochs: Number = 0
    warmup_steps: Annotated[int, Field(ge=0, le=10**9, strict=True)] = 0
    """In place of warmup_epochs; the same for every batch."""
    warmup_start: Annotated[Number, Field(le=1)] = 0.0
    """Where the linear warm-up begins, as a share of the peak."""
    milestones: list[Annotated[float, BeforeValidator(_number), Field(le=1e9)]] = []
    """step: the epochs, or the steps where a recipe has `steps`, after which the rate is times `gamma`."""
    gamma: Annotated[Rate, Field(le=1)] = 0.1

    @model_validator(mode="after")
    def _milestones_of_steps(self) -> Schedule:
        """Milestones rise, from over 0; they and gamma are of kind step, which has one at least."""
        marks = self.milestones
        if self.kind == "step":
            if not marks:
                raise ValueError("schedule.kind step has no milestones: give one or more, or kind cosine")
            if marks[0] <= 0 or any(later <= sooner for sooner, later in pairwise(marks)):
                raise ValueError(f"schedule.milestones are {marks}: give numbers over 0 in rising order")
        elif marks:
            raise ValueError(f"schedule.milestones go with kind step, not {self.kind}: leave them out")
        elif self.gamma != type(self).model_fields["gamma"].default:
            raise ValueError(f"schedule.gamma goes with kind step, not {self.kind}: leave it out")
        return self


class Recipe(Part):
    reach: Text = ""
    """What this recipe should reach, on what, and where that figure is from."""
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    epochs: Count | None = None
    """1 where neither epochs nor steps are given."""
    steps: Count | None = None
    """In place of epochs: optimiser steps for a batch of `steps_batch`. For another batch, steps and
    milestones are scaled so that the number of images is the same (BoTNet A.2)."""
    steps_batch: Images | None = None
    """The batch that steps and milestones are given for; the recipe's own where not given."""
    eval_epochs: Count = 1
    """Epochs between two scorings of the held-out images; the last step is always scored."""
    batch: Images = 128
    """Images in one optimiser step, over all processes and micro-batches."""
    accumulate: Count = 1
    """Micro-batches that a step's batch is run in, one after the other."""
    label_smoothing: Share = 0.0
    ema: Share = 0.0
    """Decay of the moving average of the weights a step; 0 keeps none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights, BatchNorm statistics and the loss stay float32."""
    channels_last: bool = True
    sync_bn: bool = True
    """BatchNorm over all processes of a distributed run."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, strict=True)] = 0
    checkpoint_minutes: Rate = 5.0
    """A checkpoint after every epoch, and this often within one."""
    checkpoint_steps: Count | None = None
    """A checkpoint also after every N steps."""

    @model_validator(mode="after")
    def _one_clock(self) -> Recipe:
        """Epochs or steps, and the fields of the one that is given."""
        if self.steps is None:
            if self.steps_batch is not None:
                raise ValueError("steps_batch is given without steps: leave it out, or give steps")
        elif self.epochs is not None:
            raise ValueError("epochs and steps are given: leave one out (on the command line: None)")
        elif self.schedule.warmup_epochs:
            raise ValueError("schedule.warmup_epochs goes with epochs: beside steps give warmup_steps")
        if self.schedule.warmup_epochs and self.schedule.warmup_steps:
            raise ValueError("schedule.warmup_epochs and warmup_steps are given: leave one out")
        return self

    @model_validator(mode="after")
    def _bounds(self) -> Recipe:
        """What the numbers alone show: the micro-batches, and the warm-up of the run."""
        if self.batch % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch} does not divide into {self.accumulate} micro-batches (accumulate): "
                f"choose a multiple of {self.accumulate}"
            )
        if self.schedule.warmup_epochs > (self.epochs or 1):
            raise ValueError(_too_long("epochs", self.schedule.warmup_epochs, self.epochs or 1))
        if self.steps is not None:
            self.total_steps(0)
        return self

    def unit(self, steps_per_epoch: int) -> float:
        """The optimiser steps that one of `epochs`, or of `steps`, and of the milestones stands for."""
        return steps_per_epoch if self.steps is None else (self.steps_batch or self.batch) / self.batch

    def total_steps(self, steps_per_epoch: int) -> int:
        """The optimiser steps of the whole run, 1 or more.

        Raises ValueError when schedule.warmup_steps are more.
        """
        steps = max(1, round((self.steps or self.epochs or 1) * self.unit(steps_per_epoch)))
        if self.schedule.warmup_steps > steps:
            raise ValueError(_too_long("steps", self.schedule.warmup_steps, steps))
        return steps


def _too_long(unit: str, warmup: float, run: int) -> str:
    return (
        f"schedule.warmup_{unit} is {warmup:g} of a run of {run} {unit}: "
        f"give a shorter warm-up or a longer run"
    )


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
    return (folder / RECIPE).is_file()


def parse_recipe(content: Any, source: str) -> Recipe:
    """`content` as a recipe.

    Raises:
        UserError: one line that names every field that does not fit, with the nearest one that would.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise refusal(error, source) from None


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
    wanted: str = error["msg"].removeprefix("Value error, ")
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
    a, b = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = [
        key
        for key in {**a, **b}
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_ON_RESUME)
    ]
    return [f"{key}: {a.get(key)} → {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
