"""BAM and SE in networks of others: placed as in the paper, without harm to what is there, or refused."""

import math
import pickle
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d, SqueezeExcite2d
from attneck.models import create_model
from attneck.surgery import attend, insert_attention_block, insert_bam, insert_se
from attneck.surgery.intermediates import LeftOutWarning
from attneck.surgery.trace import halvings

THIN: dict[str, Any] = {"layers": (1, 1, 2, 1), "channels": (16, 16, 16, 32), "num_classes": 5}
CATALOG: dict[str, Any] = {
    "widths": [16, 16, 16, 32],
    "depths": [1, 1, 2, 1],
    "num_classes": 5,
    "image_size": 64,
    "zero_init_last": False,  # else nothing inside a branch reaches the output
}


def thin(**options: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(Bottleneck, **{**THIN, **options})


def inserted(model: nn.Module, kind: type[nn.Module] = BAM) -> dict[str, int]:
    """Channels of each module of that kind, by name."""
    return {
        name: module.channels if isinstance(module, BAM) else module.fc1.in_channels  # type: ignore[union-attr]
        for name, module in model.named_modules()
        if isinstance(module, kind)
    }


def named_as(state: dict[str, Tensor], renamed: dict[str, str]) -> dict[str, Tensor]:
    """A state dict with parts of its names changed."""
    found = {}
    for name, tensor in state.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "wrn18_1_5",
        "mobilenet",
        "squeezenet1_1",
        "cifar_resnet50",
        "cifar_preresnet110",
        "cifar_wrn28_8",
        "cifar_resnext29_8x64d",
    ],
)
def test_bottlenecks_are_the_paper_s(name: str) -> None:
    """In the catalog's plain networks it finds by itself what the rows with BAM have by design."""
    size = 32 if name.startswith("cifar") else 224
    with torch.device("meta"):
        model, published = create_model(name), create_model(f"{name}_bam")
        report = insert_bam(model, start="paper", image_size=size).report
    assert list(inserted(model).values()) == list(inserted(published).values())
    assert report.after.params == sum(p.numel() for p in published.parameters())


@pytest.mark.parametrize("at", ["bottlenecks", "blocks"])
def test_bam_as_published_computes_what_the_catalog_s_networks_do(at: Any) -> None:
    published = create_model(
        "resnet50", bam="stages" if at == "bottlenecks" else "blocks", bam_reduction=4, **CATALOG
    )
    model = insert_bam(thin(), at, start="paper", reduction=4).model
    renamed = {f"layer{stage}.{depth}.": f"layer{stage}.bam." for stage, depth in ((1, 1), (2, 1), (3, 2))}
    if at == "blocks":
        renamed = {".se.": ".bn3_bam."}
    model.load_state_dict(named_as(published.state_dict(), renamed))
    x = torch.randn(4, 3, 64, 64)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), published.train(training)(x), rtol=0, atol=0)


def test_se_computes_what_the_catalog_s_networks_do() -> None:
    published = create_model("senet50", **CATALOG).eval()
    model = insert_se(thin(), start="paper", bias=False).model.eval()
    assert len(inserted(model, SqueezeExcite2d)) == 5
    model.load_state_dict(named_as(published.state_dict(), {".se.": ".bn3_se."}))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), published(x), rtol=0, atol=0)


@pytest.mark.parametrize("insert", [insert_bam, insert_se])
@pytest.mark.parametrize("at", ["bottlenecks", "blocks"])
def test_a_network_goes_on_as_it_was_and_then_learns(insert: Any, at: Any) -> None:
    model = thin(zero_init_last=False)
    x = torch.randn(4, 3, 64, 64)
    model.train()
    want = model(x)
    insert(model, at, reduction=4)
    assert torch.equal(model(x), want)

    model(x).square().mean().backward()
    kind = BAM if insert is insert_bam else SqueezeExcite2d
    modules = [module for module in model.modules() if isinstance(module, kind)]
    assert len(modules) == (3 if at == "bottlenecks" else 5)
    for module in modules:
        assert module.gain is not None
        assert module.gain.grad is not None
        assert module.gain.grad.any()
        assert not any(p.grad.any() for p in module.parameters() if p is not module.gain)  # type: ignore[union-attr]
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    model(x).square().mean().backward()
    for module in modules:
        weights = [p for p in module.parameters() if p.ndim > 1]
        assert all(p.grad is not None and p.grad.any() for p in weights)


