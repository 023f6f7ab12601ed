"""What surgery put after a norm stays when a library replaces the norm."""

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d, unfreeze_batch_norm_2d
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from attneck.layers import BAM, SqueezeExcite2d
from attneck.surgery import insert_bam, insert_se
from attneck.training.norms import synchronise_batchnorm


def frozen(module: nn.Module) -> nn.Module:
    """torchvision's FrozenBatchNorm2d instead of each BatchNorm2d, as detectors' scripts do it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = torchvision.ops.FrozenBatchNorm2d(child.num_features, child.eps)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            frozen(child)
    return module


def synchronised(model: nn.Module) -> nn.Module:
    """Ours, which changes the norms in place."""
    synchronise_batchnorm(model, torch.device("cpu"))
    return model


CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch's": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's": convert_sync_batchnorm,
    "timm's, frozen": freeze_batch_norm_2d,
    "timm's, frozen and back": lambda model: unfreeze_batch_norm_2d(freeze_batch_norm_2d(model)).eval(),
    "torchvision's, frozen": frozen,
    "ours, on the CPU": synchronised,
}


class Row(nn.Module):
    """A norm in the middle of a Sequential, on the map that a pool makes smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean(dim=(2, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "timm's resnet18": (lambda: timm.create_model("resnet18", num_classes=5), "blocks"),
    "torchvision's resnet18": (lambda: torchvision.models.resnet18(num_classes=5), "blocks"),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=5), "blocks"),
    "a norm in a row": (Row, "bottlenecks"),
}


def changed(name: str, insert: Any) -> nn.Module:
    """A network after surgery in which every norm and every gain has an effect."""
    return copy.deepcopy(_changed(name, insert))


@functools.cache
def _changed(name: str, insert: Any) -> nn.Module:
    torch.manual_seed(0)
    build, at = NETWORKS[name]
    model = insert(build(), at, reduction=4, image_size=64).model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, BAM | SqueezeExcite2d):
            assert module.gain is not None
            nn.init.uniform_(module.gain, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("insert", [insert_bam, insert_se])
def test_a_conversion_of_norms_changes_no_output(name: str, insert: Any, conversion: str) -> None:
    if (name, conversion) == ("efficientnet_b0", "torch's"):
        pytest.skip("torch's conversion drops the activation that timm's norms have, with or without surgery")
    if (name, conversion) == ("efficientnet_b0", "torchvision's, frozen"):
        pytest.skip("that norm has no activation either")
    model = changed(name, insert)
    x = torch.randn(2, 3, 64, 64)
    kept = [each for each in model.modules() if isinstance(each, BAM | SqueezeExcite2d)]
    with torch.no_grad():
        want = model(x)
        converted = CONVERSIONS[conversion](model)
        got = converted(x)
        for module in kept:
            module.gain.zero_()  # type: ignore[union-attr]
        without = converted(x)
    scale = float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * scale)
    assert (without - want).abs().max() > 1e-2 * scale  # the new modules are what is compared
    assert [each for each in converted.modules() if isinstance(each, BAM | SqueezeExcite2d)] == kept


@pytest.mark.parametrize("name", NETWORKS)
def test_the_norms_of_bam_are_converted_too(name: str) -> None:
    model = changed(name, insert_bam)
    norms = sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())
    model = convert_sync_batchnorm(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == norms
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())


def thin(insert: Any = insert_bam) -> Any:
    torch.manual_seed(0)
    model = ResNet(Bottleneck, (1, 1, 1, 1), channels=(16, 16, 16, 32), num_classes=5, zero_init_last=False)
    return insert(model, "blocks", start="paper", reduction=4).model.eval()


