"""A recipe: everything that a run is made from, typed and strict, read from and written as YAML."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from attneck.checks import MOST
from attneck.data.table import ONLY_WITH, SETS, Augment, HeldOutSplit, Name, TrainingSplit
from attneck.errors import brief, suggestion
from attneck.training.optimizer_names import OptimizerName, fields_of

TIMM = "timm/"
"""What a name of timm's begins with."""
DRAWN = 1 << 36
"""Bytes that the images of a drawn set may take."""


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
Tracker = Literal["wandb", "mlflow", "trackio"]
SURGERIES = ("adopt", "attend", "insert_attention_block", "insert_bam", "insert_se")
"""The functions of `attneck.surgery` that change a model."""


def check_surgery(given: str) -> str:
    """`none`, or one or several of `SURGERIES` joined by +; ValueError for anything else."""
    for name in () if given == "none" else given.split("+"):
        if name not in SURGERIES:
            raise ValueError(
                f"there is no {brief(name)} in attneck.surgery{suggestion(name, list(SURGERIES))} "
                f"(give none, {', '.join(SURGERIES)}, or several joined by +)"
            )
    return given


class Part(BaseModel):
    """A part of a recipe: unknown fields, infinite numbers and NaN are refused. It cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """The line breaks of a help text are the terminal's, not those of the docstring."""
        for field in cls.model_fields.values():
            field.description = " ".join((field.description or "").split())


class Model(Part):
    """The network, and what it starts from."""

    name: Text = "cifar_resnet20"
    """A name of `attneck list`, or timm/NAME for a classifier of timm's."""
    options: dict[Text, Value] = {}
    """Options of the model, such as bam_dilation 2; added to the recipe's own. On the command line also
    --model.options.bam_dilation 2; the value None takes one of the recipe's back."""
    weights: Text | None = None
    """The weights that it starts from: safetensors, a file of torch.save, or the folder of a run or of an
    exported model. A detector may start from another detector, or from a classifier. Tensors that fit by name
    and shape are taken."""
    pretrained: Text | None = None
    """timm's weights that it starts from, by timm's name, such as resnet50.a1_in1k: downloaded once, then in
    the run's checkpoint. They fill what fits, a detector's backbone say. Images are normalised for them;
    data.image_size, crop_pct and interpolation are the recipe's, which may differ from what timm scores them
    by."""
    surgery: Annotated[Text, AfterValidator(check_surgery)] = "none"
    """Classifiers: the function of `attneck.surgery` that changes the model before training: adopt, attend,
    insert_attention_block, insert_bam, insert_se, or none. Several are joined by + and done in that order:
    attend+insert_bam."""
    surgery_options: dict[Text, Value] = {}
    """Arguments of that function, such as start paper, or stage -2; of several functions with the name of
    theirs: insert_bam.start paper. None takes one of the recipe's back."""

    @model_validator(mode="after")
    def _one_start(self) -> Model:
        if self.weights is not None and self.pretrained is not None:
            raise ValueError(
                "model.weights and model.pretrained are given: leave one out (say --model.pretrained None)"
            )
        return self


