"""Weights of another network: what fits is taken, what doesn't stays new, and nothing is raised for it."""

import warnings
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame, SEModule, activations, resample_abs_pos_embed
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attneck.attention.relative import resample_rows
from attneck.layers import BAM, MHSA2d
from attneck.models import create_model
from attneck.models.weight_files import Weights
from attneck.models.weights import StaysRandomWarning, grids, load_matching, settings
from attneck.surgery import insert_bam, insert_se

TABLES = {
    "relative": {"attention.rel_h", "attention.rel_w"},
    "absolute": {"attention.abs_h", "attention.abs_w"},
}


class Net(nn.Module):
    """A convolution, then attention."""

    def __init__(self, channels: int = 16, map_size: tuple[int, int] = (4, 6), **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.attention = MHSA2d(channels, map_size, **options)


def load(network: Net, weights: Any) -> tuple[set[str], set[str], set[str]]:
    """What was taken, is new and is unused, each checked against what the network holds."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loaded = load_matching(network, weights)
    after = network.state_dict()
    assert {*loaded.taken, *loaded.new} == {*after}
    for name in loaded.new:
        assert torch.equal(after[name], before[name])
    for name in loaded.taken:
        given = weights[name]
        wanted = given if given.shape == after[name].shape else resample_rows(given, len(after[name]))
        assert torch.equal(after[name], wanted)
    return {*loaded.taken}, {*loaded.new}, {*loaded.unused}


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_of_another_number_of_heads_are_new(position: Any) -> None:
    for size in ((4, 6), (7, 5)):
        source = Net(heads=4, position=position).state_dict()
        taken, new, unused = load(Net(map_size=size, heads=2, position=position), source)
        assert new == unused == TABLES[position]
        assert taken == {"conv.weight", "conv.bias", "attention.qkv.weight"}


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_of_another_map_are_resampled(position: Any) -> None:
    source = Net(position=position).state_dict()
    taken, new, unused = load(Net(map_size=(7, 5), position=position), source)
    assert (taken, new, unused) == ({*source}, set(), set())


def test_tables_go_with_their_layer_s_projections() -> None:
    """Of another width with the same head width, or without content, or without projections at all."""
    wide, plain = Net(32, heads=8).state_dict(), Net(content=False).state_dict()
    alone = {name: tensor for name, tensor in Net().state_dict().items() if "qkv" not in name}
    with pytest.raises(ValueError, match="none of the 5 tensors given"):
        load_matching(Net(), wide)
    for source in (plain, alone):
        taken, new, unused = load(Net(), source)
        assert taken == {"conv.weight", "conv.bias"}
        assert new == {"attention.qkv.weight", *TABLES["relative"]}
        assert unused == {*source} - taken


@pytest.mark.parametrize("given", ["relative", "absolute", "none"])
@pytest.mark.parametrize("wanted", ["relative", "absolute", "none"])
def test_another_kind_of_position(given: Any, wanted: Any) -> None:
    taken, new, unused = load(Net(position=wanted), Net(position=given).state_dict())
    same = TABLES.get(wanted, set()) if given == wanted else set()
    assert taken == {"conv.weight", "conv.bias", "attention.qkv.weight", *same}
    assert new == TABLES.get(wanted, set()) - same
    assert unused == TABLES.get(given, set()) - same


@pytest.mark.parametrize(
    "table", [torch.zeros(4), torch.zeros(8, 4), torch.zeros(0, 4), torch.zeros(7, 4, 1)]
)
def test_what_is_no_table_is_not_taken(table: Tensor) -> None:
    source = {**Net().state_dict(), "attention.rel_h": table}
    assert load(Net(), source)[1:] == ({"attention.rel_h"}, {"attention.rel_h"})


def test_as_many_numbers_in_another_shape_are_another_tensor() -> None:
    weight = torch.ones(3, 16, 1, 1)
    loaded = load_matching(Net(), {**Net().state_dict(), "conv.weight": weight})
    assert loaded.new == loaded.unused == ["conv.weight"]
    assert loaded.shapes == {"conv.weight": ([3, 16, 1, 1], [16, 3, 1, 1])}


def test_a_count_of_batches_is_no_weight() -> None:
    """Checkpoints of old have none, and a frozen norm takes none."""
    norm, frozen = nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(FrozenBatchNorm2d(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_matching(norm, frozen.state_dict()).new == []
        assert load_matching(frozen, norm.state_dict()).unused == ["0.num_batches_tracked"]
        norm[0].num_batches_tracked.fill_(7)
        halved = {name: tensor.half() + 1 for name, tensor in norm.state_dict().items()}
        loaded = load_matching(norm, halved)  # as a state dict that is halved whole has it
        assert (loaded.new, loaded.unused, int(norm[0].num_batches_tracked)) == ([], [], 7)
        assert norm[0].weight.tolist() == [2.0] * 4


def test_an_adapter_s_file_says_what_it_wants() -> None:
    for name in ("conv.lora_A.weight", "conv.lora_B.default.weight", "conv.base_layer.weight"):
        with pytest.raises(ValueError, match=r"by timm's names; these have adapters .*: merge them into"):
            load_matching(Net(), {f"base_model.model.{name}": torch.ones(16, 3, 1, 1)})
    with pytest.raises(ValueError, match=r"by timm's names$"):
        load_matching(Net(), {"lora_Analysis.weight": torch.ones(16, 3, 1, 1)})


def test_other_floats_are_cast_and_other_kinds_refused() -> None:
    weight = torch.ones(16, 3, 1, 1)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert load(Net(), {"conv.weight": weight.to(dtype)})[0] == {"conv.weight"}
    overflows = weight.double() * 1e300  # in float32
    for wrong in (weight.long(), weight.to(torch.complex64), weight.bool(), weight * torch.nan, overflows):
        with pytest.raises(ValueError, match=r"tensor conv\.weight is "):
            load_matching(Net(), {"conv.weight": wrong})
    with pytest.raises(ValueError, match=r"conv\.weight is of type list, wanted tensors by name"):
        load_matching(Net(), {"conv.weight": [1.0]})


def test_a_layer_by_itself() -> None:
    source, layer = MHSA2d(16, 4), MHSA2d(16, 6)
    assert load_matching(layer, source.state_dict()).new == []
    assert load_matching(layer, MHSA2d(16, 4, heads=2).state_dict()).new == ["rel_h", "rel_w"]


def test_a_network_on_the_meta_device_takes_nothing_and_says_so() -> None:
    with torch.device("meta"):
        network = Net()
    with pytest.raises(
        ValueError, match=r"on the meta device \(conv.weight\).*to_empty.* and then reset_parameters of all"
    ):
        load_matching(network, Net().state_dict())


def test_an_entry_that_holds_nothing_hides_no_weights() -> None:
    source = Net().state_dict()
    for part in ("state_dict_ema", "model_ema"):
        loaded = load_matching(Net(), {part: {}, "state_dict": source})
        assert (loaded.part, {*loaded.taken}) == ("state_dict", {*source})


@pytest.mark.parametrize("given", ["relative", "absolute"])
def test_tables_without_a_place_are_warned_of(given: Any) -> None:
    with pytest.warns(StaysRandomWarning, match=r"filled in part.*attention\.(rel|abs)_h"):
        load_matching(Net(position="none"), Net(position=given).state_dict())


def test_activations_that_compute_otherwise_are_named() -> None:
    class Act(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 8, 1), act

    known = [nn.GELU(), nn.GELU("tanh"), activations.QuickGELU(), nn.SiLU(), activations.Swish(), nn.ReLU()]
    alike = {(0, 0), (1, 1), (2, 2), (3, 3), (3, 4), (4, 3), (4, 4), (5, 5)}
    for i, was in enumerate(known):
        weights = Weights(Act(was).state_dict())
        weights.settings = settings(Act(was))
        for j, now in enumerate(known):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = load_matching(Act(now), weights)
            assert bool(loaded.changed) == ((i, j) not in alike), (was, now)


@pytest.mark.parametrize("names", [("fc", "linear"), ("linear", "fc")])
def test_its_own_name_comes_before_that_of_others(names: tuple[str, str]) -> None:
    network = nn.Sequential(OrderedDict({"fc": nn.Linear(4, 2, bias=False)}))
    given = {f"{name}.weight": torch.full((2, 4), float(name == "fc")) for name in names}
    assert load_matching(network, given).unused == ["linear.weight"]
    assert torch.equal(network.state_dict()["fc.weight"], torch.ones(2, 4))


def test_a_first_part_that_few_tensors_fit_by_is_another_network_s() -> None:
    others = {f"body.{number}.weight": torch.ones(number + 1) for number in range(4)}
    with pytest.raises(ValueError, match="none of the 5 tensors given"):
        load_matching(Net(), {"body.conv.bias": torch.ones(16), **others})
    conv = {f"body.conv.{name}": one for name, one in Net().conv.state_dict().items()}
    loaded = load_matching(Net(), {**conv, "body.0.weight": torch.ones(2), "body.1.weight": torch.ones(2)})
    assert loaded.taken == ["conv.weight", "conv.bias"]  # half of them


@pytest.mark.parametrize(
    ("conv", "name"),
    [
        (Conv2dSame(3, 8, 3), "padding"),  # by the size of the map
        (nn.Conv2d(3, 8, 3, padding=1), "padding"),
        (nn.Conv2d(3, 8, 3, stride=2), "stride"),
        (nn.Conv2d(3, 8, 3, dilation=2), "dilation"),
    ],
)
def test_convolutions_that_compute_otherwise_are_told_apart(conv: nn.Conv2d, name: str) -> None:
    found, plain = settings(nn.Sequential(conv)), settings(nn.Sequential(nn.Conv2d(3, 8, 3)))
    assert {each for each in found if found[each] != plain[each]} == {f"0 {name}"}


@pytest.mark.parametrize(
    ("name", "attention"), [("se", SEModule(16)), ("bot", nn.Conv2d(16, 16, 1)), ("bam", BAM(16))]
)
def test_attention_of_any_kind_may_stay_new(name: str, attention: nn.Module) -> None:
    """timm's too, and a whole block that surgery has put between two others."""
    network = nn.Sequential(OrderedDict({"conv": nn.Conv2d(3, 16, 1), name: attention}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_matching(network, {"conv.weight": torch.ones(16, 3, 1, 1), "conv.bias": torch.ones(16)})
    assert [*loaded.modules] == [f"{name} ({type(attention).__name__})"]


def test_position_embeddings_of_another_grid_of_as_many_patches_are_resampled() -> None:
    def vit(image_size: tuple[int, int]) -> nn.Module:
        return create_model(
            "deit_small_patch16_224", image_size=image_size, num_classes=2, width=16, depth=1, heads=2
        )

    source, wide = vit((64, 64)), vit((32, 128))
    given = source.state_dict()["pos_embed"]
    weights = Weights(source.state_dict())
    load_matching(wide, weights)  # they may be of this very grid
    assert torch.equal(wide.state_dict()["pos_embed"], given)
    weights.grids = grids(source)
    load_matching(wide, weights)
    wanted = resample_abs_pos_embed(given, [2, 8], [4, 4], given.shape[1] - 16)
    assert torch.equal(wide.state_dict()["pos_embed"], wanted)


@pytest.mark.parametrize(
    ("extra", "options"), [(0, {"class_token": False, "global_pool": "avg"}), (2, {"reg_tokens": 1})]
)
def test_embeddings_of_no_patch_are_not_resampled(extra: int, options: dict[str, Any]) -> None:
    small, large = (
        timm.create_model("vit_tiny_patch16_224", img_size=side, embed_dim=12, depth=1, **options)
        for side in (32, 64)
    )
    given = small.state_dict()["pos_embed"]
    load_matching(large, small.state_dict())
    found = large.state_dict()["pos_embed"]
    assert torch.equal(found, resample_abs_pos_embed(given, [4, 4], [2, 2], extra))
    assert torch.equal(found[:, :extra], given[:, :extra])


def test_bams_that_the_network_lacks_are_named() -> None:
    """A backbone that dilates instead of striding has fewer places for them."""
    with_three = insert_bam(timm.create_model("test_resnet", num_classes=4), image_size=64).model
    dilated = timm.create_model("test_resnet", num_classes=4, output_stride=8)
    insert_bam(dilated, image_size=64)
    with pytest.warns(StaysRandomWarning, match="BAM at layer2.bam, layer3.bam, where .*own: layer1.bam$"):
        load_matching(dilated, with_three.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_matching(with_three, with_three.state_dict())


def take_each_other_s_weights(changed: nn.Module, published: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for network, other in ((changed, published), (published, changed)):
            for tensor in other.parameters():
                tensor.normal_(std=0.1)
            in_a_file = dict(sorted(other.state_dict().items()))  # as safetensors have them
            loaded = load_matching(network, in_a_file)
            assert (loaded.new, loaded.unused) == ([], [])
            assert torch.equal(network(x), other(x))


@pytest.mark.parametrize(
    ("name", "bam", "options"),
    [
        ("resnet18", "stages", {"widths": [16] * 4}),
        ("squeezenet1_1", "stages", {}),
        ("cifar_wrn28_8", "blocks", {"depths": [11, 1], "mids": [16, 32], "outs": [16, 32]}),
    ],
)
def test_bams_of_the_catalog_and_of_surgery_take_each_other_s_weights(
    name: str, bam: str, options: dict[str, Any]
) -> None:
    options = {"num_classes": 3, "image_size": 64, **options}
    published = create_model(name, bam=bam, bam_reduction=4, **options).eval()
    at: Any = "blocks" if bam == "blocks" else "bottlenecks"
    changed = insert_bam(create_model(name, **options), at, start="paper", reduction=4).model.eval()
    take_each_other_s_weights(changed, published, torch.randn(2, 3, 64, 64))


def test_squeeze_excitation_of_the_catalog_and_of_surgery_take_each_other_s_weights() -> None:
    published = create_model("cifar_resnet20_se", num_classes=3).eval()
    changed = insert_se(create_model("cifar_resnet20", num_classes=3), start="paper").model.eval()
    take_each_other_s_weights(changed, published, torch.randn(2, 3, 32, 32))


def test_bams_at_other_places_stay_unused() -> None:
    small: dict[str, Any] = {"widths": [16] * 4, "num_classes": 3}
    network, other = create_model("resnet18", **small), create_model("resnet18", **small)
    network.layer1[1].add_module("bam", BAM(16, reduction=4))
    other.layer2[1].add_module("bam", BAM(16, reduction=4))
    with pytest.warns(StaysRandomWarning, match=r"no BAM at layer2.1.bam, .*own: layer1.1.bam"):
        load_matching(network, other.state_dict())


def test_more_bams_than_the_network_has_stay_unused() -> None:
    """Which of them are meant is not known."""
    small: dict[str, Any] = {"widths": [16] * 4, "num_classes": 3}
    network = create_model("resnet18_bam", bam_reduction=4, **small)
    given = insert_bam(create_model("resnet18", **small), "blocks", start="paper", reduction=4).model
    with pytest.warns(StaysRandomWarning, match=r"at layer1.0.bn2_bam, .* 5 more, where .*own: layer1.2, "):
        loaded = load_matching(network, given.state_dict())
    assert loaded.modules.keys() == {"layer1.2 (BAM)", "layer2.2 (BAM)", "layer3.2 (BAM)"}