def test_options_reach_each_module() -> None:
    model = insert_bam(
        thin(), start="paper", reduction=8, dilation=2, combine="max", branches="both", variant="paper"
    ).model
    for module in model.modules():
        if isinstance(module, BAM):
            assert (module.reduction, module.dilation, module.combine, module.gain) == (8, 2, "max", None)
    official = [m for m in insert_bam(thin(), variant="official").model.modules() if isinstance(m, BAM)]
    assert [module.variant for module in official] == ["official"] * 3
    assert all(
        m.spatial_att is None
        for m in insert_bam(thin(), branches="channel").model.modules()
        if isinstance(m, BAM)
    )
    se = insert_se(thin(), "bottlenecks", reduction=8, bias=False).model
    assert se.get_submodule("layer1.se.fc1").out_channels == 8
    assert se.get_submodule("layer1.se.fc1").bias is None


def test_both_may_stand_at_one_place_but_neither_twice() -> None:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050").eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        for at in ("bottlenecks", "blocks"):
            insert_bam(model, at, reduction=4)
            insert_se(model, at, reduction=4)
            for insert in (insert_bam, insert_se):
                state = list(model.state_dict())
                with pytest.raises(
                    ValueError, match=r"ends in a (BAM|SqueezeExcite2d) already; there is one to"
                ):
                    insert(model, at, reduction=4)
                assert list(model.state_dict()) == state
        assert torch.equal(model(x), want)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), want)
    assert len(inserted(model)) == len(inserted(model, SqueezeExcite2d)) > 4
    with pytest.raises(ValueError, match="ends in a BAM already"):
        insert_bam(create_model("cifar_resnet20_bam"), image_size=32)


def test_device_dtype_mode_and_frozen_weights() -> None:
    model = thin().to(torch.bfloat16).requires_grad_(False)
    model.layer2.eval()
    report = insert_bam(model, reduction=4).report
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [model.get_submodule(name).training for name in inserted(model)] == [True, False, True]
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= {*report.new}
    assert all(model.get_parameter(name).requires_grad for name in report.new if name.endswith("weight"))
    with torch.device("meta"):
        empty = ResNet(Bottleneck, **THIN)
    assert {p.device.type for p in insert_bam(empty).model.parameters()} == {"meta"}


def test_after_a_frozen_norm_it_trains_with_the_block() -> None:
    model = thin()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    insert_bam(model, "blocks", reduction=4)
    insert_bam(model, reduction=4)
    assert all(model.get_submodule(name).training for name in inserted(model))


