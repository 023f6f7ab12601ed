"""BAM as the paper writes it: parameters, options, result and gradients against the oracle, small batches."""

import pytest
import torch
from torch import Tensor, nn

from attneck.attention import reference
from attneck.layers import BAM

CHOICES: list[dict[str, object]] = [
    {},
    {"combine": "prod"},
    {"combine": "max"},
    {"branches": "channel"},
    {"branches": "spatial"},
    {"variant": "official"},
    {"start": "identity"},
]


def by_the_oracle(module: BAM, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Channel logits, spatial logits and the refined map of variant "paper", from the module's parameters."""
    c = p = None

    def norm(layer: nn.Module) -> list[Tensor]:
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        learned = [layer.weight, layer.bias]
        return learned if layer.training else [*learned, layer.running_mean, layer.running_var]

    if module.channel_att is not None:
        w0, b0, w1, b1, *_ = module.channel_att.parameters()
        c = reference.bam_channel(x, w0, b0, w1, b1, *norm(module.channel_att[-1]))
    if module.spatial_att is not None:
        convolutions = [
            (layer.weight, layer.bias) for layer in module.spatial_att if isinstance(layer, nn.Conv2d)
        ]
        p = reference.bam_spatial(x, convolutions, module.dilation, *norm(module.spatial_att[-1]))
    return c, p, reference.gate(x, c, p, module.combine)


def lively(module: BAM) -> BAM:
    """BatchNorms with learned scales and with statistics that differ from a fresh layer's."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.05, 0.5)
    return module


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, True),
        ({}, False),
        ({"combine": "prod"}, True),
        ({"combine": "max"}, True),
        ({"branches": "channel"}, True),
        ({"branches": "spatial"}, True),
        ({"dilation": 1, "reduction": 4}, True),
        ({"dilation": 6, "reduction": 5}, False),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_result_and_gradients_are_the_oracle_s(
    options: dict[str, object], training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    module = lively(BAM(32, **options)).double().train(training)
    # Images that differ in their means: else the channel branch's BatchNorm divides by next to nothing.
    x = torch.randn(4, 32, 9, 7, dtype=torch.float64) + 3 * torch.randn(4, 32, 1, 1, dtype=torch.float64)
    x.requires_grad_()
    _, _, want = by_the_oracle(module, x)
    direction = torch.randn_like(want)
    wanted = [want, *torch.autograd.grad(want, [x, *module.parameters()], direction)]

    module, x = module.to(dtype), x.detach().to(dtype).requires_grad_()
    out = module(x)
    got = [out, *torch.autograd.grad(out, [x, *module.parameters()], direction.to(dtype))]
    # Some gradients cancel, that of a bias right before BatchNorm to zero; all share the largest one's scale.
    scale = max(float(gradient.abs().max()) for gradient in wanted[1:])
    scales = [float(want.detach().abs().max()), *[scale] * len(wanted[1:])]
    for one, other, scale in zip(got, wanted, scales, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)


def test_the_parts_are_the_oracle_s_and_make_up_the_whole() -> None:
    torch.manual_seed(0)
    module = lively(BAM(32)).double().eval()
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64)
    c, p, _ = by_the_oracle(module, x)
    torch.testing.assert_close(module.channel_attention(x), c)
    torch.testing.assert_close(module.spatial_attention(x), p)
    attention = module.attention(x)
    assert attention.shape == x.shape
    assert c is not None
    assert p is not None
    torch.testing.assert_close(attention, (c[:, :, None, None] + p).sigmoid())
    torch.testing.assert_close(module(x), x + x * attention)


def test_the_identity_holds_to_float16_s_largest_and_gains_do_what_they_do_elsewhere() -> None:
    torch.manual_seed(0)
    module = lively(BAM(32, start="identity")).eval()
    x = torch.randn(2, 32, 5, 7)
    wanted = module.double()(x.double())
    torch.testing.assert_close(module.half()(x.half()).double(), wanted, rtol=5e-3, atol=5e-3)
    nn.init.zeros_(module.gain)
    large = torch.full((1, 32, 4, 4), 4e4).half()
    assert torch.equal(module(large), large)


def test_a_bam_that_starts_as_the_identity_learns() -> None:
    """Its gain has a gradient at once, other weights one after a step; gains of 1 are the paper's form."""
    torch.manual_seed(0)
    module, paper = lively(BAM(32, start="identity")), BAM(32)
    x = torch.randn(4, 32, 5, 6).to(memory_format=torch.channels_last)
    out = module(x)
    assert torch.equal(out, x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.square().sum().backward()
    assert module.gain is not None
    assert module.gain.grad is not None
    assert module.gain.grad.all()
    assert not any(p.grad.any() for p in module.parameters() if p.grad is not None and p is not module.gain)

    with torch.no_grad():
        module.gain.fill_(1e-3)
    module.zero_grad()
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())

    with torch.no_grad():
        module.gain.fill_(1)
    assert {*module.state_dict()} - {*paper.state_dict()} == {"gain"}
    paper.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if name != "gain"})
    torch.testing.assert_close(module.eval()(x), paper.eval()(x))


