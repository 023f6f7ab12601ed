"""fold(model): the same results with fewer layers, in eval mode and nowhere else."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers import StdConv2d
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from attneck.layers import BAM, MHSA2d, fold
from attneck.models import create_model
from attneck.surgery import insert_bam


def lively(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with weights and statistics that differ from a fresh model's."""
    for module in model.modules():
        if isinstance(module, MHSA2d):
            nn.init.normal_(module.qkv.weight, std=module.channels**-0.5)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm):
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    nn.init.uniform_(parameter, -2, 2)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.2, 2)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def assert_folds(model: nn.Module, x: Tensor, removed: int) -> nn.Module:
    """The folded model, once its results, norms and idempotence, and the original, have been looked at."""
    before, want = copy.deepcopy(model.state_dict()), model(x)
    folded = fold(model)
    torch.testing.assert_close(folded(x), want, rtol=1e-10, atol=1e-10)
    assert norms(model) - norms(folded) == removed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)
    again = fold(folded)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in folded.state_dict().items())
    assert torch.equal(again(x), folded(x))
    return folded


@pytest.mark.parametrize(
    ("position", "content"), [("relative", True), ("relative", False), ("absolute", True), ("none", True)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_an_attention_takes_its_scale_and_the_norm_behind_it(
    position: str, content: bool, stride: int
) -> None:
    torch.manual_seed(0)
    layer = MHSA2d(8, (5, 3), heads=2, position=position, content=content, stride=stride)
    model = lively(nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU()))
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    folded = assert_folds(model, x, removed=1)
    assert folded[0].scale == 1
    torch.testing.assert_close(folded[0].attention_maps(x), layer.attention_maps(x))


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({}, 2),
        ({"combine": "prod"}, 2),
        ({"branches": "channel"}, 1),
        ({"branches": "spatial"}, 1),
        ({"variant": "official"}, 4),
    ],
)
def test_bam_s_branches_take_their_norms(options: dict[str, str], removed: int) -> None:
    torch.manual_seed(0)
    folded = assert_folds(lively(BAM(32, **options)), torch.randn(2, 32, 5, 6).double(), removed)
    assert norms(folded) == 0


@pytest.mark.parametrize(
    "name", ["cifar_resnet20_bot", "cifar_resnet20_bam", "botnet50", "mobilenet_bam", "squeezenet1_1_bam"]
)
def test_of_whole_models_no_norm_is_left(name: str) -> None:
    torch.manual_seed(0)
    model = lively(create_model(name, num_classes=4, image_size=32))
    assert_folds(model, torch.randn(2, 3, 32, 32).double(), norms(model))


def test_a_norm_before_its_convolution_stays() -> None:
    """DenseNet's stand after sums, or feed a convolution; those inside a dense layer are fed by one."""
    torch.manual_seed(0)
    model = lively(create_model("cifar_densenet100", num_classes=4, image_size=32))
    inside = sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules())
    assert_folds(
        model, torch.randn(2, 3, 32, 32).double(), removed=inside - 1
    )  # the first convolution has none


def test_a_network_with_bam_put_in() -> None:
    torch.manual_seed(0)
    model = lively(insert_bam(timm.create_model("resnet18", num_classes=4)).model)
    assert norms(assert_folds(model, torch.randn(2, 3, 64, 64).double(), norms(model))) == 0


def test_a_block_of_timm_s() -> None:
    torch.manual_seed(0)
    block = Bottleneck(16, 4)
    block.conv2 = MHSA2d(4, (4, 4), heads=2)
    folded = assert_folds(lively(block), torch.randn(2, 16, 4, 4).double(), removed=3)
    assert isinstance(folded.bn2, nn.Identity)


class Twice(nn.Module):
    """An attention whose result is seen without the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = MHSA2d(8, 4), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x)
        return y + self.norm(y)


class Reused(Twice):
    """One attention, with and without the norm behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(self.attention(x)))


class Read(nn.Module):
    """Its convolution's weights are used directly, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight)


class Untraceable(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.attention(x)) if x.sum() > -1e9 else x


class Looped(nn.Module):
    """It loops over a row, with a look at each result, in a way that no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.row:
            seen.append(layer(seen[-1]) if x.sum() > -1e9 else x)
        return torch.cat(seen)


