"""What is drawn of a module: the operations that run, once each, and the maps between them."""

import itertools

import pytest
import timm
import torch
from torch import nn

from attneck import create_model, list_models
from attneck.explain.diagram import diagram
from attneck.explain.inside import Box, inside
from attneck.explain.stages import ATTENTION
from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.surgery.blocks import residual_blocks
from attneck.surgery.trace import trace


def alone(layer: nn.Module) -> list[Box]:
    return inside(nn.Sequential(nn.Conv2d(3, 32, kernel_size=1), layer), "1", (8, 8))


def names(boxes: list[Box]) -> list[str]:
    return [box.words[0] for box in boxes]


def test_a_bot_block_is_figure_1_and_12():
    boxes = inside(create_model("botnet50"), "layer4.0")
    assert [(box.words, box.shape, [at for at, _ in box.inputs], box.attention) for box in boxes] == [
        (["input"], "1024 × 14 × 14", [], ""),
        (["conv1: 1 × 1, 1024 → 512", "BatchNorm2d, ReLU"], "512 × 14 × 14", [0], ""),
        (["conv2: MHSA, 4 heads"], "512 × 14 × 14", [1], "MHSA"),
        (["mean of 2 × 2", "BatchNorm2d, ReLU"], "512 × 7 × 7", [2], ""),
        (["conv3: 1 × 1, 512 → 2048", "BatchNorm2d"], "2048 × 7 × 7", [3], ""),
        (["downsample.0: 1 × 1, 1024 → 2048, stride 2", "BatchNorm2d"], "2048 × 7 × 7", [0], ""),
        (["+", "ReLU"], "2048 × 7 × 7", [4, 5], ""),
    ]