class Named(nn.Module):
    """A stage whose result is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.conv(x)}


def test_a_result_that_is_no_map_and_no_list_is_not_handed_to_bam() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.stage = nn.Conv2d(3, 16, 4, stride=4), Named()
            self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.stage(self.stem(x))["map"])

    assert list(inserted(insert_bam(Net()).model)) == ["stage.conv.bam"]


class Pairs(nn.Module):
    """A stage that takes (something, map) and returns a pair of that kind, as U-Nets' encoders do."""

    def __init__(self, before: int, channels: int, stride: int, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(before, channels, 3, stride, 1), kind

    def forward(self, pair: Any) -> Any:
        x = self.conv(pair[1]).relu()
        if self.kind == "dictionary":
            return {**(pair[0] or {}), "mean": x.mean(), f"of {len(pair[0] or {})}": x.sum()}, x
        return {"list": [x], "none": None, "number": 0.5, "integers": x.argmax(1), "twice": x}[self.kind], x


class OfPairs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.stages = nn.Sequential(Pairs(16, 16, 1, kind), Pairs(16, 32, 2, kind), Pairs(32, 32, 2, kind))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages((None, self.stem(x)))[1].mean((2, 3))


@pytest.mark.parametrize("kind", ["dictionary", "list", "none", "number", "integers", "twice"])
def test_of_a_tuple_what_the_next_stage_takes_is_bam_s(kind: str) -> None:
    torch.manual_seed(0)
    model, x = OfPairs(kind), torch.randn(2, 3, 64, 64)
    report = insert_bam(model, start="paper", image_size=64).report
    assert [(change.name, change.channels) for change in report.changes] == [
        ("stages.0.bam.module", 16), ("stages.1.bam.module", 32),
    ]  # fmt: skip
    model(x).square().sum().backward()
    new = [parameter for name, parameter in model.named_parameters() if ".bam." in name]
    assert all(p.grad is not None and p.dtype == torch.float32 for p in new)


def test_the_same_map_twice_is_one_result_of_bam_twice() -> None:
    model = OfPairs("twice")
    insert_bam(model, start="paper", image_size=64)
    stage, given = model.eval().stages[0], (None, torch.randn(2, 16, 8, 8))
    skip, x = stage(given)
    assert skip is x
    for one in torch.compile(stage, backend="eager", fullgraph=True)(given):
        torch.testing.assert_close(one, x)


def test_a_network_that_does_not_run_with_it_is_as_it_was() -> None:
    class Asks(nn.Module):
        """Asks the stage's last module for what an attention module does not have."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 4, stride=4)
            self.first, self.second = Stage(16, 16, False), nn.Sequential(nn.Conv2d(16, 32, 3, padding=1))
            self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(self.stem(x)))
            return self.down(x) * self.second[-1].stride[0]

    model = Asks()
    before, kinds = repr(model), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="'BAM' object has no attribute 'stride'"):
        insert_bam(model, image_size=64)
    assert repr(model) == before
    assert [type(module) for module in model.modules()] == kinds
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 32, 4, 4)


def test_a_graph_of_fx_is_refused_as_its_copies_would_lose_it() -> None:
    model = thin()
    model.layer2 = torch.fx.symbolic_trace(model.layer2)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"'layer2' is a GraphModule of torch.fx, whose copies would lose"):
        insert_bam(model, reduction=4)
    assert list(model.state_dict()) == before


def test_grey_images_and_networks_without_a_configuration() -> None:
    model = insert_bam(thin(in_chans=1)).model
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    folded = timm.create_model("tresnet_m", num_classes=0)  # its first convolution sees 48 channels
    assert len(insert_bam(folded).report.changes) == 3


def test_gradient_checkpointing_runs_them_too() -> None:
    x, gradients = torch.randn(4, 3, 64, 64), []
    for checkpointing in ("none", "before", "after"):
        model = thin(zero_init_last=False)
        model.set_grad_checkpointing(checkpointing == "before")
        insert_bam(model, start="paper", reduction=4)
        model.set_grad_checkpointing(checkpointing != "none")
        model.train()(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys() == gradients[2].keys()
    assert len([name for name in gradients[0] if name.endswith("bam.channel_att.norm.weight")]) == 3
    for name, gradient in gradients[0].items():
        assert gradient is not None
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient)


def test_a_stage_that_checkpoints_takes_a_block() -> None:
    model = thin()
    model.set_grad_checkpointing()
    assert insert_attention_block(model, "bot", stage=-2).report.changes
    assert model.grad_checkpointing  # the copy alone was without


@pytest.mark.parametrize(
    "surgery", [insert_bam, insert_se, attend, partial(insert_attention_block, kind="bot")]
)
def test_in_inference_mode_layers_are_made_that_can_learn(surgery: Any) -> None:
    model = thin()
    with torch.inference_mode():
        surgery(model)
        assert torch.is_inference_mode_enabled()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_intermediate_features_are_after_it() -> None:
    for name in ("test_resnet", "test_efficientnet", "test_convnext"):
        model = timm.create_model(name).eval()
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            plain = model.forward_intermediates(x, intermediates_only=True)
            insert_bam(model, start="paper", reduction=4)
            taps = model.forward_intermediates(x, intermediates_only=True)
            coarse = [i for i, map in enumerate(plain) if map.shape[-1] <= 16]
            bams = [module for module in model.modules() if isinstance(module, BAM)]
            torch.testing.assert_close(taps[coarse[0]], bams[0](plain[coarse[0]]))
            assert not any(torch.equal(taps[i], plain[i]) for i in coarse)


class Own(nn.Module):
    """Somebody's network, that adds and pools by functions in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.branch = nn.Sequential(*[nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)])
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(self.branch(x) + x, 2)
        return self.head(self.conv2(x).mean(dim=(2, 3)))


def test_a_sum_that_is_no_module_s_has_no_place_but_its_branch_has() -> None:
    with pytest.raises(
        ValueError, match=r"the map that max_pool2d in the network makes smaller comes from no"
    ):
        insert_bam(Own(), image_size=32)
    assert list(inserted(insert_bam(Own(), "blocks", image_size=32).model)) == ["branch.bam"]


class Chain(nn.Module):
    """Stages that end in their down-sampling, and functions for activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.stage2 = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.conv2 = nn.Conv2d(48, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.conv1(x)), 2)
        return self.relu(self.conv2(self.stage2(self.stage1(x)))).mean(dim=(2, 3))


def test_after_what_is_called_once_and_before_the_pool() -> None:
    model = Chain()
    x = torch.randn(2, 3, 32, 32)
    want = model(x)
    report = insert_bam(model, image_size=32).report
    assert list(inserted(model).items()) == [("conv1.bam", 16), ("stage1.1.bam", 32), ("stage2.1.bam", 48)]
    assert [change.map_size[0] for change in report.changes] == [32, 16, 8]
    assert torch.equal(model(x), want)


class Stage(nn.Module):
    """One that is no Sequential and ends in its pool, a module's or a function's."""

    def __init__(self, before: int, channels: int, pool: bool) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return F.max_pool2d(x, 2) if self.pool is None else self.pool(x)


def test_a_stage_of_any_class_may_end_in_its_pool() -> None:
    model = nn.Sequential(
        *[Stage(3, 16, True), Stage(16, 16, True), Stage(16, 32, True), Stage(32, 48, False)],
        nn.Conv2d(48, 5, 1),
    )
    report = insert_bam(model, reduction=4).report
    assert [(change.name, change.map_size) for change in report.changes] == [
        ("2.relu.bam", (56, 56)), ("3.relu.bam", (28, 28)),
    ]  # fmt: skip


def test_weights_that_are_shared_get_no_module_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(self.pool(self.conv(x))))

    with pytest.raises(ValueError, match="looked for one that is called once and returns that map"):
        insert_bam(Twice(), reduction=1, image_size=32)


def test_a_forward_that_is_not_its_class_s_is_found_out() -> None:
    model = thin()
    stage = model.layer2
    stage.forward = lambda x: nn.Sequential(*list(stage)[:1])(x)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="nothing can be put after 'layer2', a Sequential"):
        insert_bam(model)
    assert list(model.state_dict()) == before
    assert type(stage) is nn.Sequential


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("test_vit", {}, "no bottleneck in this VisionTransformer: looked for .*; smaller maps are made by"),
        ("test_resnet", {"at": "stages"}, "unknown at 'stages'; choose one of bottlenecks, blocks"),
        ("test_resnet", {"start": "zero"}, "unknown start 'zero'; choose one of paper, identity"),
        ("test_resnet", {"reduction": 64}, "after 'layer1': 32 channels at reduction 64 leave"),
        ("test_resnet", {"image_size": 0}, "image_size=0: wanted .height, width., or one number"),
        ("test_resnet", {"image_size": 1}, "no bottleneck in this ResNet"),
        ("inception_v3", {"image_size": 16}, "does not run on an image of 16×16 on the meta device"),
    ],
)  # fmt: skip
def test_what_has_no_place_says_what_was_looked_for(model: str, arguments: Any, message: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(model)
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_bam(network, **arguments)
    assert list(network.state_dict()) == before


def test_wrapped_models_and_things_that_are_no_networks_are_refused() -> None:
    class Own(nn.DataParallel):
        """Somebody's own wrapper."""

    for wrapped in (nn.DataParallel(thin()), Own(thin()), torch.compile(thin())):
        with pytest.raises(ValueError, match=r"the model is wrapped in \w+; give the model itself"):
            insert_bam(wrapped)
    in_part = thin()
    in_part.layer2 = torch.compile(in_part.layer2)
    with pytest.raises(ValueError, match=r"its 'layer2' is wrapped in OptimizedModule; give the model"):
        insert_bam(in_part)
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        insert_bam(nn.ReLU())


@pytest.mark.parametrize("name", ["seresnet50", "legacy_seresnet18"])
def test_the_network_s_own_squeeze_and_excitation_is_enough(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    before = list(model.state_dict())
    with pytest.raises(
        ValueError, match=r"is a squeeze-and-excitation already, the network's own \w+; there"
    ):
        insert_se(model)
    assert list(model.state_dict()) == before


def test_basic_blocks_take_one_each() -> None:
    model = ResNet(BasicBlock, **THIN)
    assert list(inserted(insert_bam(model, "blocks").model)) == [
        "layer1.0.bn2_bam", "layer2.0.bn2_bam", "layer3.0.bn2_bam", "layer3.1.bn2_bam", "layer4.0.bn2_bam",
    ]  # fmt: skip


class Adapter(nn.Module):
    """LoRA of a convolution, as peft has it."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding
        made = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
        self.base_layer, self.dropout = conv, nn.Dropout(0.1)
        self.lora_A = nn.Conv2d(conv.in_channels, 2, bias=False, **made)
        self.lora_B = nn.Conv2d(2, conv.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)
        return y + self.lora_B(self.lora_A(self.dropout(x))) * 2.0


@pytest.mark.parametrize("adapted", ["downsample.0", "conv1", "conv3", ""])
def test_an_adapter_makes_no_block_and_its_convolution_is_one(adapted: str) -> None:
    """Beside the convolutions whose name ends so; of all of them last."""
    model, plain = thin(), thin()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and name.startswith("layer") and name.endswith(adapted):
            model.set_submodule(name, Adapter(Adapter(module) if adapted else module))
    for net in (model, plain):
        insert_bam(net, at="blocks", image_size=64)
    assert inserted(model) == inserted(plain) != {}
    if adapted:
        attend(model, image_size=64)
        assert isinstance(model.layer4[0].conv2, MHSA2d)
    else:
        with pytest.raises(ValueError, match="part of its map goes past the 3×3 convolution"):
            attend(model, image_size=64)


class OfPeft(Adapter):
    """As the package has it, which is known by its name."""


OfPeft.__module__ = "peft.tuners.lora.layer"


def test_nothing_is_put_after_what_merging_takes_away() -> None:
    """Where no norm follows a block's last convolution, that convolution's module has what comes after."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Parallel(), Parallel())
    model[2].c = OfPeft(model[2].c)
    with pytest.raises(ValueError, match=r"^'2\.c' is PEFT's, and merging.*or merge the adapters"):
        insert_bam(model, at="blocks", reduction=2, image_size=32)
    assert inserted(model) == {}
    with pytest.raises(ValueError, match="its 3×3 convolution has an adapter"):
        attend(model, image_size=32)
    model[2].c = Adapter(model[2].c.base_layer)  # of somebody else, who has no such merging
    insert_bam(model, at="blocks", reduction=2, image_size=32)
    assert [*inserted(model)] == ["1.c.bam", "2.c.bam"]


class Wrapper(nn.Module):
    """As PEFT's: merging gives what is inside."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def get_base_model(self) -> nn.Module:
        return self.inside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inside(x)
        return y


def test_what_was_done_is_kept_with_the_network_in_an_adapters_wrapper() -> None:
    theirs = type("PeftModel", (Wrapper,), {"__module__": "peft.peft_model"})(thin())
    own = Wrapper(thin())  # which has a method of that name for a reason of its own
    for model in (theirs, own):
        insert_bam(model, image_size=64)
        attend(model, image_size=64)
    for model in (theirs.inside, own):
        assert [done.name for done in model.surgeries] == ["insert_bam", "attend"]
    assert not hasattr(own.inside, "surgeries")


class Parallel(nn.Module):
    """A residual block whose branch adds two convolutions, neither of which is the other's adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c(torch.relu(self.a(x) + self.b(x)))


def test_parallel_convolutions_are_no_adapters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Parallel(), Parallel())
    insert_bam(model, at="blocks", reduction=2, image_size=32)
    assert [*inserted(model)] == ["1.c.bam", "2.c.bam"]


def test_sides_are_halved_up_or_down_and_both_alike() -> None:
    for side in range(16, 160):
        up = down = side
        for times in range(1, 7):
            up, down = math.ceil(up / 2), down // 2
            assert up == 1 or halvings((side, side), (up, up)) == times
            assert down < 3 or halvings((side, side), (down, down)) == times
    assert halvings((64, 128), (8, 16)) == 3
    assert halvings((11, 64), (2, 16)) == 2
    assert halvings((299, 299), (8, 8)) == 5  # windows without padding take a little more off
    assert halvings((64, 64), (128, 128)) == -1
    assert halvings((224, 224), (56, 28)) is None


@pytest.mark.parametrize("image_size", [16, 32, 33, 65, (33, 65), (32, 128), (65, 200), (33, 128)])
def test_small_narrow_and_odd_images_show_the_same_places(image_size: Any) -> None:
    for at, count in (("bottlenecks", 3), ("blocks", 8)):
        with torch.device("meta"):
            model = timm.create_model("resnet18")
        changes = insert_bam(model, at=at, image_size=image_size).report.changes  # type: ignore[arg-type]
        assert len(changes) == count
        if at == "bottlenecks":
            assert [change.name for change in changes] == ["layer1.bam", "layer2.bam", "layer3.bam"]


@pytest.mark.parametrize("at", ["bottlenecks", "blocks"])
def test_half_networks_with_norms_in_float32_get_half_modules(at: Any) -> None:
    model = timm.create_model("resnet10t", num_classes=3).half().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    x = torch.randn(1, 3, 64, 64).half()
    want = model(x)
    insert_bam(model, at=at)
    assert torch.equal(model(x), want)


def test_after_a_parametrised_convolution_nothing_can_stand() -> None:
    model = create_model("cifar_resnet20", order="pre", depths=[1, 1, 1], num_classes=4)
    torch.nn.utils.parametrizations.weight_norm(model.layer3[0].conv2)
    with pytest.raises(ValueError, match=r"'layer3\.0\.conv2' is parametrised.*remove_parametrizations"):
        insert_bam(model, at="blocks")


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("bottlenecks", r"of this XceptionAligned leaves out blocks\.0\.bam, blocks\.1\.bam, "),
        ("blocks", "gives maps of other sizes now, and forward does not"),
    ],
)
def test_a_second_way_that_leaves_out_what_is_new_is_told(at: Any, words: str) -> None:
    """timm's aligned Xceptions run the parts of a strided block one by one there, up to the last but one."""
    with torch.device("meta"):
        model = timm.create_model("xception41")
    with pytest.warns(LeftOutWarning, match=words):
        insert_bam(model, at)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "ghostnet_100", "regnety_002", "vgg11_bn"])
def test_a_second_way_that_runs_it_is_not(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    insert_bam(model)
    assert [each for each in recwarn if issubclass(each.category, LeftOutWarning)] == []


def test_a_second_way_that_fails_afterwards_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = thin()
    own = type(model).forward_intermediates

    def asks_for_the_stages_own_class(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert not any(isinstance(module, BAM) for module in self.modules())
        return own(self, *args, **kwargs)

    monkeypatch.setattr(ResNet, "forward_intermediates", asks_for_the_stages_own_class)
    with pytest.warns(LeftOutWarning, match="forward_intermediates of this ResNet fails now"):
        insert_bam(model)