class Data(Part):
    """The images, for training and held out."""

    name: Name = "shapes"
    """shapes: drawn by the program; clear_shapes: easier ones; relations: a problem that no single part of
    an image answers, other images in each epoch. cifar100: as published. folder: {train,val}/CLASS/*, or
    CLASS/* with val_share. Detectors have shapes (scenes with boxes and masks), coco, voc2007, voc2012 and
    voc0712, which is both."""
    problem: Literal["same", "twins", "identity", "left_of", "inside", "nearest", "path"] | None = None
    """relations: are two glyphs equal (same), any two of four (twins), half of eight (identity); is the disc
    left of a cross, a dot inside a curve, the disc nearest; does a path join two dots. same if not given."""
    train_split: TrainingSplit = "train"
    """The images that are trained on."""
    val_split: HeldOutSplit = "val"
    """The images that are scored: test is VOC 2007's; train shows whether a network over-fits."""
    root: Text | None = None
    """Where the data lies; ATTNECK_DATA where not given."""
    val_share: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)] | None = None
    """folder: this share of ROOT/CLASS/* is held out, each image by the hash of its name, where there are no
    folders train and val. The run's split.csv lists them."""
    image_size: Annotated[int, Field(gt=0, le=MOST, strict=True)] | None = None
    """Side in pixels; the data set's own where not given, a detector's where it is one."""
    image_sizes: (
        Annotated[list[Annotated[int, Field(gt=0, le=MOST, strict=True)]], Field(min_length=1)] | None
    ) = None
    """Classifiers: the training images of each step have one of these sides, each as likely; held-out images
    have image_size. Drawn sets are drawn at them, cut-out parts of photos and CIFAR's images resized to them.
    BatchNorm's statistics are of image_size alone where that is one of them. image_size where not given."""
    crop_pct: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1)] | None = None
    """folder: an image that is scored is resized, and this share of its side cut out of the middle; 0.875
    where not given. EfficientNet's is size / (size + 32), timm's stands with each of its weights."""
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None = None
    """folder: how an image that is scored is resized; bilinear where not given. Most of timm's weights are
    scored by bicubic."""
    augment: Augment = "none"
    """crop_flip: 4-pixel padding, random crop, flip. inception: random resized crop, flip. scale_crop: as
    ResNet's, the shorter side 256 to 480 pixels for a crop of 224, flip, light. Detectors: flip;
    scale_jitter: scaled at random, cut or padded, flip; ssd: colours, zoom, crops around objects, flip."""
    jitter: tuple[Rate, Rate] | None = None
    """scale_jitter: the least and the greatest factor; 0.8 and 1.25 where not given."""
    randaugment_layers: Annotated[int, Field(ge=0, le=100, strict=True)] = 2
    """randaugment: operations on each image, each one always applied."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30, strict=True)] = 10
    """randaugment: how strong they are; 10 is 30 degrees of rotation. 0 is not none: as in the published code
    Posterize and Solarize then leave next to nothing of an image."""
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
    workers: Annotated[int, Field(ge=0, le=256, strict=True)] | None = None
    """Processes that load images; 0 loads in the training process. Where not given, 0 on the CPU and for
    images in memory; on a GPU one for each core that this process has beside its own, 8 at most, if Python
    forks (Linux, up to 3.13). The result is the same."""

    @model_validator(mode="after")
    def _own_options(self) -> Data:
        """Each augmentation has its own options: another value than the default's goes with it alone."""
        for option, augment in ONLY_WITH.items():
            default = type(self).model_fields[option].default
            if getattr(self, option) != default and self.augment != augment:
                raise ValueError(
                    f"data.{option} goes with data.augment {augment}, not {self.augment}: leave it out (on "
                    f"the command line: {default})"
                )
        return self

    @model_validator(mode="after")
    def _problem_of_relations(self) -> Data:
        if self.problem is not None and self.name != "relations":
            raise ValueError(f"data.problem goes with data.name relations, not {self.name}: leave it out")
        return self

    @model_validator(mode="after")
    def _drawn_images_fit(self) -> Data:
        """The images of a drawn set are all held in memory, or their labels where it is endless."""
        count = max(self.train_size or 0, self.val_size or 0, 2000)
        sides = sorted({self.image_size or 32, *(self.image_sizes or ())})
        size = count * (8 if SETS[self.name].endless else 3 * sum(side**2 for side in sides))
        if SETS[self.name].drawn and size > DRAWN:
            each = " and ".join(f"{side}×{side}" for side in sides)
            raise ValueError(
                f"{count:,} drawn images of {each} take {size / 2**30:,.0f} GiB: give smaller ones by "
                "data.image_size and image_sizes, or fewer by data.train_size and val_size"
            )
        return self

    def augmentation(self) -> dict[str, Any]:
        """The augmentation and its own options, as `open_data` takes them."""
        own = [option for option, augment in ONLY_WITH.items() if augment == self.augment]
        return {"augment": self.augment} | {option: getattr(self, option) for option in own}


