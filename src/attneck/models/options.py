"""What all families' options have in common: names, types and ranges, free of torch.

A row of the catalog is such an object with its values filled in, so a misspelt model, option or value, and
options that do not fit each other, are refused before anything heavy is imported. Each value is checked once:
its type and range by pydantic, what a layer knows (which heads divide a width, which reductions of BAM leave
a channel) by that layer when the network is built, and the rest by the family. An option that would change
nothing is refused, never ignored.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from attneck.checks import MOST
from attneck.errors import brief, one_line, suggestion

MAX_CLASSES = 10**7
MAP_TO_CLASSIFIER = "global_pool='' hands on a map, which no classifier takes: give num_classes=0"
MAX_PARAMETERS = 10**9
"""What asks for more is refused before it is built: at this size the weights alone take 4 GB."""

Positive = Annotated[int, Field(ge=1, le=MOST)]
Depth = Annotated[int, Field(ge=1, le=512)]
"""Blocks, or layers, in a row."""
Probability = Annotated[float, Field(ge=0, lt=1)]
# YAML, JSON and the command line have lists, and an option must not change after it was checked.
# One number is a list of it: a command line cannot tell the two apart.
AsTuple = BeforeValidator(
    lambda value: tuple(value) if isinstance(value, list) else (value,) if type(value) is int else value
)
Numbers = Annotated[tuple[Positive, ...], AsTuple, Field(max_length=16)]
"""One number a stage."""
Depths = Annotated[tuple[Depth, ...], AsTuple, Field(max_length=16)]

BlockKind = Literal["basic", "bottleneck"]
StrideOn = Literal["3x3", "1x1"]
Pool = Literal["avg", "max", "avgmax", "catavgmax", ""]
"""timm's words: mean, maximum, the average of both, both side by side, and none."""
OutputStride = Literal[32, 16, 8]


