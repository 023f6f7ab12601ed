"""A block of attention between the last two of a stage."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from attneck.layers import MHSA2d, NonLocal2d
from attneck.models import create_model
from attneck.surgery import attend, insert_attention_block, insert_bam

THIN: dict[str, Any] = {"layers": (1, 1, 2, 2), "channels": (16, 16, 16, 32), "num_classes": 5}


def lively(model: nn.Module) -> nn.Module:
    """BatchNorms with statistics and scales of a trained network: none is zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    basic = {"block": torchvision.models.resnet.BasicBlock, "layers": [1, 1, 2, 2]}
    return {
        "ReLU after the addition": ResNet(Bottleneck, **THIN),
        "SiLU after the addition": ResNet(Bottleneck, **THIN, act_layer=nn.SiLU),
        "torchvision's": torchvision.models.ResNet(**basic, num_classes=5),
        "pre-activation": timm.create_model("resnetv2_18", num_classes=5),
        "timm's RegNet": timm.create_model("regnetx_002", num_classes=5),
    }


@pytest.mark.parametrize("name", networks())
@pytest.mark.parametrize("kind", ["bot", "non_local"])
def test_a_trained_network_goes_on_as_it_was(name: str, kind: Any) -> None:
    model = lively(networks()[name]).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        heads = {"heads": 2} if kind == "bot" else {}
        report = insert_attention_block(model, kind, image_size=64, **heads).report
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert [key for key in after if key in before] == list(before)
    (change,) = report.changes
    assert change.kind == ("MHSA2d" if kind == "bot" else "NonLocal2d")
    assert change.map_size == (4, 4)
    assert report.new
    assert all(f".{kind}." in key for key in report.new)

    model.train()
    model(x).square().mean().backward()
    inserted = model.get_submodule(change.name.removesuffix(".conv2"))
    gammas = [m.weight for m in inserted.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert len(gammas) == 1
    assert gammas[0].grad is not None
    assert gammas[0].grad.any()


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("resnet50_bot_c4", "bot", False),
        ("resnet50_nl_c4", "non_local", False),
        ("resnet50_nl_c4", "non_local", True),
    ],
)
def test_it_makes_the_networks_of_table_8(name: str, kind: Any, value: bool) -> None:
    """And of A.5."""
    torch.manual_seed(0)
    published = create_model(
        name, widths=[16, 16, 16, 32], depths=[1, 1, 2, 2], num_classes=5, image_size=64, nl_value=value
    ).eval()
    for module in published.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model = insert_attention_block(ResNet(Bottleneck, **THIN), kind, value=value, image_size=64).model.eval()
    model.load_state_dict(published.state_dict())
    assert list(model.state_dict()) == list(published.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), published(x), rtol=0, atol=0)


def test_it_stands_before_the_last_block_not_before_what_follows_it() -> None:
    model = ResNet(Bottleneck, **THIN)
    insert_bam(model, reduction=4, image_size=64)
    insert_attention_block(model, image_size=64)
    assert list(dict(model.layer3.named_children())) == ["0", "bot", "1", "bam"]
    insert_attention_block(model, "non_local", "layer4", image_size=64)
    assert list(dict(model.layer4.named_children())) == ["0", "non_local", "1"]
    assert isinstance(model.layer4.non_local, NonLocal2d)
    layer = model.layer3.bot.conv2
    assert isinstance(layer, MHSA2d)
    assert (layer.channels, layer.map_size, layer.stride) == (16, (4, 4), 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "se"}, "unknown kind 'se'; choose one of bot, non_local"),
        ({"kind": "non_local", "heads": 2}, "would change nothing in a Non-Local block"),
        ({"value": True}, "value=True would change nothing in a BoT block, which has one"),
        ({"stage": "layer1"}, "before 'layer1.0': looked for a module that runs two residual blocks or more"),
        ({"stage": 4}, "stage=4: this ResNet has 4 stages"),
        ({"heads": 5}, "16 channels do not split into 5 heads"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    model = ResNet(Bottleneck, **THIN)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_attention_block(model, **arguments)
    assert list(model.state_dict()) == before


def test_a_stage_that_is_no_row_and_a_second_block_are_refused() -> None:
    with torch.device("meta"):
        dla = timm.create_model("dla34")
        model = ResNet(Bottleneck, **THIN)
    with pytest.raises(ValueError, match=r"before 'level5.tree2': looked for .* and 'level5' is none"):
        insert_attention_block(dla, stage=-1)
    insert_attention_block(model)
    with pytest.raises(ValueError, match="'layer3' has a 'bot' already; there is one to a stage"):
        insert_attention_block(model)


def test_channels_without_a_quarter_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 34, 1), nn.Sequential(Plain(34), Plain(34)))
    before = list(model.state_dict())
    with pytest.raises(
        ValueError, match=r"before '1.1': it has a quarter of .* inside, and 34 has none; cho"
    ):
        insert_attention_block(model, stage=-1, image_size=16)
    assert list(model.state_dict()) == before
    insert_attention_block(model, "non_local", stage=-1, image_size=16)


def test_the_default_device_is_not_where_new_layers_are_made() -> None:
    """A network on the CPU gets weights with values on the CPU."""
    model = ResNet(Bottleneck, (1, 1, 2, 2), channels=(16, 16, 16, 32), num_classes=5)
    with torch.device("meta"):
        insert_bam(model, reduction=4, image_size=64)
        attend(model, image_size=64)
        insert_attention_block(model, "non_local", stage=-1, image_size=64)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert model.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()


class Plain(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*[nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Reading(nn.Module):
    """Two blocks in a row, and a weight of the second that its forward asks for by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 4)
        self.stage = nn.Sequential(Bottleneck(64, 16), Bottleneck(64, 16))
        self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage(self.stem(x))
        return self.fc(x.mean((2, 3))) + self.stage[1].conv2.weight.mean()


@pytest.mark.parametrize("kind", ["bot", "non_local"])
def test_a_forward_that_fails_with_the_block_leaves_the_network_as_it_was(kind: Any) -> None:
    model = Reading().eval()
    x, before = torch.randn(1, 3, 64, 64), [name for name, _ in model.named_modules()]
    want = model(x)
    with pytest.raises(ValueError, match=r"not run with a block before 'stage.1' .*choose another"):
        insert_attention_block(model, stage=-1, kind=kind, image_size=64)
    assert [name for name, _ in model.named_modules()] == before
    assert torch.equal(model(x), want)