class Activated(nn.BatchNorm2d):
    """A norm with an activation, as libraries derive them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_what_is_not_certain_stays_as_it_is() -> None:
    torch.manual_seed(0)
    shared, conv = MHSA2d(8, 4), nn.Conv2d(8, 8, 1)
    models = [
        Read(),
        nn.Sequential(StdConv2d(8, 8, 1), nn.BatchNorm2d(8)),  # it computes its weights
        nn.Sequential(nn.ConvTranspose2d(8, 8, 1), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(8)), nn.Sequential(conv, nn.BatchNorm2d(8))),
        Twice(),
        Reused(),
        Untraceable(),
        Looped(),
        nn.Sequential(MHSA2d(8, 4), Activated(8)),
        nn.Sequential(MHSA2d(8, 4), nn.ReLU(), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(8)), nn.Sequential(shared, nn.BatchNorm2d(8))),
        nn.Sequential(MHSA2d(8, 4), nn.BatchNorm2d(8, track_running_stats=False)),
    ]
    for model in models:
        assert_folds(lively(model), torch.randn(2, 8, 4, 4).double(), removed=0)


def test_norms_without_parameters_and_synchronised_ones_are_folded() -> None:
    torch.manual_seed(0)
    for norm in (nn.BatchNorm2d(8, affine=False), nn.SyncBatchNorm(8)):
        model = lively(nn.Sequential(MHSA2d(8, 4), norm))
        assert_folds(model, torch.randn(2, 8, 4, 4).double(), removed=1)


def test_weights_that_two_layers_share_are_folded_for_each() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MHSA2d(8, 4), nn.BatchNorm2d(8), MHSA2d(8, 4))
    model[2].qkv.weight = model[0].qkv.weight
    assert_folds(lively(model), torch.randn(2, 8, 4, 4).double(), removed=1)


def test_float32_is_exact_to_rounding_and_dtypes_stay() -> None:
    torch.manual_seed(0)
    model = lively(nn.Sequential(MHSA2d(32, 6), nn.BatchNorm2d(32), BAM(32))).float()
    x = torch.randn(2, 32, 6, 6)
    folded = fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    half = fold(model.bfloat16())
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("bias", [False, True])
def test_any_convolution_may_make_the_queries(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(MHSA2d(8, 4), nn.BatchNorm2d(8))
    model[0].qkv = nn.Conv2d(8, 24, 1, bias=bias)
    folded = assert_folds(lively(model), torch.randn(2, 8, 4, 4).double(), removed=1)
    assert folded[0].qkv.bias is not None


def test_layers_with_hooks_or_computed_weights_stay() -> None:
    """A hook would go with its norm, and a new weight would be overwritten at the next call."""
    torch.manual_seed(0)
    x = torch.randn(2, 32, 4, 4).double()
    for name in ("0", "0.qkv", "1", "2.channel_att.expand", "2.channel_att.norm"):
        model = lively(nn.Sequential(MHSA2d(32, 4), nn.BatchNorm2d(32), BAM(32)))
        model.get_submodule(name).register_forward_hook(lambda layer, inputs, output: output + 0.5)
        assert_folds(model.eval(), x, removed=2)
    for name in ("0.qkv", "2.channel_att.expand"):
        model = lively(nn.Sequential(MHSA2d(32, 4), nn.BatchNorm2d(32), BAM(32)))
        nn.utils.parametrizations.weight_norm(model.get_submodule(name))
        assert_folds(model.eval(), x, removed=2)


def test_a_norm_behind_weights_that_somebody_changes_stays() -> None:
    """A head that is knocked out: the weights that are left do not sum to one."""

    def without_first_head(part: nn.Module, given: object, weights: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(weights[:, :1]), weights[:, 1:]], dim=1)

    torch.manual_seed(0)
    model = lively(nn.Sequential(MHSA2d(8, 4, heads=2), nn.BatchNorm2d(8)))
    model[0].show_maps()
    assert not any(module.training for module in model.modules()), "its new parts are in the layer's own mode"
    model[0].attn_drop.register_forward_hook(without_first_head)
    assert_folds(model, torch.randn(2, 8, 4, 4).double(), removed=0)


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(MHSA2d(8, 4), nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match=r"the model is in training mode.*call \.eval\(\)"):
        fold(model)
    model.eval()[1].train()
    with pytest.raises(ValueError, match=r"'1' is in training mode"):
        fold(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_cannot_be_copied_is_refused() -> None:
    """torch's old weight_norm leaves a result of the last call as the weight, and torch copies no results."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(8, 8, 1)), nn.BatchNorm2d(8))
    model(torch.randn(2, 8, 4, 4))
    with pytest.raises(ValueError, match="no copy can be made of this Sequential"):
        fold(model.eval())


