"""What timm's own tests ask of every model: shapes of all on the meta device, numbers of one a family."""

import copy
import inspect
from typing import Any

import pytest
import timm
import torch
from awake import awake
from one_of_each import one_of_each
from test_timm_registry import FAMILIES
from timm.models import FeatureInfo, group_parameters
from timm.models._features_fx import FeatureGraphNet
from timm.optim import create_optimizer_v2
from timm.utils import AttentionExtract
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import attneck
from attneck.layers import BAM, MHSA2d
from attneck.models.catalog import CATALOG
from attneck.models.recomputing import Recomputed

# timm's own EfficientNets differ in numbers alone.
KINDS = one_of_each(attneck.list_models(), lambda name: CATALOG[name].options)
NAMES = [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in attneck.list_models()
    if name not in {f"efficientnet_b{n}" for n in range(1, 8)}
]
OWN = [name for name in FAMILIES if not name.startswith(("efficientnet", "deit"))]
WITH_NORMS = [*OWN, "resnet50_bot_c4"]

NARROW = {"depths": [1, 1, 2, 1], "widths": [16, 32, 48, 64]}


def shallow(name: str) -> dict[str, Any]:
    """Options by which every stage has the fewest blocks: one or two, since they are all alike."""
    row = CATALOG[name].options.as_dict()
    if name.startswith(("vit", "deit")):
        return {"depth": 1}
    if "depths" not in row:
        return {}
    *depths, last = (min(2, depth) for depth in row["depths"])
    flags = row.get("attend")
    return {"depths": [*depths, len(flags) if isinstance(flags, tuple) and len(flags) > 1 else last]}


def small(name: str, **arguments: Any) -> Any:
    """A small one of the family, whose branches all say something, in float64."""
    torch.manual_seed(0)
    options = {"drop_rate": 0.0, **FAMILIES.get(name, {})} if name != "resnet50_bot_c4" else NARROW
    given = options | arguments
    return awake(
        timm.create_model(
            f"attneck_{name}", num_classes=5, img_size=side_of(name), dtype=torch.float64, **given
        )
    )


