"""Counts against a second way of counting, shape by shape, and against figures known by heart."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from one_of_each import one_of_each
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from attneck.errors import UserError
from attneck.explain.stages import stages
from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.measure import count
from attneck.measure.counts import REST, meta_copy
from attneck.measure.kept import kept
from attneck.models import catalog


def analytic_madds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one image by hand: weights times the places they are used at, and attention's own."""
    found = []

    def conv(module, inputs, out):
        found.append(module.weight.numel() * math.prod(out.shape[2:]))

    def transposed(module, inputs, out):
        found.append(module.weight.numel() * math.prod(inputs[0].shape[2:]))

    def linear(module, inputs, out):
        found.append(module.in_features * out[0].numel())

    def mhsa(module, inputs, out):
        H, W = inputs[0].shape[2:]
        N, C = H * W, module.channels
        found.append(N * N * C * (1 + (module.content or module.position == "absolute")))
        if module.position == "relative":
            found.append(N * C * (2 * H - 1 + 2 * W - 1))

    def non_local(module, inputs, out):
        C, N = inputs[0].shape[1], math.prod(inputs[0].shape[2:])
        found.append(N * N * (C // 2 + C))

    def timm_attention(module, inputs, out):
        N, C = inputs[0].shape[1:]
        found.append(2 * N * N * C)

    rules = [
        (nn.Conv2d, conv),
        (nn.ConvTranspose2d, transposed),
        (nn.Linear, linear),
        (MHSA2d, mhsa),
        (NonLocal2d, non_local),
    ]
    model = meta_copy(model).eval()
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.forward = lambda x: x  # counts nothing, and is slow on meta
        for kind, rule in rules:
            if isinstance(module, kind):
                module.register_forward_hook(rule)
        if type(module).__module__.startswith("timm.") and type(module).__name__ == "Attention":
            module.register_forward_hook(timm_attention)
    with torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    return sum(found)


KINDS = one_of_each(catalog.list_models(), lambda name: catalog.CATALOG[name].options)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in catalog.list_models()
    ],
)
def listed(request):
    """Every model of the catalog, at its published size: (name, side, model)."""
    entry = catalog.CATALOG[request.param]
    with torch.device("meta"):
        return request.param, entry.image_size, catalog.create_model(request.param)


def test_every_listed_model_agrees_with_the_analytic_count(listed):
    _, side, model = listed
    if side is None:
        pytest.skip("no image size of its own")
    counts = count(model, side, stages=True)
    assert counts.madds == analytic_madds(model, (side, side))
    assert counts.params == sum(parameter.numel() for parameter in model.parameters())
    assert [sum(column) for column in zip(*counts.stages.values(), strict=True)] == [
        counts.params,
        counts.madds,
    ]
    assert counts.params_paper <= counts.params
    assert counts.params_weights <= counts.params
    classes = catalog.CATALOG[listed[0]].num_classes
    assert (counts.madds - counts.madds_no_classifier) % classes == 0
    assert counts.madds_no_classifier < counts.madds
    assert kept(catalog.CATALOG[listed[0]].options, side, classes) == replace(counts, stages=None)


@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize(("stride", "size"), [(1, (14, 14)), (2, (14, 14)), (2, (7, 9))])
def test_an_attention_layer_is_its_projections_and_the_papers_formula(position, content, stride, size):
    if position == "none" and not content:
        pytest.skip("no logits")
    (H, W), h, d = size, 4, 8
    N = H * W
    layer = nn.Sequential(
        nn.Conv2d(3, h * d, 1, bias=False),
        MHSA2d(h * d, size, heads=h, position=position, content=content, stride=stride),
    )
    products = 2 if content or position == "absolute" else 1
    tables = N * d * (2 * H - 1 + 2 * W - 1) * h if position == "relative" else 0
    qkv = (3 if content else 2) * (h * d) ** 2 * N
    assert count(layer, size).madds == 3 * h * d * N + qkv + products * N * N * d * h + tables


@pytest.mark.parametrize(
    "layer",
    [
        BAM(64),
        BAM(64, variant="official"),
        SqueezeExcite2d(64),
        NonLocal2d(64),
        nn.ConvTranspose2d(64, 8, 3, 2),
    ],
)
def test_the_other_layers_agree_with_the_analytic_count(layer):
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), layer)
    assert count(model, (12, 10)).madds == analytic_madds(model, (12, 10))


@pytest.mark.parametrize(
    ("name", "side", "params", "paper", "madds"),
    [
        ("resnet50", 224, 25_557_032, 25_503_912, 4_089_184_256),  # SPEC 1.6: 25.504 M and 4.089 G
        ("botnet50", 1024, 20_903_208, 20_785_320, 102_991_085_568),
    ],
)
def test_known_totals(name, side, params, paper, madds):
    with torch.device("meta"):
        counts = count(catalog.create_model(name, image_size=side), side)
    assert (counts.params, counts.params_paper, counts.madds) == (params, paper, madds)
    assert counts.madds - counts.madds_no_classifier == 2048 * 1000
    assert counts.stages is None