def shared(kind: str) -> nn.Module:
    """Two layers that share a part, and are not the same."""
    if kind in ("projection", "projection and norm"):
        first, second = MHSA2d(8, 4, heads=2), MHSA2d(8, 4, heads=2)
        second.qkv = first.qkv
        between = nn.BatchNorm2d(8) if kind == "projection and norm" else nn.Identity()
        return nn.Sequential(first, between, second)
    first, second = BAM(32), BAM(32)
    if kind == "conv of a branch":
        second.spatial_att.project = first.spatial_att.project
    else:
        second.channel_att = first.channel_att
    return nn.Sequential(first, second)


@pytest.mark.parametrize("kind", ["projection", "projection and norm", "conv of a branch", "branch"])
def test_what_two_layers_share_stays(kind: str) -> None:
    torch.manual_seed(0)
    model = lively(shared(kind))
    x = torch.randn(2, 32 if "branch" in kind else 8, 4, 4).double()
    torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-10, atol=1e-10)


class ReadsWeights(nn.Module):
    """A decoder that uses its encoder's weights, which lie two modules down."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.inner = nn.Sequential(self.encode)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(self.inner(x), self.inner[0][0].weight, padding=1)


class PlusOne(MHSA2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def replaced() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    own = model[0].forward
    model[0].forward = lambda x: own(x).relu()
    return model


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), (2, 16, 8)),  # a norm of another axis
        (lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(4)), (2, 4, 8)),
        (ReadsWeights, (2, 3, 8, 8)),
        (replaced, (2, 3, 4, 4)),
        (lambda: nn.Sequential(PlusOne(8, 4, heads=2), nn.BatchNorm2d(8)), (2, 8, 4, 4)),
    ],
    ids=["tokens", "other axis", "weights read", "forward replaced", "attention derived"],
)
def test_what_computes_more_than_its_layer_stays(model: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert_folds(lively(model()), torch.randn(shape, dtype=torch.float64), 0)


class Block(nn.Module):
    """Its norm has the convolution's result, and nobody else has."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1) if layer is None else layer, nn.BatchNorm2d(8)
        self.runs, self.seen = 0, {"maps": list[Tensor]()}

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class LeftOut(Block):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        h = self.conv(x)
        return self.norm(h.relu() if skip is None else h)


class Nothing(Block):
    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        h = self.conv(x)
        return self.norm(h.relu() if skip is None else h)


class Flagged(Block):
    def forward(self, x: Tensor, *, plain: bool = False) -> Tensor:
        return self.norm(self.conv(x) if plain is True else self.conv(x).relu())


class More(Block):
    def forward(self, x: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        h = self.conv(x)
        return self.norm(h if named.get("skip") is not None or len(others) == 1 else h.relu())


class OfTensors(Block):
    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.norm(h.relu() if isinstance(h, Tensor) else h)


class OfLists(Block):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        h = self.conv(x[0] if isinstance(x, list) else x)
        return self.norm(h.relu() if isinstance(x, list) else h)


class Calls(nn.Module):
    """Calls its block in some way."""

    def __init__(self, block: nn.Module, call: Any) -> None:
        super().__init__()
        self.block, self.call = block, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.block, x)


def calls_block(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)


def calls_with_nothing(block: nn.Module, x: Tensor) -> Tensor:
    return block(x, None)


def calls_with_a_list(block: nn.Module, x: Tensor) -> Tensor:
    return block([x])


def own_forward() -> nn.Module:
    block = Block()
    block.forward = lambda x: block.norm(block.conv(x).relu())
    return Calls(block, calls_block)