@pytest.mark.parametrize("branches", ["channel", "spatial"])
def test_one_branch_alone_has_no_other(branches: str) -> None:
    module, x = BAM(32, branches=branches).eval(), torch.randn(2, 32, 3, 5)
    attention = module.attention(x)
    assert attention.shape == x.shape
    torch.testing.assert_close(module(x), x + x * attention)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in BAM(32).parameters())
    missing = module.spatial_attention if branches == "channel" else module.channel_attention
    with pytest.raises(ValueError, match=f"this BAM has branches='{branches}'; build it with 'both'"):
        missing(x)


def test_parameters_are_the_paper_s_equations_counted() -> None:
    def count(channels: int, **options: int) -> int:
        return sum(p.numel() for p in BAM(channels, **options).parameters())

    assert count(256) == 17_747
    assert sum(count(channels) for channels in (256, 512, 1024)) == 360_761
    assert count(256, dilation=1) == count(256)
    m, C = 32, 256  # reduction 8
    channel, spatial = 2 * m * C + m + C + 2 * C, C * m + m + 2 * (9 * m * m + m) + m + 1 + 2
    assert count(256, reduction=8) == channel + spatial


def test_dilation_widens_what_a_place_sees() -> None:
    for dilation in (1, 2, 4):
        module = BAM(16, dilation=dilation, reduction=1, branches="spatial").double().eval()
        x = torch.randn(1, 16, 25, 25, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(module.spatial_attention(x)[0, 0, 12, 12], x)
        seen = gradient[0].abs().sum(0).nonzero()  # [places, 2]
        assert (seen - 12).abs().max() <= 2 * dilation  # two 3x3 convolutions
        assert set(((seen - 12) % dilation).flatten().tolist()) == {0}
        assert len(seen) > 9


def test_a_batch_of_one_is_refused_in_training_and_welcome_in_evaluation() -> None:
    module, x = BAM(32), torch.randn(1, 32, 6, 6)
    with pytest.raises(ValueError, match=r"a batch of one.*two images.*SyncBatchNorm.*eval\(\)"):
        module(x)
    assert module.eval()(x).shape == x.shape
    module.train()
    assert module.channel_att is not None
    module.channel_att.eval()  # BatchNorm frozen, the rest in training
    assert module(x).shape == x.shape


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("options", CHOICES)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(
    options: dict[str, object], backend: str, dtype: torch.dtype, training: bool
) -> None:
    """As nn.Conv2d and nn.BatchNorm2d do, whose running statistics then stay as they are."""
    module = lively(BAM(32, backend=backend, **options)).to(dtype).train(training)
    before = {name: value.clone() for name, value in module.named_buffers() if value.is_floating_point()}
    x = torch.randn(0, 32, 5, 4, dtype=dtype, requires_grad=True)
    out = module(x)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert out.is_contiguous()
    out.sum().backward()
    for leaf in (x, *module.parameters()):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    buffers = dict(module.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in before.items())


@pytest.mark.parametrize("shape", [(2, 32, 0, 4), (2, 32, 4, 0), (0, 32, 0, 0)])
@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("options", CHOICES)
def test_a_map_without_positions_is_refused(
    options: dict[str, object], backend: str, shape: tuple[int, ...]
) -> None:
    """It has no mean: NaN would go into running statistics and gradients."""
    module = BAM(32, backend=backend, **options)
    with pytest.raises(ValueError, match=r"^the input has shape \[.*\]: a map without positions.*[^\n]*$"):
        module(torch.zeros(shape))


def test_the_spatial_branch_trains_on_one_image_but_not_on_one_position() -> None:
    module = BAM(32, branches="spatial")
    assert module(torch.randn(1, 32, 6, 6)).shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match="one value a channel"):
        module(torch.randn(1, 32, 1, 1))


def test_one_image_a_process_is_enough_where_statistics_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(BAM(32))
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: x)  # it runs on accelerators only
    x = torch.randn(1, 32, 6, 6)
    with pytest.raises(ValueError, match="a batch of one"):
        module(x)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 1)
    with pytest.raises(ValueError, match="a batch of one"):
        module(x)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    assert module(x).shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "unknown combine 'mean'; choose one of sum, prod, max"),
        ({"branches": "all"}, "unknown branches 'all'; choose one of both, channel, spatial"),
        ({"variant": "cbam"}, "unknown variant 'cbam'; choose one of paper, official"),
        ({"reduction": 33}, "32 channels at reduction 33 leave no hidden channel"),
        ({"reduction": 0}, "reduction=0: wanted a whole number from 1 to"),
        ({"dilation": 0}, "dilation=0: wanted a whole number from 1 to"),
        ({"start": "zero"}, "unknown start 'zero'; choose one of paper, identity"),
        ({"combine": []}, r"unknown combine \[\]; choose one of sum, prod, max"),
        ({"backend": "cpu"}, "unknown backend 'cpu'; choose one of auto, plain"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAM(32, **options)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"channels": 32.0}, "channels=32.0: wanted a whole number from 1 to"),
        ({"channels": "32"}, "channels='32': wanted a whole number from 1 to"),
        ({"channels": 32, "reduction": 16.0}, "reduction=16.0: wanted a whole number from 1 to"),
        ({"channels": 32, "dilation": None}, "dilation=None: wanted a whole number from 1 to"),
    ],
)
def test_numbers_of_another_type_are_refused(numbers: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        BAM(**numbers)


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (32, 3, 3)])
def test_another_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[B, C, H, W\] with C = 32"):
        BAM(32)(torch.zeros(shape))
