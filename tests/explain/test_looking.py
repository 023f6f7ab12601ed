"""The pictures of `attneck look` and `draw`: colours where they have to be, no words over others."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn

import attneck
from attneck.explain import maps
from attneck.explain.looking import Look, picture
from attneck.explain.neck import Drawn, neck
from attneck.explain.photo import Window, centred, fitted
from attneck.explain.scale import ends, span
from attneck.explain.seeing import Maps
from attneck.explain.sheet import Column, Place, Table, Tile, sheet
from attneck.explain.stages import stages
from attneck.layers import BAM, MHSA2d
from attneck.measure import count

PHOTO = Image.new("RGB", (160, 96), (128, 128, 128))
WINDOWS = {"cut out": centred((160, 96), 64, 0.875), "padded": fitted((160, 96), (38, 64), (64, 64))}


def looking_left() -> nn.Module:
    """From each place of an 8 x 8 map at the place left of it, whatever the image of ones."""
    layer = MHSA2d(8, 8, heads=2)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight[:8] = 1.0
        layer.rel_h.zero_(), layer.rel_w.zero_()
        layer.rel_h[7], layer.rel_w[6] = 10, 10  # offsets 0 and -1
    return nn.Sequential(nn.AvgPool2d(8), layer)


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_the_bright_pixel_is_left_of_the_place(window: Window) -> None:
    found = maps(looking_left(), torch.ones(8, 64, 64))
    place = Place(100.5, 40.5, "x 100, y 40")
    figure = picture(PHOTO, [Look("left", [], found, window)], [place])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    overlays = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(overlays) == 1 + 2 + 2
    row, column = window.cell(100.5, 40.5, (8, 8)) or (0, 0)
    left, top, right, bottom = window.of_cell(row, column - 1, (8, 8))
    for axes in overlays[:3]:  # all heads, and each
        box = axes.get_window_extent()
        tile = pixels[
            round(len(pixels) - box.y1) : round(len(pixels) - box.y0), round(box.x0) : round(box.x1)
        ]
        yellow = tile[..., 0] - tile[..., 2]  # of viridis the end has most red and least blue
        y, x = (axis.mean() for axis in np.nonzero(yellow > 0.9 * yellow.max()))
        scale = 160 / tile.shape[1]
        assert (x + 0.5) * scale == pytest.approx((left + right) / 2, abs=3 * scale)
        assert (y + 0.5) * scale == pytest.approx((top + bottom) / 2, abs=3 * scale)


def test_what_the_padding_has_is_not_in_the_scales() -> None:
    """The photo fills 38 of 64 pixels, so 5 of the map's 8 rows; those below have greater values."""
    image = torch.ones(1, 16, 64, 64)
    image[:, :, 40:] = 50.0
    found = maps(nn.Sequential(nn.AvgPool2d(8), BAM(16)), image)
    figure = picture(PHOTO, [Look("padded", [], found, WINDOWS["padded"])], [])
    limits = [axes.images[1].get_clim() for axes in figure.axes if len(axes.images) == 2]
    (bam,) = found.bams
    assert bam.spatial is not None
    both = 0.0, float(torch.stack([bam.before, bam.after])[:, :5].max())
    reach = max(1.0, float(bam.spatial[:5].abs().max()))
    assert limits == [pytest.approx(each) for each in (both, (-reach, reach), (0, 1), both)]


def test_what_is_nearly_even_has_one_colour() -> None:
    """Weights that differ from even ones by a hundredth lie next to the scale's middle; a peak does not."""
    even = np.full((4, 4), 1 / 16)
    even[0, 0] *= 1.01
    assert np.ptp(even / ends("weight", even, places=16)[1]) < 0.01
    assert ends("weight", even, places=16) == (0, 2 / 16)
    peak = np.zeros((4, 4))
    peak[1, 1] = 1.0
    assert ends("weight", peak, even, places=16) == (0, 1)
    assert ends("gate", even) == (0, 1)
    assert ends("logit", even) == (-1, 1)
    assert ends("logit", even - 3.0) == (even[1, 1] - 3, 3 - even[1, 1])
    assert [span(even), span(even * 0)] == ["0.062 to 0.063", "0 everywhere"]