class Optimizer(Part):
    """SGD, as both papers use it; or another one, for fine-tuning."""

    name: OptimizerName = "sgd"
    """sgd: as both papers use it; the others by timm's factory, with its defaults for what is not given."""
    lr: Rate = 0.1
    """Peak learning rate for a batch of `lr_batch`; scaled linearly to the recipe's own batch. 0.1 is a rate
    of SGD's: another optimiser wants its own, adamw about 0.001, less where it starts from weights."""
    lr_batch: Images | None = None
    """The batch that `lr` is meant for; the recipe's own where not given."""
    momentum: Share = 0.9
    """sgd, lars, rmsprop and rmsproptf: the share of the last steps' direction that a step keeps."""
    nesterov: bool = True
    """sgd: Nesterov's momentum, which looks one step ahead."""
    betas: list[Share] | None = None
    """Optimisers of Adam's kind and lion: the decays of their moving averages, two, or three of adan and
    adanw; timm's where not given."""
    eps: Rate | None = None
    """Added to what a step is divided by, where the optimiser divides; timm's where not given."""
    weight_decay: Number = 1e-4
    """As the optimiser has it: SGD and adam add the decay to the gradient, adamw, lion and the like take it
    off the weights themselves."""
    decay_all: bool = False
    """Decay biases, BatchNorm and position tables too; else only weights with two or more dimensions, but for
    what a network of timm's excludes itself, such as class tokens."""
    clip_norm: Rate | None = None
    """Greatest norm of the whole gradient; no clipping where not given."""
    layer_decay: Annotated[Rate, Field(le=1)] | None = None
    """The learning rate of each layer is that of the next one times this, down from the classifier (BEiT's
    rule, by timm's order of layers); one rate for all where not given."""
    freeze: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    """The stem and so many stages keep the weights that they start from, with their norms in evaluation mode;
    0 is the stem alone, a vision transformer's blocks are its stages. What surgery put in learns all the
    same, but for what was adopted. Nothing is frozen where not given."""

    @model_validator(mode="after")
    def _own_fields(self) -> Optimizer:
        """A field that the optimiser doesn't have has the default's value, or is not given."""
        knows = fields_of(self.name)
        default = type(self).model_fields
        strange = [
            field
            for field, known in (
                ("momentum", knows.momentum),
                ("nesterov", self.name == "sgd" or not self.nesterov),
                ("betas", knows.betas > 0),
                ("eps", knows.eps),
            )
            if not known and getattr(self, field) != default[field].default
        ]
        if strange:
            raise ValueError(f"optimizer.{strange[0]}: {self.name} has none, leave it out")
        if self.betas is not None and len(self.betas) != knows.betas:
            raise ValueError(f"optimizer.betas: {self.name} has {knows.betas}, {len(self.betas)} are given")
        if self.name != "sgd" and "lr" not in self.model_fields_set:
            raise ValueError(no_rate(self.name))
        return self


def no_rate(name: str) -> str:
    """Of an optimiser that was named without a learning rate."""
    return f"optimizer.name {name} is given without optimizer.lr, and 0.1 is SGD's: give one, such as 0.001"