@pytest.mark.parametrize(
    ("build", "classifier"),
    [
        (lambda: torchvision.models.vit_b_16(), 768 * 1000),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), 2 * 192 * 1000),
    ],
)
def test_classifiers_of_other_names_are_taken_off(build, classifier):
    """torchvision's `heads`, and the two of a distilled network."""
    with torch.device("meta"):
        counts = count(build(), 224)
    assert counts.madds - counts.madds_no_classifier == classifier


def test_bam_alone_has_the_parameters_of_the_papers_equations():
    layer = nn.Sequential(nn.Conv2d(3, 256, 1, bias=False), BAM(256))
    assert count(layer, 8).params - 3 * 256 == 17_747  # SPEC 2.1


def test_conventions_leave_out_what_they_say():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), MHSA2d(8, 4, heads=2))
    counts = count(model, 6)
    weights, bias, gamma, beta, qkv, tables = 3 * 8 * 9, 8, 8, 8, 3 * 8 * 8, 2 * 7 * 4
    assert counts.params == weights + bias + gamma + beta + qkv + tables
    assert counts.params_paper == weights + bias + qkv
    assert counts.params_weights == weights + gamma + qkv + tables
    assert counts.bias_adds == 8 * 4 * 4


def test_tables_are_left_out_however_they_are_held():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), MHSA2d(8, 4, heads=2))
    whole = count(model, 4)
    prune.l1_unstructured(model[1], "rel_h", 0.5)
    nn.utils.parametrizations.weight_norm(model[1], "rel_w")
    changed = count(model, 4)
    assert changed.params_paper == whole.params_paper
    assert changed.params == whole.params + 7  # weight_norm's lengths, one a row


def test_grey_images_are_seen_by_the_first_convolution():
    model = timm.create_model("resnet10t", in_chans=1, num_classes=5)
    assert count(model, 32) == count(model, 32, image_channels=1)
    assert stages(model, (32, 32))[0].channels
    folding = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 1))
    assert count(folding, 32).bias_adds == 8 * 8 * 8
    with pytest.raises(ValueError, match=r"does not run on an image of 2×2.*give the image_size"):
        count(nn.Conv2d(1, 3, 3), 2)


def test_products_with_vectors_count_and_bilinear_ones():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(3, 4, 5)
            self.vector = nn.Parameter(torch.ones(6))

        def forward(self, x):
            rows = x.flatten(0, 2)  # [1·3·4, 6]
            products = rows @ self.vector  # 12 × 6
            products = torch.addmv(products, rows, self.vector)  # 12 × 6
            products = products + products.dot(products)  # 12
            batched = torch.addbmm(x.new_zeros(4, 4), x[0], x[0].transpose(1, 2))  # 3 × 4 × 6 × 4
            # For each of 2 rows and 5 outputs the 3 of the left times 3 × 4 weights, and 4 times 4.
            return self.bilinear(products.view(2, 6)[:, :3], batched[:2])

    assert count(Net(), (4, 6)).madds == 72 + 72 + 12 + 3 * 4 * 6 * 4 + 2 * 5 * (3 * 4 + 4)


def test_deformable_convolutions_count_as_others_do():
    """Where their weights lie is found by a convolution, which counts too."""
    from torchvision.ops import DeformConv2d

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Conv2d(4, 18, 3, stride=2, padding=1)
            self.conv = DeformConv2d(4, 6, 3, stride=2, padding=1, groups=2)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    assert count(Net(), 8).madds == 16 * 18 * 4 * 9 + 16 * 6 * 2 * 9


def test_the_model_stays_as_it_is():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    model[1].eval()
    ran = []
    model[0].register_forward_hook(lambda *_: ran.append(1))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {
        name: (id(value), value.data_ptr(), value.clone())
        for name, value in model.state_dict(keep_vars=True).items()
    }
    count(model, 8)
    after = model.state_dict(keep_vars=True)
    for name, (identity, pointer, value) in before.items():
        assert (id(after[name]), after[name].data_ptr()) == (identity, pointer)
        assert torch.equal(after[name], value)
    assert model[0].weight.grad is not None
    assert [module.training for module in model] == [True, False, True, True, True]
    assert [len(module._forward_hooks) for module in model] == [1, 0, 0, 0, 0]
    assert ran == []


def test_a_copy_allocates_nothing_and_keeps_shared_tensors_shared():
    with torch.device("meta"):  # 4 TB, had it storage
        huge = nn.Linear(1_000_000, 1_000_000, bias=False)
    assert meta_copy(huge).weight.shape == huge.weight.shape
    tied = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    tied[1].weight = tied[0].weight
    copied = meta_copy(tied)
    assert copied[0].weight is copied[1].weight
    assert all(tensor.is_meta for tensor in copied.state_dict().values())