def test_a_padded_photo_is_framed_whole_and_a_long_one_drawn_shorter() -> None:
    image = torch.ones(1, 16, 64, 64)
    found = maps(nn.Sequential(nn.AvgPool2d(8), BAM(16)), image)
    figure = picture(PHOTO, [Look("padded", [], found, WINDOWS["padded"])], [])
    (frame, _) = figure.axes[0].patches[:2]
    assert isinstance(frame, Rectangle)
    assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((0, 0), *PHOTO.size)
    found = maps(nn.Sequential(nn.AvgPool2d(8), BAM(16)), torch.ones(1, 16, 64, 64))
    long = Image.new("RGB", (2, 400))
    figure = picture(long, [Look("long", [], found, centred(long.size, 64, 1.0))], [])
    assert figure.get_size_inches()[1] < 60


class Tower(nn.Module):
    """So many BAMs, and MHSAs with so many heads."""

    def __init__(self, bams: int, mhsas: int, heads: int = 2) -> None:
        super().__init__()
        self.a_long_name_of_a_module = nn.Sequential(*(BAM(16) for _ in range(bams)))
        self.layers = nn.ModuleList(
            nn.Sequential(MHSA2d(16, 4, heads=heads, position="relative" if i else "none"))
            for i in range(mhsas)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a_long_name_of_a_module(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


def check_layout(figure: Figure) -> None:
    """Everything is on the page, no words on words, no tile on another, no words on a tile."""
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    page = figure.bbox
    words = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts if text.get_text()]
    tiles = [("a tile", axes.get_window_extent()) for axes in figure.axes]
    for name, box in [*words, *tiles]:
        assert box.x0 >= page.x0, name
        assert box.x1 <= page.x1, name
        assert box.y0 >= page.y0, name
        assert box.y1 <= page.y1, name
    for (one, a), (other, b) in combinations([*words, *tiles], 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (one, other)


@pytest.mark.parametrize(
    ("bams", "mhsas", "heads", "size"),
    [
        (1, 0, 2, (60, 100)),
        (0, 1, 4, (60, 100)),
        (1, 2, 16, (300, 60)),
        (9, 7, 2, (160, 96)),
    ],
)
def test_layout_from_one_module_to_many(bams: int, mhsas: int, heads: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    found = maps(Tower(bams, mhsas, heads), torch.randn(16, 4, 4))
    window = centred(size, 4, 1.0)
    look = Look(
        "a tower", ["It is untrained: its weights are random.", "12 %  $a \\class$\udcff"], found, window
    )
    place = Place(size[0] / 2, size[1] / 2, "x 30, y 50")
    figure = picture(Image.new("RGB", size), [look], [place], tables=True, dark=True)
    overlays = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(overlays) == 4 * bams + mhsas * (heads + 3) - (mhsas > 0)
    check_layout(figure)
    # Maps stand beside the photo, and the sheet is no wider than a screen.
    assert overlays[0].get_position().x0 > figure.axes[0].get_position().x1
    assert figure.get_size_inches()[0] * 110 < 1500


def test_no_number_lies_on_its_unit() -> None:
    tiles = [
        Tile(np.eye(4) * most, unit, WINDOWS["cut out"], (least, most))
        for unit in ("weight", "mean |x|", "value")
        for least, most in ((0, 0.00049), (-0.00049, 1), (0, 8.7e-16))
    ]
    table = Table("numbers", [""], ["a column"] * len(tiles), [tiles])
    check_layout(sheet(PHOTO, [Column("", [], WINDOWS["cut out"], [], [table])]))


def test_models_beside_each_other() -> None:
    """Under each other where the sheet would be wider than a screen."""
    found = [maps(Tower(2, 0), torch.randn(16, 4, 4)), maps(Tower(0, 1), torch.randn(16, 4, 4))]
    window = centred(PHOTO.size, 4, 1.0)
    figure = picture(
        PHOTO,
        [Look(name, ["words"], one, window) for name, one in zip(("left", "right"), found, strict=True)],
        [Place(80, 40, "x 80, y 40"), Place(60, 30, "x 60, y 30")],
    )
    check_layout(figure)
    said = {text.get_text(): text for text in figure.texts}
    assert "Self-attention from place 2, x 60, y 30" in said
    assert said["left"].get_position()[1] > said["right"].get_position()[1]
    assert figure.get_size_inches()[0] * 110 < 1500
    cams = [
        Look(name, [], Maps((4, 4), (4, 4), (), (), None), window, ("a class", np.eye(4))) for name in "ab"
    ]
    figure = picture(PHOTO, cams, [])
    check_layout(figure)
    said = {text.get_text(): text for text in figure.texts}
    assert said["a"].get_position()[1] == said["b"].get_position()[1]


@pytest.mark.parametrize(
    ("attend", "blocks"), [([0, 1], {"MHSA": [2]}), ([1, 0], {"MHSA": [1]}), ([1, 1], {})]
)
def test_which_blocks_attend_is_told(attend: list[int], blocks: dict[str, list[int]]) -> None:
    model = attneck.create_model("resnet50", 2, 64, depths=[1, 1, 1, 2], attend=attend)
    (stage,) = (one for one in stages(model, (64, 64)) if one.name == "layer4")
    assert (stage.blocks, stage.some) == (2, blocks)


def test_where_among_the_blocks_it_was_inserted_is_told() -> None:
    """BoTNet's Figure 13: before the last block of c4. BAM after a stage's last block is between none."""
    nl, bot = (attneck.create_model(name, 2, 64) for name in ("resnet50_nl_c4", "resnet50_bot_c4"))
    found = {stage.name: stage for stage in stages(nl, (64, 64))}["layer3"]
    assert (found.blocks, found.some, found.between) == (6, {}, {"non-local": [5]})
    found = {stage.name: stage for stage in stages(bot, (64, 64))}["layer3"]
    assert (found.blocks, found.some, found.between) == (7, {"MHSA": [6]}, {})
    bam = attneck.create_model("resnet50_bam", 2, 64)
    assert all(stage.between == {} for stage in stages(bam, (64, 64)))


@pytest.mark.parametrize(
    ("name", "of_maps"),
    [
        # [B, H, W, C], until the last norm; side by side, several maps; tokens until they are a map again.
        ("swin_tiny_patch4_window7_224", [(96, 56), (96, 56), (192, 28), (384, 14), (768, 7), (1000, None)]),
        ("hrnet_w18_small", [(64, 56), *3 * [(None, None)]]),
        ("pvt_v2_b0", [(32, 56), (32, 56), (64, 28), (160, 14), (256, 7), (1000, None)]),
    ],
)
def test_maps_are_told_wherever_their_channels_are(name: str, of_maps: list[Any]) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        found = stages(timm.create_model(name), (224, 224))
    assert [stage.channels for stage in found][: len(of_maps)] == [channels for channels, _ in of_maps]
    sides = [None if side is None else (side, side) for _, side in of_maps]
    assert [stage.map_size for stage in found][: len(of_maps)] == sides
    assert (found[-1].channels, found[-1].map_size) == (1000, None)


@pytest.mark.parametrize(
    ("name", "options", "names", "attention"),
    [
        (
            "botnet50",
            {"bam": "stages"},
            ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
            [{}, {"BAM": 1}, {"BAM": 1}, {"BAM": 1}, {"MHSA": 3}, {}],
        ),
        ("squeezenet1_1_bam", {}, None, None),
        (
            "cifar_resnet20_bam",
            {"bam_gate": False},
            ["stem", "layer1", "layer2", "layer3", "head"],
            [{}, {"ungated": 1}, {"ungated": 1}, {}, {}],
        ),
        ("vit_base_patch16_384", {"depth": 2}, None, None),
        ("maskrcnn_botnet50", {}, None, None),
    ],
)
def test_stages_are_the_whole_network(name: str, options: Any, names: Any, attention: Any) -> None:
    with torch.device("meta"):
        model = attneck.create_model(name, **options)
    size = model.origin.image_size
    found = stages(model, size)
    counts = count(model, size)
    assert sum(stage.params for stage in found) == counts.params
    assert sum(stage.madds for stage in found) == counts.madds
    if names is not None:
        assert [stage.name for stage in found] == names
        assert [stage.attention for stage in found] == attention
    if name == "botnet50":
        assert [stage.map_size for stage in found[1:5]] == [(56, 56), (28, 28), (14, 14), (7, 7)]
        assert [stage.channels for stage in found] == [64, 256, 512, 1024, 2048, 1000]
        assert [stage.blocks for stage in found[1:5]] == [3, 4, 6, 3]
    assert len({stage.name for stage in found}) == len(found) >= 4
    again = Drawn("runs/$a\\gain$\udcff", size, found, frozenset({found[1].name}))
    figure = neck([Drawn(name, size, found), again])
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)
    for one, a in boxes:
        assert figure.bbox.x0 <= a.x0 < a.x1 <= figure.bbox.x1, one