class Schedule(Part):
    """The learning rate over the run, as a share of its peak."""

    kind: Literal["cosine", "step"] = "cosine"
    """cosine: falls to 0 along half a cosine; step: is times `gamma` at each of `milestones`."""
    warmup_epochs: Number = 0
    """Epochs in which the rate first rises, in a line; parts of one too."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9, strict=True)] = 0
    """In place of warmup_epochs; the same for every batch."""
    warmup_start: Annotated[Number, Field(le=1)] = 0.0
    """Where the linear warm-up begins, as a share of the peak."""
    milestones: list[Annotated[float, BeforeValidator(_number), Field(le=1e9)]] = []
    """step: the epochs, or the steps where a recipe has `steps`, after which the rate is times `gamma`."""
    gamma: Annotated[Rate, Field(le=1)] = 0.1
    """step: the factor at each milestone."""

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


class Log(Part):
    """Where a run's records go beside its folder, which always has metrics.jsonl, metrics.csv and
    tensorboard."""

    trackers: list[Tracker] = []
    """wandb, mlflow or trackio, or several: each is told every record. Not installed: pip install NAME. Where
    a tracker logs to, and as whom, its own environment variables say, such as WANDB_MODE or
    MLFLOW_TRACKING_URI. One that fails while the run trains is left alone, with a line."""
    project: Text | None = None
    """The project (MLflow's experiment) that the run is filed under; where not given, what the tracker's
    environment variables say, or attneck."""

    @model_validator(mode="after")
    def _project_of_trackers(self) -> Log:
        if self.project is not None and not self.trackers:
            raise ValueError("log.project is given without log.trackers, who alone use it: leave it out")
        return self


class Recipe(Part):
    """What a run is made from."""

    reach: Text = ""
    """What this recipe should reach, on what, and where that figure is from."""
    model: Model = Model()
    """The network, and what it starts from."""
    data: Data = Data()
    """The images, for training and held out."""
    optimizer: Optimizer = Optimizer()
    """What makes a step of a gradient."""
    schedule: Schedule = Schedule()
    """The learning rate over the run."""
    log: Log = Log()
    """Trackers that are told the run's records."""
    epochs: Count | None = None
    """1 where neither epochs nor steps are given."""
    steps: Count | None = None
    """In place of epochs: optimiser steps for a batch of `steps_batch`. For another batch, steps and
    milestones are scaled so that the number of images is the same (BoTNet A.2)."""
    steps_batch: Images | None = None
    """The batch that steps and milestones are given for; the recipe's own where not given."""
    eval_epochs: Count = 1
    """Epochs between two scorings of the held-out images; the last step is always scored."""
    metric: Text | None = None
    """The held-out score that the best checkpoint is kept by, of the averaged weights where ema keeps them:
    top1, top5 or loss of a classifier, box_AP, mask_AP50 and the like of a detector, mAP of one on VOC. Where
    not given top1, box_AP or mAP."""
    patience: Count | None = None
    """Scorings in a row without a better `metric` after which the run ends, well. The learning rate follows
    its schedule over the whole length all the same: it doesn't fall sooner. To the end where not given."""
    batch: Images = 128
    """Images in one optimiser step, over all processes and micro-batches."""
    accumulate: Count = 1
    """Micro-batches that a step's batch is run in, one after the other: the weights are those of the whole
    batch, to rounding, but where there is BatchNorm, which sees a micro-batch at a time (over all processes
    with sync_bn), and but for detectors: each micro-batch, and each process, divides its losses by its own
    objects or regions, so that an image with few of them weighs more than in one batch."""
    label_smoothing: Share = 0.0
    """Classifiers: the share of each label that is spread over all classes; 0 spreads none."""
    ema: Share = 0.0
    """Decay of the moving average of the weights a step; 0 keeps none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights, BatchNorm statistics and the loss stay float32."""
    compile: bool = False
    """torch.compile of the whole network, of a detector its backbone with the pyramid, for training and
    scoring. It takes from seconds to minutes at the start, and wants a C++ compiler, or triton on a GPU. It
    rounds otherwise than the plain form; a detector's batches are as large as image_size in training too."""
    channels_last: bool = True
    """Images and weights in memory with their channels last, which convolutions are fastest with."""
    sync_bn: bool = True
    """BatchNorm over all processes of a distributed run."""
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63, strict=True)] = 0
    """Of everything random: first weights, order of the images, augmentation, dropout. Sets that the program
    draws are the same for every seed."""
    checkpoint_minutes: Rate = 5.0
    """A checkpoint before each scoring, and this often between two."""
    checkpoint_steps: Count | None = None
    """A checkpoint also after every N steps."""
    pictures: bool = True
    """At the end, draw curves, held-out images, and what is confused or missed, into pictures/, and write
    report.html, with snapshots of what is looked at as it learns."""

    @model_validator(mode="after")
    def _one_clock(self) -> Recipe:
        """Epochs or steps, and the fields of the one that is given."""
        if self.steps is None:
            if self.steps_batch is not None:
                raise ValueError("steps_batch is given without steps: leave it out, or give steps")
        elif self.epochs is not None:
            raise ValueError("epochs and steps are given: leave one out (on the command line: --epochs None)")
        elif self.schedule.warmup_epochs:
            raise ValueError(
                "schedule.warmup_epochs goes with epochs: beside steps set it to 0, and give warmup_steps"
            )
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

    def in_epochs(self, epochs: int) -> Recipe:
        """A recipe of `steps`, counted in epochs instead: warm-up and milestones keep their share of the run.

        What is counted in epochs already stays as it is.
        """
        if self.steps is None:
            return self
        ratio, schedule = epochs / self.steps, self.schedule
        shares = {
            "warmup_epochs": schedule.warmup_steps * ratio,
            "warmup_steps": 0,
            "milestones": [mark * ratio for mark in schedule.milestones],
        }
        return self.model_copy(
            update={
                "steps": None,
                "steps_batch": None,
                "epochs": epochs,
                "schedule": schedule.model_copy(update=shares),
            }
        )

    def unit(self, steps_per_epoch: int) -> float:
        """The optimiser steps that one of `epochs`, or of `steps`, and of the milestones stands for."""
        return steps_per_epoch if self.steps is None else (self.steps_batch or self.batch) / self.batch

    def reached(self, epoch: float, step: int) -> tuple[float, float]:
        """How far a run is, and how far it goes: in epochs, or in steps where `steps` are given."""
        return (epoch, self.epochs or 1) if self.steps is None else (step, self.total_steps(0))

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