def test_the_norm_is_still_its_block_s_attribute() -> None:
    """To read, to change, to hook and to replace, under the name that it always had."""
    model, x = thin(), torch.randn(2, 3, 64, 64)
    block = model.layer1[0]
    norm = dict(model.named_modules())["layer1.0.bn3"]
    assert type(norm) is nn.BatchNorm2d
    assert isinstance(block.bn3, nn.BatchNorm2d)
    assert block.bn3 == norm == model.get_submodule("layer1.0.bn3")
    assert {norm: "name"}[block.bn3] == "name"
    assert repr(block.bn3) == repr(norm)
    assert block.bn3.weight is norm.weight is model.get_parameter("layer1.0.bn3.weight")
    block.bn3.eps = 0.5
    assert norm.eps == 0.5
    seen: list[Tensor] = []
    handle = block.bn3.register_forward_hook(lambda _, __, result: seen.append(result))
    given: list[Tensor] = []
    also = block.bn3_bam.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        model(x)
    assert seen[0] is given[0]
    handle.remove()
    also.remove()
    block.bn3 = nn.Identity()
    assert block.bn3 == dict(model.named_modules())["layer1.0.bn3"]
    calls = []
    block.bn3_bam.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(x)
    assert calls == [1]
    block.bn3 = None
    assert block.bn3 is None
    del block.bn3
    assert not hasattr(block, "bn3")


def test_other_ways_to_replace_a_norm_run_what_follows_once() -> None:
    """By a wrapper around it, past the attribute, or as a child of something else."""

    class Wrapper(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    model, x = thin(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        block = model.layer2[0]
        norm = dict(model.named_modules())["layer2.0.bn3"]
        block.bn3 = Wrapper(block.bn3)
        assert block.bn3.norm is norm
        assert torch.equal(model(x), want)
        block._modules["bn3"] = torchvision.ops.FrozenBatchNorm2d(64, norm.eps)
        block.bn3.load_state_dict(norm.state_dict())
        torch.testing.assert_close(model(x), want)
        model.layer1[0].set_submodule("bn3", copy.deepcopy(dict(model.layer1[0].named_children())["bn3"]))
        torch.testing.assert_close(model(x), want)
        row = nn.Sequential(model.layer1[0].bn3)
        assert row[0] is dict(model.named_modules())["layer1.0.bn3"]
        taps = create_feature_extractor(thin(insert_se), ["layer1.0.bn3", "fc"])(x)
        torch.testing.assert_close(taps["fc"], thin(insert_se)(x))


def test_copies_pickles_traces_and_graphs_have_it() -> None:
    model, x = thin(insert_se), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
        norm = dict(model.named_modules())["layer1.0.bn3"]
        block = model.layer1[0]
        alone = copy.deepcopy(block.bn3)
        assert alone != block.bn3
        y = torch.randn(2, 64, 8, 8)
        assert torch.equal(alone(y), block.bn3_se(norm(y)))
        for other in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.fx.symbolic_trace(model),
            torch.jit.trace(model, x),
            torch.compile(model, backend="eager", fullgraph=True),
            torch.export.export(model, (x,)).module(),
            torch.export.export(model, (x,), strict=True).module(),
        ):
            torch.testing.assert_close(other(x), want, rtol=1e-4, atol=1e-5)
        tensors = dict(model.state_dict())
        tensors["layer1.0.bn3_se.fc2.bias"] = tensors["layer1.0.bn3_se.fc2.bias"] + 5
        assert not torch.allclose(torch.func.functional_call(model, tensors, (x,)), want)


class ReadsItsNorm(nn.Module):
    """A residual block that asks its norm for its class, mode, weight [C] and options."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(self.conv1(x).relu()))
        if isinstance(self.norm, nn.BatchNorm2d) and self.norm.affine:
            y = y * 1.5 + self.norm.weight[:, None, None]
        return x + (y if self.norm.training else 2 * y)


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_block_reads_of_its_norm_what_it_reads_otherwise(training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), ReadsItsNorm())
    insert_bam(model, "blocks", start="paper", image_size=32)
    model.train(training)
    x = torch.randn(2, 3, 32, 32)
    want = copy.deepcopy(model)(x)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
    exported = torch.export.export(model.eval(), (x,), strict=True).module()
    torch.testing.assert_close(exported(x), model(x))


def test_a_norm_that_its_parent_does_not_run_is_refused() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            y = x
            for conv, norm in zip(self.convs, self.norms, strict=True):
                y = norm(conv(y))
            return x + y

    model = Listed()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"nothing can be put after 'norms.1', a BatchNorm2d: .*nn.Identity"):
        insert_se(model, reduction=1, image_size=32)
    assert list(model.state_dict()) == before
    assert type(model) is Listed