def test_half_precision_and_rectangles():
    with torch.device("meta"):
        model = catalog.create_model("botnet50", image_size=(128, 96))
    full = count(model, (128, 96))
    assert count(model.bfloat16(), (128, 96)) == full
    assert full.madds == analytic_madds(model.float(), (128, 96))


def test_stages_hold_what_belongs_to_no_child():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])  # never called itself
            self.scale = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return torch.einsum("bchw,cd->bdhw", x, self.scale)

    counts = count(Net(), 5, stages=True)
    assert counts.stages == {"blocks": (16 + 20, 25 * (12 + 16)), REST: (16, 25 * 16)}


def count_by_exact_types(model: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """(parameters, multiply-adds) as thop has them: by hooks on modules of exactly these types."""
    params, madds = 0, 0

    def note(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal madds
        if type(module) is nn.Conv2d:
            madds += out.numel() * module.weight[0].numel()
        elif type(module) is nn.Linear:
            madds += out.numel() * module.in_features

    hooks = []
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d):
            params += sum(parameter.numel() for parameter in module.parameters())
            hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return params, madds


def test_other_people_s_counters_see_all_of_botnet50_on_the_cpu():
    model, image = catalog.create_model("botnet50", image_size=64).eval(), torch.randn(1, 3, 64, 64)
    attention = [module for module in model.modules() if isinstance(module, MHSA2d)]
    tables = sum(p.numel() for layer in attention for p in (layer.rel_h, layer.rel_w))
    # c5 at 64 pixels: one layer on 4x4 that pools and two on 2x2, C = 512, h = 4.
    products = sum(N * 512 * (2 * N + 2 * (2 * side - 1)) for side, N in ((4, 16), (2, 4), (2, 4)))
    counts = count(model, 64)
    assert count_by_exact_types(model, image) == (counts.params - tables, counts.madds - products)

    def flops(backward: bool) -> int:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            out = model(image)
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    assert flops(backward=False) == 2 * counts.madds
    both = flops(backward=True)
    for layer in attention:
        layer.backend = "plain"
    assert flops(backward=True) == both > 2 * 2 * counts.madds


def test_an_image_that_a_network_asserts_against_is_refused():
    with pytest.raises(ValueError, match=r"does not run on an image of 32×32.*give the image_size"):
        count(timm.create_model("test_vit", dynamic_img_size=False), 32)


@pytest.mark.parametrize("size", [0, -1, (0, 4)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="image_size"):
        count(nn.Conv2d(3, 4, 1), size)


def run_count(capsys, *words):
    from attneck.commands import count as command

    command.main(list(words))
    return capsys.readouterr().out


def test_the_command_prints_one_json_document(capsys):
    import json

    found = json.loads(
        run_count(capsys, "cifar_resnet20_bot", "--json", "--stages", "--options", "heads", "2")
    )
    with torch.device("meta"):
        model = catalog.create_model("cifar_resnet20_bot", heads=2)
    counts = count(model, 32)
    assert (found["params"], found["madds"], found["image_size"]) == (counts.params, counts.madds, 32)
    assert sum(stage["madds"] for stage in found["stages"].values()) == counts.madds


def test_the_command_says_which_count_it_shows(capsys):
    out = run_count(capsys, "botnet50", "--image-size", "1024", "--stages")
    assert "20,785,320  without BatchNorm and position tables" in out
    assert "102,989,037,568  without the classifier" in out
    assert "layer4" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["botnet5"], "perhaps you meant 'botnet50'"),
        (["botnet50", "--options", "head", "8"], "perhaps you meant 'heads'"),
        (["botnet50", "--image-size", "0"], "image-size=0"),
        (["botnet50", "--num-classes", "-1"], "num-classes=-1"),
        (["botnet50", "--options", "heads", "7"], "do not split into 7 heads"),
    ],
)
def test_mistakes_are_answered_in_one_line(words, said, capsys):
    with pytest.raises(UserError, match=said) as error:
        run_count(capsys, *words)
    assert "\n" not in str(error.value)


def test_stages_that_share_parameters_are_not_told_apart() -> None:
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), shared), nn.Sequential(shared, nn.ReLU()))
    assert count(model, 16).params == 32 + 584
    with pytest.raises(ValueError, match="0 and 1 share parameters"):
        count(model, 16, stages=True)


def test_the_classifier_of_a_wrapped_network_is_that_of_the_one_inside() -> None:
    network = timm.create_model("resnet18", num_classes=10)
    bare = count(network, 64)
    assert bare.madds - bare.madds_no_classifier == 512 * 10
    for wrapped in (nn.DataParallel(network), torch.optim.swa_utils.AveragedModel(network)):
        assert count(wrapped, 64).madds_no_classifier == bare.madds_no_classifier