class FamilyOptions(BaseModel):
    """What every family has for head and norms, and, as attributes of the class, what others need to know."""

    # The string under an option is its help text (attneck list MODEL --options).
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """An option that a derived family only gives another default keeps its help text."""
        super().__pydantic_init_subclass__(**arguments)
        of_base: dict[str, Any] = getattr(cls.__base__, "model_fields", {})
        for name, field in cls.model_fields.items():
            if field.description is None and name in of_base:
                field.description = of_base[name].description

    builder: ClassVar[str]
    """MODULE:FUNCTION, imported when a network is built: function(options, num_classes=…, image_size=(H, W));
    a classifier's takes in_chans too."""
    loader: ClassVar[str] = "attneck.models.weights:load_matching"
    """MODULE:FUNCTION that loads weights into such a network: function(network, weights)."""
    first_conv: ClassVar[str] = "conv1"
    """Name of the first convolution in a classifier."""
    classifier: ClassVar[str] = "fc"
    """Name of its last layer."""
    fits_fpn: ClassVar[bool] = True
    """Whether detectors can have their feature pyramid on its last four maps."""

    dropout: Probability = 0.0
    """Probability of it before the classifier."""
    global_pool: Pool = "avg"
    """What pools the last map, as timm names it."""
    bn_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of every BatchNorm; TensorFlow calls a momentum of 0.1 here 0.9."""
    bn_eps: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of every BatchNorm; the family's own where None."""

    @property
    def feature_cfg(self) -> dict[str, Any]:
        """How timm makes its `features_only` model: which maps if none are asked for, and by which class."""
        return {}

    @property
    def last_stride(self) -> int:
        """Pixels of a position of a classifier's last map, along each side."""
        raise NotImplementedError

    def last_map(self, image_size: tuple[int, int]) -> tuple[int, int] | None:
        """The last map's (H, W) for an image; None for a network of tokens."""
        return -(-image_size[0] // self.last_stride), -(-image_size[1] // self.last_stride)

    def least_parameters(
        self, num_classes: int = 0, image_size: tuple[int, int] = (1, 1), in_chans: int = 1
    ) -> int:
        """The network has so many or more, by arithmetic on its largest layers alone."""
        return num_classes

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        refuse_absurd(self.least_parameters())
        return self

    def as_dict(self) -> dict[str, Any]:
        """Every option by its name, those of a detector's backbone among them."""
        values = dict(self)
        backbone: FamilyOptions | None = values.pop("backbone", None)
        return values | (backbone.as_dict() if backbone else {})

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked as these are."""
        return type(self)(**dict(self) | changes)

    def shortest(self) -> Self:
        """The same network, of options that say one thing in several ways by the shortest of them."""
        return self

    def _refuse_idle(self, names: tuple[str, ...], wanted: str) -> None:
        """ValueError if an option was changed that nothing in this network would see."""
        for name in names:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                raise ValueError(f"{name}={value!r} would change nothing without {wanted}")


class AttentionOptions(FamilyOptions):
    """How MHSA is built wherever a network has it (BoTNet Fig. 4, Tables 4 and 19)."""

    heads: Positive = 4
    """Attention heads of each MHSA layer (BoTNet Fig. 4)."""
    position: Literal["relative", "absolute", "none"] = "relative"
    """What MHSA knows of positions (BoTNet Table 4)."""
    content: bool = True
    """Whether MHSA has its term of content, q·k (BoTNet Table 4)."""
    resample: Literal["stretch", "keep"] = "stretch"
    """The tables of positions on another map: stretch interpolates them, keep keeps each row's offset."""

    @property
    def attends(self) -> bool:
        """Whether any layer of the network is MHSA."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _attention_is_used(self) -> Self:
        if not self.attends:
            self._refuse_idle(("heads", "position", "content", "resample"), "attention: give attend")
        if self.position == "none":
            self._refuse_idle(("resample",), "a table of positions: position='relative' or 'absolute'")
        return self


class BAMOptions(FamilyOptions):
    """How BAM is built wherever a network has it (BAM §3, Table 1)."""

    bam: Literal["none", "stages", "blocks"] = "none"
    """stages: a BAM at each bottleneck of the network; blocks: BAM-C, one in every block (BAM Table 2)."""
    bam_reduction: Positive = 16
    """Channels over those inside each BAM, r (BAM Table 1a)."""
    bam_dilation: Positive = 4
    """Dilation of the spatial branch's 3×3 convs, d (BAM Table 1a)."""
    bam_combine: Literal["default", "sum", "prod", "max"] = "default"
    """How the branches are joined (BAM Table 1b); default: paper's sum, official's product."""
    bam_branches: Literal["both", "channel", "spatial"] = "both"
    """Which branches there are (BAM Table 1b)."""
    bam_variant: Literal["paper", "official"] = "paper"
    """As the paper's equations have it, or as the authors' code."""
    bam_gate: bool = True
    """False adds what the branches say to the map in place of gating it: a control, no paper has it."""

    def shortest(self) -> Self:
        """How the branches are joined is the default, where that is named."""
        own = {"paper": "sum", "official": "prod"}[self.bam_variant]
        plain = super().shortest()
        return plain.replace(bam_combine="default") if self.bam_combine == own else plain

    @model_validator(mode="after")
    def _bam_is_used(self) -> Self:
        if self.bam == "none":
            own = tuple(name for name in BAMOptions.model_fields if name.startswith("bam_"))
            self._refuse_idle(own, "a BAM: bam='stages', or a model called …_bam")
        if self.bam_branches != "both":
            self._refuse_idle(("bam_combine",), "both branches")
        if not self.bam_gate:
            self._refuse_idle(("bam_combine",), "the gate")
        if self.bam_branches == "channel":
            self._refuse_idle(("bam_dilation",), "the spatial branch")
        return self


def residual_parameters(
    depths: tuple[int, ...], mids: tuple[int, ...], outs: tuple[int, ...], stem: int, basic: bool, groups: int
) -> int:
    """What residual stages have at least: a third of each 3×3 conv that attention may replace."""
    total, ins = 0, stem
    for depth, mid, out in zip(depths, mids, outs, strict=False):
        around = 9 * mid if basic else mid  # a bottleneck's two 1×1 convs; a basic block's first 3×3
        inner = 3 * mid * out if basic else mid * out + 9 * mid * mid // max(groups, 3)
        total += around * (ins + (depth - 1) * out) + depth * inner
        ins = out
    return total


def refuse_absurd(parameters: int) -> None:
    """ValueError for more than MAX_PARAMETERS."""
    if parameters > MAX_PARAMETERS:
        raise ValueError(
            f"this network would have {parameters / 1e6:,.0f} million parameters or more, wanted "
            f"{MAX_PARAMETERS / 1e6:,.0f} million at most: lower depths, widths, num_classes or image_size"
        )


Options = TypeVar("Options", bound=FamilyOptions)


def own_and_backbones(options: FamilyOptions) -> tuple[set[str], set[str]]:
    """Names of the options that it has, and of those that its backbone has besides, where it has one."""
    own = {*type(options).model_fields} - {"backbone"}
    backbone: FamilyOptions | None = getattr(options, "backbone", None)
    return own, {*(type(backbone).model_fields if backbone else ())} - own


def override(options: Options, given: dict[str, Any], name: str) -> Options:
    """`options` with the `given` values in place; where a detector has none of that name, its backbone's.

    Raises:
        ValueError: an option that this model does not have (with the nearest one that it has), a value
            that is not of the option's kind or not among its choices, or values that do not fit each other.
    """
    backbone: FamilyOptions | None = getattr(options, "backbone", None)
    own, inherited = own_and_backbones(options)
    known = own | inherited
    for key in given:
        if key not in known:
            names = sorted(known)
            near = _of_timm(key, name, known, backbone is not None) or suggestion(key, names)
            near = near or f" (its options: {one_line(', '.join(names), 180)})"
            raise ValueError(f"{name} has no option {one_line(repr(key), 40)}{near}")
    changes = {key: value for key, value in given.items() if key in own}
    inner = {key: value for key, value in given.items() if key not in own}
    try:
        if backbone and inner:
            changes["backbone"] = backbone.replace(**inner)
        return options.replace(**changes)
    except ValidationError as error:
        raise ValueError(f"{name}: {first_fault(error)}") from error


TIMMS = {"drop_rate": "dropout", "drop_path_rate": "drop_path", "drop_block_rate": "drop_block"}
"""Arguments of timm's that are options here, and their names."""


def _of_timm(key: str, name: str, known: set[str], detector: bool) -> str:
    """What to give instead of an argument of timm's; "" for any other."""
    if key == "img_size":
        return ": give image_size (a recipe's data.image_size)"
    if TIMMS.get(key) in known:
        return f": give {TIMMS[key]}"
    if key in ("features_only", "out_indices") and not detector:
        return f": take timm.create_model('attneck_{name}', features_only=True), which has timm's arguments"
    return ""


# pydantic's kinds of fault, in words.
_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "True or False",
    "string_type": "a word",
    "tuple_type": "a list of whole numbers",
    "too_short": "{min_length} entries or more",
    "too_long": "{max_length} entries at most",
    "string_too_long": "{max_length} characters at most",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} at most",
}


def first_fault(error: ValidationError) -> str:
    """What is wrong, in one line: the value that was given, and what is wanted."""
    # Every member of a union refuses a value; those of another kind do not say what is wrong with it.
    fault = min(error.errors(include_url=False), key=lambda one: one["type"].endswith("_type"))
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    wanted, near = fault["msg"], ""
    if kind in _WANTED:
        wanted = _WANTED[kind].format(**context)
    elif kind == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        # pydantic quotes words and nothing else
        wanted = f"one of {', '.join(map(repr, choices)) or context['expected']}"
        near = suggestion(value, choices)
    name, *place = fault["loc"]
    # pydantic names the member too: bool, or list[constrained-int]
    inside = [one for one in place if one not in ("bool", "float") and "constrained-" not in str(one)]
    where = f"{name}{''.join(f'[{index}]' for index in inside)}"
    return f"{where}={brief(value)}: wanted {wanted}{near}"