def side_of(name: str) -> int:
    return 32 if name.startswith("cifar") else 64


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_config_says_what_comes_out(name: str) -> None:
    """Pool size, widths, the classifier's and the first conv's names, and the three ways to lose a head."""
    given: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    options = given | shallow(name)
    model: Any = timm.create_model(f"attneck_{name}", **options).eval()
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.bfloat16)}
    cfg, tokens = model.default_cfg, name.startswith(("vit", "deit"))
    assert model.in_chans == cfg["input_size"][0]
    assert f"{cfg['classifier']}.weight" in model.state_dict()
    assert f"{cfg['first_conv']}.weight" in model.state_dict()
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None

    x = torch.empty(1, *cfg["input_size"], **given)
    last = model.forward_features(x)
    if tokens:
        assert cfg["pool_size"] is None
        assert last.shape[-1] == model.num_features
    else:
        assert last.shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(last, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert (model.num_classes, model.forward_head(last).shape) == (0, pooled.shape)
    model.reset_classifier(0, "")
    assert model.forward_head(last).shape == last.shape
    bare: Any = timm.create_model(f"attneck_{name}", num_classes=0, global_pool="", **options).eval()
    assert bare.forward_head(last).shape == last.shape

    model.to(torch.float64)
    model.reset_classifier(2)
    assert not any(module.training for module in model.modules())
    assert {tensor.dtype for tensor in model.get_classifier().parameters()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_groups_go_from_the_stem_to_the_head(name: str) -> None:
    with torch.device("meta"):
        model: Any = attneck.create_model(name, **shallow(name))
    cfg = model.pretrained_cfg
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert groups.keys() == dict(model.named_parameters()).keys()
        head = {key for key, group in groups.items() if group == max(groups.values())}
        assert groups[cfg["first_conv"] + ".weight"] == 0
        assert f"{cfg['classifier']}.weight" in head
        if not name.startswith(("efficientnet", "vit", "deit")):
            assert head == {f"{cfg['classifier']}.weight", f"{cfg['classifier']}.bias"}
            # Never back, in the order in which the parameters are used.
            depths = list(groups.values())
            assert depths == sorted(depths)
            stages = [info["module"] for info in model.feature_info]
            if coarse and not name.startswith("squeezenet"):
                assert len(set(depths)) == len([stage for stage in stages if stage != "act1"]) + 2


def test_layer_decay_reaches_every_block() -> None:
    model = attneck.create_model("resnet50_bot_c4", depths=[1, 1, 2, 1], widths=[16, 16, 16, 16])
    optimizer = create_optimizer_v2(model, "sgd", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert by_name["fc.weight"] == 1
    assert by_name["layer4.0.conv1.weight"] == 0.5
    assert by_name["layer3.bot.conv2.rel_h"] == by_name["layer3.1.conv1.weight"] == 0.25
    assert by_name["conv1.weight"] == 0.5**6


def test_a_stage_of_another_class_is_not_passed_over() -> None:
    model = small("cifar_resnet20")
    model.layer1 = torch.compile(model.layer1)
    model.set_grad_checkpointing()
    assert type(model.layer1._orig_mod) is Recomputed
    model.layer2.__class__ = type("FSDPSequential", (nn.Sequential,), {})
    with pytest.raises(ValueError, match="a stage is a FSDPSequential by now"):
        model.set_grad_checkpointing(False)


def test_maps_without_blocks_say_that_they_are_not_checkpointed() -> None:
    with pytest.raises(ValueError, match="these maps are of a network without stages"):
        timm.create_model("attneck_squeezenet1_1", features_only=True).set_grad_checkpointing()


@pytest.mark.parametrize("name", WITH_NORMS)
def test_checkpointing_changes_nothing(name: str) -> None:
    """Three steps: logits, gradients and each BatchNorm's statistics and count, to the last bit."""
    rates = {"drop_path_rate": 0.3} if "cifar_resnet" in name or name == "botnet50" else {}
    plain = small(name, drop_rate=0.2, **rates).train()
    again = copy.deepcopy(plain)
    again.set_grad_checkpointing()
    seen = []
    for model in (plain, again):
        torch.manual_seed(2)
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        norms = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        handles = [module.register_forward_hook(count) for module in norms]
        for _ in range(3):
            logits = model(images(side_of(name)))
            logits.square().mean().backward()
        seen.append(calls)
        for handle in handles:
            handle.remove()
    assert seen[1] > 1.5 * seen[0]  # it is on: nearly every conv ran twice
    for (key, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-12, msg=key)
    state = again.state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12, msg=key)
    counts = [value for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert all(value == 3 for value in counts)

    _, maps = again.forward_intermediates(images(side_of(name)))
    maps[0].sum().backward()
    again.set_grad_checkpointing(False)
    assert [type(module) for module in again.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.parametrize("name", ["attneck_resnet26_thin", "attneck_botnet26_thin"])
def test_checkpointing_changes_nothing_of_maps(name: str) -> None:
    torch.manual_seed(0)
    plain = awake(timm.create_model(name, features_only=True, img_size=64).double().train())
    again = copy.deepcopy(plain)
    again.set_grad_checkpointing()
    for model in (plain, again):
        model(images(64))[-1].square().mean().backward()
    for (key, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, key
        assert one.grad.any() or key.endswith("bias"), key
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-10, atol=1e-12, msg=key)
    state = again.state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert any(isinstance(module, Recomputed) for module in again.modules())


@pytest.mark.parametrize("name", ["resnet26_thin", "squeezenet1_1_bam", "cifar_resnet20_bam"])
def test_a_pool_of_another_kind_may_take_its_place(name: str) -> None:
    """As in timm's networks: GeM, or none at all before a head that takes maps."""
    model = small(name).eval()
    with torch.no_grad():
        x = images(side_of(name))
        wanted = model(x)
        model.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("name", OWN)
def test_pools(name: str) -> None:
    """Each by its formula, at the construction and by `reset_classifier`."""
    with torch.no_grad():
        x = images(side_of(name))
        model = small(name).eval()
        last = model.forward_features(x)
        mean, most = last.mean(dim=(2, 3)), last.amax(dim=(2, 3))
        wanted = {
            "avg": mean,
            "max": most,
            "avgmax": (mean + most) / 2,
            "catavgmax": torch.cat((mean, most), 1),
        }
        for pool, pooled in wanted.items():
            if pool == "catavgmax" and name.startswith("squeezenet"):
                with pytest.raises(ValueError, match="'avgmax' adds both"):
                    model.reset_classifier(3, pool)
                continue
            model.reset_classifier(3, pool)
            torch.testing.assert_close(model.forward_head(last, pre_logits=True), pooled)
            assert (model(x).shape, model.head_hidden_size) == ((2, 3), pooled.shape[1])
            built = small(name, global_pool=pool).eval()
            assert built.origin.options["global_pool"] == pool
            weights = {k: v for k, v in model.state_dict().items() if not k.startswith(("fc", "classifier"))}
            built.load_state_dict(weights, strict=False)
            torch.testing.assert_close(built.forward_head(last, pre_logits=True), pooled)
        with pytest.raises(ValueError, match="give num_classes=0"):
            model.reset_classifier(3, "")
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(x), last, rtol=0, atol=0)
        model.reset_classifier(3)
        with pytest.raises(ValueError, match="give num_classes=0"):
            model(x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet"])
def test_dilated_networks_see_the_same_as_strided_ones(name: str) -> None:
    """Every 2nd or 4th position of a last map of stride 16 or 8 is the map of stride 32."""
    narrow = {"alpha": 0.125} if name == "mobilenet" else NARROW
    maps = {}
    with torch.no_grad():
        for stride in (32, 16, 8):
            model = small(name, output_stride=stride, **narrow).eval()
            maps[stride] = model.forward_features(images())
            assert maps[stride].shape[-1] == 64 // stride
            assert model.feature_info[-1]["reduction"] == stride
    for stride in (16, 8):
        torch.testing.assert_close(maps[stride][..., :: 32 // stride, :: 32 // stride], maps[32])


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet50", "resnet18"])
def test_output_strides_and_the_rates_are_timm_s(name: str, stride: int) -> None:
    given = {"output_stride": stride, "drop_block_rate": 0.3, "num_classes": 5}
    torch.manual_seed(0)
    theirs: Any = timm.create_model(
        name, layers=(1, 1, 2, 2), channels=(16, 32, 48, 64), zero_init_last=False, **given
    )
    ours: Any = timm.create_model(f"attneck_{name}", **(NARROW | {"depths": [1, 1, 2, 2]}), **given)
    ours.load_state_dict(theirs.state_dict())
    assert ours.origin.options["output_stride"] == stride
    results = []
    for model in (theirs, ours):
        torch.manual_seed(0)
        logits = model.train()(torch.randn(2, 3, 64, 64))
        logits.square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        results.append((logits, gradients, model.state_dict()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert all(gradient.any() for gradient in results[1][1].values())


def test_attention_at_another_output_stride() -> None:
    with torch.device("meta"):
        for stride, sides in ((32, [14, 7, 7]), (16, [14, 14, 14]), (8, [28, 28, 28])):
            model: Any = timm.create_model("attneck_botnet50", output_stride=stride)
            attention = [module for module in model.modules() if isinstance(module, MHSA2d)]
            assert [module.map_size[0] for module in attention] == sides
            inserted = timm.create_model("attneck_resnet50_bot_c4", output_stride=stride)
            assert inserted.get_submodule("layer3.bot.conv2").map_size == (min(28, sides[0]),) * 2


def test_norms_have_the_numbers_asked_for() -> None:
    model: Any = timm.create_model("attneck_botnet26_thin", bn_momentum=0.01, bn_eps=1e-3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.01, 1e-3)}
    with pytest.raises(ValueError, match=r"bn_eps=0\.5 would change nothing without a classifier"):
        attneck.create_model("maskrcnn_botnet26_thin", bn_eps=0.5)


def test_drop_path_rises_as_timm_s_does() -> None:
    theirs: Any = timm.create_model("resnet18", drop_path_rate=0.5)
    ours: Any = timm.create_model("attneck_cifar_resnet20_bam", drop_path_rate=0.5, depths=[2, 2, 4])
    rates = [
        [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
        for model in (theirs, ours)
    ]
    assert rates[0] == rates[1]
    assert len(rates[1]) == 7


@pytest.mark.parametrize("name", WITH_NORMS)
def test_fx_records_it(name: str) -> None:
    """By a plain trace, torchvision's extractor and timm's: results and gradients to the last bit."""
    model = small(name)
    leaves = list(model.parameters())
    wanted = []
    for training in (False, True):
        model.train(training)
        state = copy.deepcopy(model.state_dict())
        want = model(images(side_of(name)))
        gradients = torch.autograd.grad(want.square().mean(), leaves)
        wanted.append(want)
        model.load_state_dict(state)
        graph = torch.fx.symbolic_trace(model)
        graph.graph.lint()
        got = graph(images(side_of(name)))
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        own = dict(graph.named_parameters())
        again = torch.autograd.grad(got.square().mean(), [own[key] for key, _ in model.named_parameters()])
        for one, other in zip(again, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    ours = [module for module in model.modules() if isinstance(module, BAM | MHSA2d)]
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"]
    assert sum(isinstance(module, BAM | MHSA2d) for module in called) == len(ours)

    model.eval()
    info = FeatureInfo(model.feature_info, tuple(range(len(model.feature_info))))
    maps = model.forward_intermediates(images(side_of(name)), intermediates_only=True)
    nodes = {node: str(index) for index, node in enumerate(info.module_name())}
    if not name.startswith("squeezenet"):  # whose ends are leaves
        extracted = create_feature_extractor(model, return_nodes=nodes)(images(side_of(name)))
        torch.testing.assert_close(list(extracted.values()), maps, rtol=0, atol=0)
    features = FeatureGraphNet(model, tuple(range(len(model.feature_info))))
    torch.testing.assert_close(features(images(side_of(name))), maps, rtol=0, atol=0)


def test_a_layer_alone_is_no_network() -> None:
    with pytest.raises(ValueError, match="records MHSA2d as one call inside a network"):
        torch.fx.symbolic_trace(MHSA2d(8, 4))
    torch.fx.symbolic_trace(nn.Sequential(MHSA2d(8, 4), BAM(16)))


@pytest.mark.parametrize("options", [{}, {"position": "absolute"}, {"position": "none"}, {"content": False}])
def test_attention_is_found_when_asked_for(options: dict[str, Any]) -> None:
    model = small("botnet50", **options).eval()
    x = images(48)  # another map than the tables'
    before = {key: type(module) for key, module in model.named_modules()}
    want = model(x)
    with pytest.raises(RuntimeError, match="No node names found"):
        AttentionExtract(model)
    layers = [module for module in model.modules() if isinstance(module, MHSA2d)]
    given: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, args: given.append(args[0])) for layer in layers]
    model(x)
    for handle in handles:
        handle.remove()
    state = model.state_dict().keys()
    for layer in layers:
        layer.show_maps()
    assert model.state_dict().keys() == state
    torch.testing.assert_close(model(x), want)
    for method in ("fx", "hook"):
        found = list(AttentionExtract(model, method=method)(x).values())
        assert len(found) == len(layers)
        for layer, maps, one in zip(layers, given, found, strict=True):
            torch.testing.assert_close(one, layer.attention_maps(maps))
    for layer in layers:
        layer.show_maps(False)
    assert {key: type(module) for key, module in model.named_modules()} == before
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


def test_a_backend_without_maps_shows_none() -> None:
    layer = MHSA2d(8, 4, backend="triton")
    with pytest.raises(ValueError, match="'triton' makes no map to show"):
        layer.show_maps()
    layer.backend = "plain"
    layer.show_maps()
    with pytest.raises(ValueError, match="'cpu' makes no map to show"):
        layer.backend = "cpu"


def test_unknown_arguments_are_timm_s_kind_of_error() -> None:
    with pytest.raises(TypeError, match="no option 'not_an_argument'"):
        timm.create_model("attneck_botnet50", not_an_argument=1)


def test_a_training_batch_of_one_is_told_what_helps() -> None:
    """And frozen norms help: the way that the message names."""
    model, one = small("resnet50_bam"), images()[:1]
    with pytest.raises(
        ValueError, match=r"two images at a time.*accumulating.*SyncBatchNorm.*freeze_norms"
    ) as told:
        model(one)
    assert len(str(told.value)) < 300
    assert "\n" not in str(told.value)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    model(one).sum().backward()