@pytest.mark.parametrize(
    ("position", "content", "products"),
    [
        ("relative", True, ["q · r", "q · k", "weights · v"]),
        ("relative", False, ["q · r", "weights · v"]),
        ("absolute", True, ["k + r", "q · (k + r)", "weights · v"]),
        ("absolute", False, ["q · r", "weights · v"]),
        ("none", True, ["q · k", "weights · v"]),
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_self_attention_is_figure_4(position, content, products, stride):
    boxes = alone(MHSA2d(32, (8, 8), heads=4, position=position, content=content, stride=stride))
    assert [name for name in names(boxes) if "·" in name or "k + r" in name] == products
    assert sum("softmax" in " ".join(box.words) for box in boxes) == 1
    weights = next(box for box in boxes if "softmax" in " ".join(box.words))
    assert weights.shape == "4 × 64 × 64"
    assert (names(boxes)[-1] == "mean of 2 × 2") == (stride == 2)
    assert boxes[-1].shape == ("4 × 8 × 4 × 4" if stride == 2 else "4 × 64 × 8")
    tables = [at for at, box in enumerate(boxes) if box.words == ["r = R_h + R_w"]]
    sizes = {"relative": ["15 × 8 + 15 × 8"], "absolute": ["8 × 8 + 8 × 8"], "none": []}
    assert [boxes[at].shape for at in tables] == sizes[position]
    (user,) = [box for box in boxes if tables and (tables[0], "r") in box.inputs] or [None]
    assert user is None or user.words[0] == ("k + r" if position == "absolute" and content else "q · r")
    assert boxes[1].words[1] == ("W_Q, W_K, W_V" if content else "W_Q, W_V")


def test_bam_is_figure_2():
    boxes = alone(BAM(32))
    by = {box.words[0].split(":")[0]: at for at, box in enumerate(boxes)}
    assert [box.words[0] for box in boxes if "context" in box.words[0]] == [
        f"spatial_att.context_{number}: 3 × 3, 2 → 2, dilation 4" for number in (1, 2)
    ]
    assert boxes[by["+"]].words == ["+", "sigmoid"]
    assert [at for at, _ in boxes[by["+"]].inputs] == [by["channel_att.expand"], by["spatial_att.project"]]
    assert boxes[-1].words == ["x + x · weights"]
    assert [at for at, _ in boxes[-1].inputs] == [0, by["+"]]
    assert names(alone(BAM(32, combine="prod"))).count("×") == 1
    assert "maximum" in names(alone(BAM(32, combine="max")))


def test_the_others_of_the_papers():
    assert names(alone(SqueezeExcite2d(32))) == [
        *("input", "mean over the map", "fc1: 1 × 1, 32 → 2", "fc2: 1 × 1, 2 → 32", "×"),
    ]
    assert names(alone(NonLocal2d(32)))[-3:] == ["softmax(q · k / √d) v", "out: 1 × 1, 32 → 32", "+"]


OURS = list_models(["botnet26*", "resnet50*", "cifar_*", "mobile*"])
OTHERS = ("convnext_atto", "efficientnet_b0", "regnety_002", "resnet26d", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("name", [*OURS[::5], *(f"timm/{name}" for name in OTHERS)])
def test_each_block_of_a_network_is_drawn_whole(name):
    """Every convolution of its own once, arrows that run forward, and at the end the block's own map."""
    with torch.device("meta"):
        model = timm.create_model(name.removeprefix("timm/")) if "/" in name else create_model(name)
    seen = trace(model)
    try:
        blocks = residual_blocks(seen)
    except ValueError:
        pytest.skip("no residual blocks")
    for block in list({block.name: block for block in blocks}.values())[:: max(1, len(blocks) // 3)]:
        boxes = inside(model, block.name)
        assert boxes[-1].shape == " × ".join(map(str, seen.shapes[block.owner.outputs[0]][1:]))
        assert all(at < number for number, box in enumerate(boxes) for at, _ in box.inputs)
        taken = {at for box in boxes for at, _ in box.inputs}
        assert taken == set(range(len(boxes) - 1)), "each box but the last leads somewhere"
        own, kinds = [], tuple(ATTENTION)
        for path, module in model.get_submodule(block.name).named_modules():
            inner = any(path.startswith(f"{one}.") for one, kind in own if issubclass(kind, kinds))
            if isinstance(module, nn.Conv2d | nn.Linear) or (isinstance(module, kinds) and path):
                own += [(path, type(module))] * (not inner)
        drawn = [word.split(": ")[0] for word in names(boxes) if ": " in word]
        assert [path for path, _ in own if drawn.count(path) != 1] == []
        diagram([(name, boxes)])


def test_a_tensor_of_the_weights_is_no_input():
    """A view of weights, as large as a map, does not lead from the input to where it is used."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(32, 1, 1))
            self.conv = nn.Conv2d(32, 32, kernel_size=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.conv(x) + self.bias.expand_as(x)
            return result

    assert [(box.words[0], [at for at, _ in box.inputs]) for box in alone(Shifted())] == [
        *(("input", []), ("conv: 1 × 1, 32 → 32", [0]), ("shifted", [1])),
    ]


def test_each_map_that_goes_in_has_a_box():
    with torch.device("meta"):
        model = timm.create_model("densenet121")
    boxes = inside(model, "features.denseblock1.denselayer2", 224)
    assert [(box.words[0], box.shape) for box in boxes[:2]] == [
        ("input", "64 × 56 × 56"),
        ("input", "32 × 56 × 56"),
    ]
    assert (boxes[2].shape, [at for at, _ in boxes[2].inputs]) == ("96 × 56 × 56", [0, 1])
    diagram([("a layer", boxes)])
    with pytest.raises(ValueError, match="one operation"):
        inside(model, "features.denseblock1.denselayer2.conv1", 224)


def test_a_function_s_words_are_what_it_does():
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bias = nn.Conv2d(32, 32, kernel_size=1), nn.Parameter(torch.zeros(8, 64, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            x = x * x.mean(1, keepdim=True) * x.mean((2, 3), keepdim=True)
            q = x.unflatten(1, (8, 4)).flatten(3).transpose(2, 3)  # [B, 8, 64, 4]
            y = nn.functional.scaled_dot_product_attention(q, q, q)
            y = y + nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=self.bias)
            y = y.transpose(2, 3).reshape(x.shape)
            tokens = y.flatten(2).transpose(1, 2).mean(1)[:, :, None, None]
            y = nn.functional.adaptive_avg_pool2d(y, 1) + nn.functional.adaptive_avg_pool2d(y, (2, 4))
            return y + tokens

    said = names(alone(Functions()))
    assert [word for word in said if "mean" in word] == [
        *("mean over the channels", *3 * ["mean over the map"], "means of 2 × 4 parts"),
    ]
    assert [word for word in said if "softmax" in word] == [
        "softmax(q · k / √d) v",
        "softmax(q · k / √d + bias) v",
    ]


def test_what_cannot_be_drawn_is_told():
    model = create_model("botnet50")
    for name, says in {
        "layer4.9": "called 'layer4.9'; perhaps you meant 'layer4.2'; this network has conv1, bn1, act1",
        "layer4.0.conv1": "is one operation: choose the block that it is in, layer4.0",
        "conv1": "is one operation: choose a block of the network",
    }.items():
        with pytest.raises(ValueError, match=says):
            inside(model, name)
    with pytest.raises(
        ValueError, match=r"'layer3' has 94 boxes, over 60: choose a part, layer3.0, layer3.1"
    ):
        inside(create_model("resnet101"), "layer3")


def test_before_and_after_stand_beside_each_other():
    plain, bot = (inside(create_model(name), "layer4.1") for name in ("resnet50", "botnet50"))
    width = diagram([("one", plain)]).get_size_inches()[0]
    both = diagram([("one", plain), ("other", bot)], dark=True)
    assert both.get_size_inches()[0] > 1.8 * width
    words = [text.get_text() for text in both.axes[0].texts]
    assert "conv2: 3 × 3, 512 → 512" in words
    assert "conv2: MHSA, 4 heads" in words
    assert words.index("one") < words.index("other")
    assert list(itertools.chain(both.axes[0].patches))  # the boxes
