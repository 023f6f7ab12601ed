"""Other people's attention becomes ours: the same function, at once and while it trains, then on any image.

The oracle is the module that was there before.
"""

import copy
import json
import pickle
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
import torchvision
from bottleneck_transformer_pytorch import BottleStack
from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention
from safetensors.torch import save_file
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from attneck import layers
from attneck.cli import main
from attneck.export import export
from attneck.layers import MHSA2d, fold
from attneck.models.renamed import renamed
from attneck.models.weights import StaysRandomWarning, load_matching
from attneck.runs.run import Run
from attneck.surgery import Adoption, adopt, attend

TIMM = (
    "botnet26t_256",
    "botnet50ts_256",
    "eca_botnext26ts_256",
    "halo2botnet50ts_256",
    "lamhalobotnet50ts_256",
    "sebotnet33ts_256",
)
"""All of timm's networks that have a BottleneckAttn."""


class Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class ChannelGate(nn.Module):
    """BAM's channel branch as its authors published it, written anew."""

    def __init__(self, channels: int, reduction: int = 16, hidden_layers: int = 1) -> None:
        super().__init__()
        widths = [channels, *[channels // reduction] * hidden_layers]
        self.gate_c = nn.Sequential()
        self.gate_c.add_module("flatten", Flatten())
        for i, (before, after) in enumerate(pairwise(widths)):
            self.gate_c.add_module(f"gate_c_fc_{i}", nn.Linear(before, after))
            self.gate_c.add_module(f"gate_c_bn_{i + 1}", nn.BatchNorm1d(after))
            self.gate_c.add_module(f"gate_c_relu_{i + 1}", nn.ReLU())
        self.gate_c.add_module("gate_c_fc_final", nn.Linear(widths[-1], channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, x.shape[2], stride=x.shape[2])
        return self.gate_c(mean)[:, :, None, None].expand_as(x)


class SpatialGate(nn.Module):
    def __init__(self, channels: int, reduction: int = 16, dilated: int = 2, dilation: int = 4) -> None:
        super().__init__()
        hidden = channels // reduction
        self.gate_s = nn.Sequential()
        self.gate_s.add_module("gate_s_conv_reduce0", nn.Conv2d(channels, hidden, 1))
        self.gate_s.add_module("gate_s_bn_reduce0", nn.BatchNorm2d(hidden))
        self.gate_s.add_module("gate_s_relu_reduce0", nn.ReLU())
        for i in range(dilated):
            conv = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            self.gate_s.add_module(f"gate_s_conv_di_{i}", conv)
            self.gate_s.add_module(f"gate_s_bn_di_{i}", nn.BatchNorm2d(hidden))
            self.gate_s.add_module(f"gate_s_relu_di_{i}", nn.ReLU())
        self.gate_s.add_module("gate_s_conv_final", nn.Conv2d(hidden, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_s(x).expand_as(x)


class BAM(nn.Module):
    def __init__(self, channels: int, channel: Any = None, spatial: Any = None) -> None:
        super().__init__()
        self.channel_att = ChannelGate(channels, **(channel or {}))
        self.spatial_att = SpatialGate(channels, **(spatial or {}))

    def forward(self, x: Tensor) -> Tensor:
        return (1 + torch.sigmoid(self.channel_att(x) * self.spatial_att(x))) * x


def lively(model: nn.Module) -> nn.Module:
    """As if trained: position tables that matter, BatchNorms with statistics and scales of their own."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        with torch.no_grad():
            if "pos_emb" in name:
                tensor.normal_(std=0.5)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or name.endswith("bias"):
                tensor.normal_(std=0.1)
    return model


def pair(model: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, Adoption]:
    """The original, and an adopted copy of it."""
    model = lively(model.to(dtype))
    ours, report = adopt(copy.deepcopy(model))
    assert not any(isinstance(m, BottleneckAttn | Attention | BAM) for m in ours.modules())
    return model, ours, report


def same(theirs: nn.Module, ours: nn.Module, report: Adoption, x: Tensor, tolerance: float) -> None:
    """Results, gradients, and what BatchNorms saw, in eval and in training mode."""
    for training in (False, True):
        results, into = [], []
        for model in (theirs, ours):
            model.train(training).zero_grad()
            torch.manual_seed(1)
            given = x.clone().requires_grad_()
            out = model(given)
            (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view_as(out)).sum().backward()
            results.append(out.detach())
            into.append(given.grad)
        close(results[1], results[0], tolerance)
        close(into[1], into[0], 10 * tolerance)
        gradients = {name: p.grad for name, p in theirs.named_parameters()}
        # Many are zero but for rounding: the biases before a BatchNorm.
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        # Ours are theirs times a factor, so their gradients are divided by it: Form.of takes it twice here.
        forms = {f"{layer}.{name}": form for layer, form in report.forms.items() for name in form.names}
        for name, gradient in gradients.items():
            if name in forms and "qkv" not in name:
                gradients[name] = gradient / forms[name].factor ** 2
        wanted = report.converted(gradients)
        assert wanted.keys() == dict(ours.named_parameters()).keys()
        for name, parameter in ours.named_parameters():
            close(parameter.grad, wanted[name], 10 * tolerance, largest)
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    for name, buffer in ours.named_buffers():
        close(buffer, theirs.get_buffer(name), tolerance)


def close(got: Tensor, want: Tensor, tolerance: float, scale: float = 0.0) -> None:
    """Equal, but for this share of `scale` or, where that is less, of the largest value."""
    assert got.shape == want.shape
    assert float((got - want).detach().abs().max()) <= tolerance * max(
        float(want.detach().abs().max()), scale
    )


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{"width_factor": 0.25, "num_classes": 5, **options})


@pytest.mark.parametrize("name", TIMM)
def test_timms_networks_stay_what_they_are(name: str) -> None:
    halo = "halo" in name  # its other attention wants maps of 8
    height, width = (128, 128) if halo else (64, 96)
    theirs, ours, report = pair(small(name, img_size=(height, width)))
    state, now = theirs.state_dict(), ours.state_dict()
    assert all(torch.equal(state[name], now[name]) for name in report.kept)
    x = torch.randn(2 if halo else 3, 3, height, width, dtype=torch.float64)
    same(theirs, ours, report, x, 1e-9)
    attention = [m for m in theirs.modules() if isinstance(m, BottleneckAttn)]
    assert len(report.changes) == len(attention) == sum(isinstance(m, MHSA2d) for m in ours.modules())
    assert set(report.kept) | set(report.gone) == set(state)
    assert set(report.kept) | set(report.new) == set(now)
    with torch.no_grad():
        assert ours.eval()(x if halo else x[:, :, :47, :61]).shape == (len(x), 5)


@pytest.mark.parametrize("name", ["botnet26t_256", "eca_botnext26ts_256"])
def test_in_single_precision_at_the_published_size(name: str) -> None:
    theirs, ours, _ = pair(timm.create_model(name), torch.float32)
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        close(ours.eval()(x), theirs.eval()(x), 1e-5)
        assert ours(torch.randn(1, 3, 180, 331)).shape == (1, 1000)


@pytest.mark.parametrize("size", [(6, 4), (5, 8), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"qkv_bias": True}, {"dim_head": 3, "qkv_bias": True}, {"qk_ratio": 0.5, "scale_pos_embed": True}],
)
def test_every_form_of_timms_layer(size: Any, stride: int, options: Any) -> None:
    torch.manual_seed(0)
    layer = BottleneckAttn(32, feat_size=size, stride=stride, num_heads=2, **options)
    theirs, ours, report = pair(nn.Sequential(nn.Conv2d(32, 32, 1), layer))
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    same(theirs, ours, report, x, 1e-12)
    assert report.changes[0].map_size == size
    # A pool that drops an odd side's last row stays; else the layer's own takes less memory and all sizes.
    assert isinstance(ours[1], MHSA2d) == (stride == 1 or size == (6, 4))
    assert ours(torch.randn(2, 32, 9, 7, dtype=torch.float64)).shape[2:] in ((9, 7), (5, 4), (4, 3))
    close(fold(ours.eval())(x), ours(x), 1e-12)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("size", [(6, 4), (3, 5)])
def test_the_other_packages_attention(relative: bool, size: Any) -> None:
    torch.manual_seed(0)
    layer = Attention(dim=24, fmap_size=size, heads=3, dim_head=8, rel_pos_emb=relative)
    theirs, ours, report = pair(nn.Sequential(layer))
    assert ours[0].position == ("relative" if relative else "absolute")
    assert ours[0].qkv.weight.shape == (72, 24, 1, 1)
    same(theirs, ours, report, torch.randn(2, 24, *size, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("downsample", [True, False])
def test_its_stack_takes_any_size(relative: bool, downsample: bool) -> None:
    torch.manual_seed(0)
    stack = BottleStack(
        dim=16, fmap_size=(8, 12), dim_out=64, heads=2, dim_head=8, num_layers=2, downsample=downsample,
        rel_pos_emb=relative,
    )  # fmt: skip
    theirs, ours, report = pair(stack)  # the very model
    x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
    same(theirs, ours, report, x, 1e-10)
    side = 2 if downsample else 1
    for H, W in ((7, 9), (16, 5)):
        assert ours(torch.randn(2, 16, H, W).double()).shape == (2, 64, -(-H // side), -(-W // side))
    assert report.network == "BottleStack"
    assert pickle.loads(pickle.dumps(ours))(x).shape == (2, 64, 8 // side, 12 // side)


@pytest.mark.parametrize(
    ("channel", "spatial"),
    [({}, {}), ({"hidden_layers": 2, "reduction": 4}, {"dilated": 3, "dilation": 2, "reduction": 8})],
)
def test_the_authors_bam(channel: Any, spatial: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 48, 3), nn.BatchNorm2d(48), BAM(48, channel, spatial), nn.ReLU())
    net[2].spatial_att.gate_s[1].momentum = 0.3
    theirs, ours, report = pair(net)
    x = torch.randn(4, 3, 15, 15, dtype=torch.float64)
    same(theirs, ours, report, x, 1e-11)
    assert isinstance(ours[2], layers.BAM)
    assert len(report.kept) == len(theirs.state_dict()) == len(ours.state_dict())
    assert (report.new, report.gone) == ((), ())
    assert ours.eval()(torch.randn(2, 3, 9, 31).double()).shape == (2, 48, 7, 29)
    close(fold(ours)(x), theirs.eval()(x), 1e-11)


def test_a_layers_own_mode_and_what_is_frozen_stay() -> None:
    net = nn.Sequential(BAM(32), BottleneckAttn(32, feat_size=(4, 4)))
    net[0].spatial_att.gate_s.gate_s_bn_di_0.eval()
    net[1].pos_embed.height_rel.requires_grad_(False)
    before = dict(net.named_parameters())
    torch.manual_seed(3)
    adopt(net)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1)), "random numbers were drawn"
    modes = {name: m.training for name, m in net.named_modules()}
    assert [name for name, mode in modes.items() if not mode] == ["0.spatial_att.gate_s.gate_s_bn_di_0"]
    after = dict(net.named_parameters())
    assert [name for name, p in after.items() if not p.requires_grad] == ["1.rel_h"]
    assert all(after[name] is before[name] for name in after if name in before)
    assert "1.qkv.weight" in before


def test_a_model_in_eval_mode_is_in_eval_mode_throughout() -> None:
    odd = BottleneckAttn(32, feat_size=(5, 5), stride=2)
    narrow = BottleneckAttn(32, feat_size=(5, 5), dim_head=4)
    net = nn.Sequential(BAM(32), odd, narrow, Attention(dim=32, fmap_size=5, dim_head=8)).eval()
    assert not any(module.training for module in adopt(net).model.modules())


def test_what_is_filled_up_with_zeros_trains_as_theirs() -> None:
    torch.manual_seed(0)
    layer = BottleneckAttn(16, feat_size=(4, 3), num_heads=2, dim_head=3, qkv_bias=True, scale_pos_embed=True)
    theirs, ours, report = pair(nn.Sequential(layer, nn.BatchNorm2d(16)))
    x = torch.randn(4, 16, 4, 3, dtype=torch.float64)
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(x).pow(3).mean().backward()
            optimizer.step()
    wanted = report.converted(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        close(tensor.double(), wanted[name].double(), 1e-9)
    optimizer = torch.optim.AdamW(ours.parameters())
    ours(x).pow(3).sum().backward()
    optimizer.step()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor == 0, wanted[name] == 0) or name.endswith("bias"), name


def test_it_is_done_once_and_all_else_is_left_alone() -> None:
    net = nn.Sequential(torchvision.ops.SqueezeExcitation(32, 8), BottleneckAttn(32, feat_size=(4, 4)))
    squeeze = net[0]
    model, report = adopt(net)
    assert model is net
    assert net[0] is squeeze
    assert report.new == ("1.rel_h", "1.rel_w")
    layer = net[1]
    again = adopt(net).report
    assert net[1] is layer
    assert (again.changes, again.new, again.gone) == ((), (), ())
    assert str(again) == "Sequential: its attention is attneck's already"
    assert "1: MHSA2d of 32 channels on 4×4 instead of timm's BottleneckAttn" in str(report)
    assert "parameters: 3,736 → 3,736 (+0)" in str(report)


def test_one_module_in_two_places_stays_one() -> None:
    layer = BottleneckAttn(32, feat_size=(4, 4))
    theirs, ours, report = pair(nn.Sequential(layer, nn.ReLU(), layer))
    assert ours[0] is ours[2]
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    close(ours(x), theirs(x), 1e-12)
    assert len(report.changes) == 2


class Otherwise(BottleneckAttn):
    """Somebody's change of it."""


class Added(BAM):
    def forward(self, x: Tensor) -> Tensor:
        return (1 + torch.sigmoid(self.channel_att(x) + self.spatial_att(x))) * x


Added.__name__ = "BAM"


def pruned() -> nn.Module:
    layer = BottleneckAttn(32, feat_size=(4, 4))
    prune.random_unstructured(layer.pos_embed, "height_rel", 0.5)
    return layer


def replaced(layer: Any, name: str, value: Any) -> nn.Module:
    setattr(layer, name, value)
    return layer


def hooked(layer: nn.Module, inside: str = "") -> nn.Module:
    layer.get_submodule(inside).register_forward_hook(lambda *_: None)
    return layer


REFUSED = {
    "'1', timm's BottleneckAttn, .*: its BottleneckAttn has hooks, and they": lambda: hooked(
        BottleneckAttn(32, feat_size=(4, 4))
    ),
    "its PosEmbedRel has hooks": lambda: hooked(BottleneckAttn(32, feat_size=(4, 4)), "pos_embed"),
    "its AvgPool2d has hooks": lambda: hooked(BottleneckAttn(32, feat_size=(4, 4), stride=2), "pool"),
    "its AvgPool2d has hooks, and they would be lost": lambda: hooked(
        BottleStack(dim=32, fmap_size=8, dim_out=64, num_layers=1, heads=2, dim_head=8), "net.0.net.4"
    ),
    "its SpatialGate has hooks": lambda: hooked(BAM(32), "spatial_att"),
    "'1', timm's BottleneckAttn, cannot be adopted: it makes 32 channels of 16": lambda: BottleneckAttn(
        16, 32, feat_size=(4, 4)
    ),
    "'1', timm's BottleneckAttn, .* queries are 16 wide and its values 8": lambda: BottleneckAttn(
        32, feat_size=(4, 4), dim_head=16
    ),
    "its Otherwise is not timm's BottleneckAttn itself": lambda: Otherwise(32, feat_size=(4, 4)),
    "something computes one of its tensors": pruned,
    "its projection is a Identity of torch.nn.modules.linear, wanted torch's Conv2d": lambda: replaced(
        BottleneckAttn(32, feat_size=(4, 4)), "qkv", nn.Identity()
    ),
    "its projection, a ParametrizedConv2d, has to be filled up": lambda: replaced(
        BottleneckAttn(32, feat_size=(4, 4), dim_head=4), "qkv",
        nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 64, 1, bias=False)),
    ),
    "'1', bottleneck-transformer-pytorch's Attention, .*: it makes 512 channels of 16": lambda: Attention(
        dim=16, fmap_size=4
    ),
    "its Attention and Identity are not the package's own": lambda: replaced(
        Attention(dim=16, fmap_size=4, dim_head=4), "pos_emb", nn.Identity()
    ),
    "'1', the BAM of its authors, cannot be adopted: it computes something else": lambda: Added(32),
    "its branches do not begin with a linear layer": lambda: replaced(
        BAM(32), "channel_att", nn.ModuleDict({"gate_c": nn.Sequential()})
    ),
    "it does not run on maps of 9×9": lambda: replaced(BAM(32), "spatial_att", nn.ModuleDict(
        {"gate_s": nn.Sequential(nn.Conv2d(32, 2, 1))}
    )),
}  # fmt: skip


@pytest.mark.parametrize("says", REFUSED)
def test_what_cannot_be_exact_is_refused_and_nothing_is_changed(says: str) -> None:
    net = nn.Sequential(BottleneckAttn(32, feat_size=(4, 4)), REFUSED[says]())
    before = list(net.named_modules())
    with pytest.raises(ValueError, match=says) as refused:
        adopt(net)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert list(net.named_modules()) == before


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: torchvision.models.resnet18(), "no attention to adopt in this ResNet: looked for timm's"),
        (lambda: BottleneckAttn(32, feat_size=(4, 4)), r"the model itself is timm's .*torch.nn.Sequential"),
        (lambda: nn.DataParallel(nn.Conv2d(1, 1, 1)), "wrapped in DataParallel; give the model itself"),
        (lambda: "botnet26t_256", "wanted a torch.nn.Module, such as"),
    ],
)
def test_nothing_to_adopt_is_said(model: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        adopt(model())
    assert len(str(refused.value)) < 300


def test_networks_of_ours_have_nothing_to_adopt() -> None:
    net = timm.create_model("resnet18")
    attend(net, image_size=64)
    assert adopt(net).report.changes == ()


def all_kinds() -> nn.Module:
    """One of each, small enough to export often."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, stride=4),
        BottleneckAttn(32, feat_size=(16, 16), dim_head=4),
        BottleneckAttn(32, feat_size=(16, 16), stride=2, qkv_bias=True),
        BAM(32),
        Attention(dim=32, fmap_size=8, dim_head=8),
        BottleStack(
            dim=32, fmap_size=8, dim_out=32, proj_factor=1, num_layers=1, dim_head=8, rel_pos_emb=True
        ),
        nn.AdaptiveAvgPool2d(1),
    )


def test_it_takes_any_size_compiles_and_copies() -> None:
    net = adopt(lively(all_kinds())).model.eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for size in ((64, 64), (75, 130)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            want = net(x)
            close(compiled(x), want, 1e-5)
            close(copy.deepcopy(net)(x), want, 0)
            close(pickle.loads(pickle.dumps(net))(x), want, 0)
    fresh = adopt(all_kinds()).model.eval()
    fresh.load_state_dict(net.state_dict())
    with torch.no_grad():
        close(fresh(x), want, 0)


def test_it_is_adopted_in_any_precision_and_without_storage() -> None:
    theirs = lively(all_kinds()).eval().bfloat16()
    ours = adopt(copy.deepcopy(theirs)).model
    x = torch.randn(2, 3, 64, 64).bfloat16()
    with torch.no_grad():
        assert ours(x).dtype == torch.bfloat16
        close(ours(x).float(), theirs.float()(x.float()), 0.05)
    with torch.device("meta"):
        on_meta = adopt(all_kinds()).model
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}
    assert {name: t.shape for name, t in on_meta.state_dict().items()} == {
        name: t.shape for name, t in ours.state_dict().items()
    }


@pytest.mark.slow
def test_it_leaves_as_onnx_for_any_size(tmp_path: Any) -> None:
    torch.manual_seed(0)
    layer = BottleneckAttn(32, feat_size=(16, 16), dim_head=4, stride=2, qkv_bias=True)
    net = adopt(lively(nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), layer))).model
    done = export(net, tmp_path / "net.onnx", image_size=64, dynamic=("batch", "size"))
    assert len(done.checks) == 3
    assert max(check.max_rel for check in done.checks) < 1e-4


def test_features_of_an_adopted_network() -> None:
    net = adopt(small("botnet26t_256", img_size=64, features_only=True)).model
    assert [f.shape[-1] for f in net(torch.randn(1, 3, 96, 96))] == [48, 24, 12, 6, 3]


@pytest.mark.parametrize("size", [64, 96])
def test_weights_of_the_original_fill_the_adopted_network(size: int) -> None:
    """A file of timm's has its names; tables of another size are resampled."""
    theirs = lively(small("eca_botnext26ts_256", img_size=size)).eval()
    ours, report = adopt(small("eca_botnext26ts_256", img_size=64))
    loaded = load_matching(ours, report.converted(theirs.state_dict()))
    assert (loaded.new, loaded.unused) == ([], [])
    x = torch.randn(2, 3, size, size)
    if size == 64:
        with torch.no_grad():
            close(ours.eval()(x), theirs(x), 1e-5)
    assert report.converted(ours.state_dict()).keys() == ours.state_dict().keys()
    wide = small("botnet26t_256", img_size=64).state_dict()
    assert "stages.3.0.self_attn.qkv.weight" in report.converted(wide)  # of another width: as it was


def test_weights_whose_attention_is_not_found_are_refused_or_said() -> None:
    theirs = lively(small("eca_botnext26ts_256", img_size=64)).eval()
    ours, report = adopt(small("eca_botnext26ts_256", img_size=64))
    prefixed = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    for given in (prefixed, {"state_dict": theirs.state_dict()}):
        with pytest.raises(ValueError, match=r"nothing of 'stages.*without a first part such as module"):
            report.converted(given)
    assert not report.is_in(prefixed)
    assert report.converted(renamed(prefixed, theirs)).keys() == ours.state_dict().keys()
    with pytest.warns(StaysRandomWarning, match=r"attention at stages.*report.converted\(weights\) gives"):
        loaded = load_matching(ours, prefixed)
    assert any(name.endswith("rel_h") for name in loaded.new)


def test_a_run_with_it_is_trained_resumed_scored_and_read_back(tmp_path: Any, capsys: Any) -> None:
    """From a file of the original's weights, by the command."""
    run, file = tmp_path / "run", tmp_path / "timm.safetensors"
    theirs = lively(small("eca_botnext26ts_256", num_classes=3))
    save_file(theirs.state_dict(), file)
    words = (
        f"train surgery --out {run} --model.name timm/eca_botnext26ts_256 --model.options width_factor 0.25 "
        f"--model.weights {file} --data.name shapes --data.root None --data.augment none "
        "--data.image-size 48 --data.train-size 32 --data.val-size 20 --batch 16 --epochs 1 "
        "--precision float32 --checkpoint-steps 1"
    ).split()
    assert main([*words, "--model.surgery", "adopt"]) == 0
    said = capsys.readouterr().err
    assert "stages.3.0.self_attn: MHSA2d of 128 channels on 16×16, stride 2 instead of timm's" in said
    assert "197 tensors taken; 2 new (head.fc" in said
    trained = Run(run).summary["weights"]
    (run / "checkpoints/step-00000002.pt").unlink()
    (run / "summary.json").unlink()
    assert main([*words, "--model.surgery", "adopt", "--resume"]) == 0
    assert Run(run).summary["weights"] == trained
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 20
    model = Run(run).model()
    assert sum(isinstance(module, MHSA2d) for module in model.modules()) == 3
    assert model(torch.zeros(1, 3, 70, 50)).shape == (1, len(Run(run).facts["classes"]))
    plain = [str(tmp_path / "no") if word == str(run) else word for word in words]
    assert main([*plain, "--model.surgery", "adopt", "--model.surgery-options", "heads", "4"]) == 2
    assert "adopt has no option 'heads' (there are none)" in capsys.readouterr().err
    none = ["timm/resnet18" if word.startswith("timm/") else word for word in plain]
    assert main([*none, "--model.surgery", "adopt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no").exists()