@pytest.mark.parametrize(
    "model",
    [
        LeftOut,
        lambda: LeftOut(MHSA2d(8, 4)),
        lambda: Calls(LeftOut(), calls_block),
        lambda: Calls(Nothing(), calls_with_nothing),
        Flagged,
        lambda: Calls(More(), calls_block),
        OfTensors,
        lambda: Calls(OfLists(), calls_with_a_list),
        own_forward,
    ],
    ids=["root", "attention", "left out", "None", "flag", "more", "tensor", "list", "own forward"],
)
def test_what_another_call_would_do_is_not_taken_for_what_is_done(model: Any) -> None:
    torch.manual_seed(0)
    model = lively(model())
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    folded = fold(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert norms(folded) == 1


class Either(Block):
    """What may be left out, and what x is, has nothing to do with the norm."""

    def forward(self, x: Tensor | list[Tensor], skip: Tensor | None = None) -> Tensor:
        x = torch.cat(x, 1) if isinstance(x, list) else x
        y = self.norm(self.conv(x))
        return y if skip is None else y + skip


def test_a_norm_that_every_call_feeds_alike_is_folded() -> None:
    torch.manual_seed(0)
    model = lively(Either())
    x, skip = torch.randn(2, 2, 8, 4, 4, dtype=torch.float64)
    folded = assert_folds(model, x, removed=1)
    torch.testing.assert_close(folded(x, skip), model(x, skip), rtol=1e-10, atol=1e-10)


class Keeps(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.conv(x)
        return self.norm(self.kept)


class KeepsInside(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.seen["maps"].append(self.conv(x))
        return self.norm(self.seen["maps"][-1])


@pytest.mark.parametrize("block", [Keeps, KeepsInside])
def test_what_a_block_keeps_of_a_pass_is_what_it_was(block: type[Block]) -> None:
    torch.manual_seed(0)
    model, x = lively(nn.Sequential(block())), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    folded = fold(model)
    assert vars(folded[0]).keys() == vars(model[0]).keys()
    assert (folded[0].runs, folded[0].seen) == (0, {"maps": []})
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    ours, theirs = (getattr(one[0], "kept", one[0].seen["maps"]) for one in (folded, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Counts(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.last = self.norm(self.conv(x))
        return self.last


def test_what_is_kept_behind_a_norm_does_not_keep_it() -> None:
    torch.manual_seed(0)
    folded = fold(lively(nn.Sequential(Counts())))
    assert norms(folded) == folded[0].runs == 0
    assert not hasattr(folded[0], "last")


class TapsBAM(BAM):
    """Another spatial branch, of what the last norm is given."""

    def spatial_attention(self, x: Tensor) -> Tensor:
        return self.spatial_att[:-1](x)


def test_the_branches_of_a_derived_bam_stay() -> None:
    torch.manual_seed(0)
    assert_folds(lively(TapsBAM(32)), torch.randn(2, 32, 4, 4, dtype=torch.float64), removed=0)


class Head(nn.Sequential):
    """A head of its own name, as torchvision's are, which is called whole."""


class Loops(nn.Module):
    """Cannot be traced; calls its head, and goes through its features one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        self.head = Head(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for layer in self.features:
            x = layer(x)
            seen.append(x)
        return self.head(sum(seen) if x.isfinite().all() else x)


def test_a_plain_sequence_that_may_be_gone_through_stays() -> None:
    torch.manual_seed(0)
    assert_folds(lively(Loops()), torch.randn(2, 3, 4, 4, dtype=torch.float64), 1)


class Pair(nn.Module):
    """A convolution and its norm, beside which something of them is read."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.read = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self.conv(x)), self.read(self)


READS = {
    "parameters": lambda pair: sum(one.square().sum() for one in pair.conv.parameters()),
    "statistics": lambda pair: pair.norm.running_var.mean(),
}


@pytest.mark.parametrize("read", READS)
def test_what_a_forward_reads_stays(read: str) -> None:
    model = lively(Pair(READS[read]))
    x = torch.randn(2, 8, 6, 6).double()
    for got, want in zip(fold(model)(x), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_a_norm_of_rows_is_none_of_channels() -> None:
    """A map without a batch: BatchNorm1d takes its rows for channels."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 6, 1), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.conv(x))
            return out

    assert_folds(lively(Rows()), torch.randn(8, 6, 6).double(), 0)
