"""What runs in a BAM can be seen by hooks, replaced and kept, and on the CPU nobody notices the short cut."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.nn.utils import parametrizations, prune

from attneck.layers import BAM, MHSA2d, bam

HOOKS = {
    "register_forward_pre_hook": register_module_forward_pre_hook,
    "register_forward_hook": register_module_forward_hook,
    "register_full_backward_pre_hook": register_module_full_backward_pre_hook,
    "register_full_backward_hook": register_module_full_backward_hook,
}


@pytest.fixture
def squeezes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for each time that the short cut is taken."""
    taken: list[int] = []
    squeeze = bam.squeeze
    monkeypatch.setattr(bam, "squeeze", lambda *args: (taken.append(1), squeeze(*args))[1])
    return taken


def modules(variant: str) -> list[str]:
    return [name for name, _ in BAM(16, variant=variant).named_modules()]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_hook_on_any_module_runs_once(kind: str, variant: str) -> None:
    torch.manual_seed(0)
    plain, x = BAM(16, variant=variant, backend="plain"), torch.randn(3, 16, 5, 4, requires_grad=True)
    want = plain(x)
    for name in modules(variant):
        module = BAM(16, variant=variant)
        module.load_state_dict(plain.state_dict())
        runs: list[nn.Module] = []
        getattr(module.get_submodule(name), kind)(lambda layer, *_, runs=runs: runs.append(layer))
        out = module(x)
        out.sum().backward()
        assert runs == [module.get_submodule(name)], name
        torch.testing.assert_close(out, want)


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_hook_on_all_modules_sees_each(kind: str, variant: str) -> None:
    module, x = BAM(16, variant=variant), torch.randn(3, 16, 5, 4, requires_grad=True)
    seen: list[nn.Module] = []
    hook = HOOKS[kind](lambda layer, *_: seen.append(layer))
    try:
        module(x).sum().backward()
    finally:
        hook.remove()
    assert {id(layer) for layer in seen} == {id(layer) for layer in module.modules()}
    assert len(seen) == len(set(modules(variant)))


def test_a_hook_s_answer_counts() -> None:
    x = torch.randn(3, 16, 5, 4)
    module = BAM(16).eval()
    module.spatial_att.register_forward_hook(lambda layer, inputs, output: output + 7)
    c, p = module.channel_attention(x), module.spatial_attention(x)
    want = x + x * (c[:, :, None, None] + p).sigmoid()
    assert p.min() > 3
    torch.testing.assert_close(module(x), want)


def test_the_short_cut_is_for_layers_as_they_were_built(squeezes: list[int]) -> None:
    def forward_of_its_own(module: BAM) -> None:
        module.spatial_att.reduce.forward = lambda x: F(x) * 0  # type: ignore[method-assign]

    def convolution_of_its_own(module: BAM) -> None:
        module.spatial_att.reduce._conv_forward = lambda x, weight, bias: F(x) * 0  # type: ignore[method-assign]

    F = nn.Conv2d(16, 1, 1)

    class Doubling(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def replace(name: str, layer: nn.Module) -> Callable[[BAM], None]:
        return lambda module: module.set_submodule(name, layer)

    changes: list[Callable[[BAM], object]] = [
        forward_of_its_own,
        convolution_of_its_own,
        replace("spatial_att.reduce", Doubling(16, 1, 1)),
        replace("spatial_att.reduce", nn.Conv2d(16, 1, 3, padding=1)),
        replace("spatial_att.reduce", nn.Conv2d(16, 1, 1, bias=False)),
        replace("spatial_att.reduce", nn.Conv2d(16, 1, 1).double()),
        replace("spatial_att.reduce", nn.Sequential(nn.ReLU(), nn.Conv2d(16, 1, 1))),
        replace("spatial_att", nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))),
        replace("spatial_att", nn.Conv2d(16, 1, 1)),
        replace("spatial_att", nn.Sequential()),
        lambda module: parametrizations.weight_norm(module.spatial_att.reduce),
        lambda module: prune.l1_unstructured(module.spatial_att.reduce, "weight", amount=0.5),
    ]
    x = torch.randn(3, 16, 5, 4)
    BAM(16)(x)
    BAM(16, variant="official")(x)
    assert len(squeezes) == 2
    for change in changes:
        torch.manual_seed(0)
        module = BAM(16)
        change(module)
        module.backend = "plain"
        try:
            want = module(x)
        except (RuntimeError, ValueError) as error:
            module.backend = "auto"
            with pytest.raises(type(error)):
                module(x)
        else:
            module.backend = "auto"
            torch.testing.assert_close(module(x), want)
    assert len(squeezes) == 2


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
@pytest.mark.parametrize("layer", [BAM(16), MHSA2d(16, (5, 4))])
def test_what_a_tool_has_all_convolutions_compute_is_computed(
    layer: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = copy.deepcopy(layer).eval(), torch.randn(3, 16, 5, 4)
    first = next(module for module in layer.modules() if isinstance(module, nn.Conv2d))
    nn.init.normal_(first.weight)
    was = getattr(nn.Conv2d, name)
    before = layer(x)
    monkeypatch.setattr(nn.Conv2d, name, lambda self, *given: was(self, *given) * 3)
    found = layer(x)
    layer.backend = "plain"
    torch.testing.assert_close(found, layer(x))
    assert not torch.allclose(found, before)


class OwnSpatial(BAM):
    def spatial_attention(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class OwnChannel(BAM):
    def channel_attention(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


def given(name: str) -> BAM:
    """A BAM with a method of its own, set on the layer."""
    module = BAM(16)
    own = getattr(module, name)
    setattr(module, name, lambda x: own(x) + 1)
    return module


def test_an_attention_of_a_derived_class_or_of_the_layer_s_own_is_what_is_applied(
    squeezes: list[int],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16, 5, 4)
    for module in (OwnSpatial(16), OwnChannel(16), given("spatial_attention"), given("channel_attention")):
        torch.testing.assert_close(module.eval()(x), x + x * module.attention(x))
    assert not squeezes
    type("Named", (BAM,), {})(16)(x)
    assert squeezes  # a derived class that leaves them as they are has the short cut


@pytest.mark.parametrize("options", [{}, {"variant": "official"}, {"start": "identity"}, {"combine": "max"}])
def test_no_gradient_that_others_have_seen_is_changed(options: dict[str, str]) -> None:
    """Every gradient in the graph is kept by hooks and by the caller, and compared with a copy at the end."""
    torch.manual_seed(0)
    module = BAM(16, **options).double()
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    if module.gain is not None:
        nn.init.normal_(module.gain)
    out = module(x * 1)
    direction = torch.randn_like(out)
    seen: list[tuple[Tensor, Tensor]] = []

    def see(*given: tuple[Tensor | None, ...]) -> None:
        seen.extend((tensor, tensor.clone()) for tensors in given for tensor in tensors if tensor is not None)

    nodes = [out.grad_fn]
    for node in nodes:  # it grows as it is walked
        nodes += [other for other, _ in node.next_functions if other is not None and other not in nodes]
    for node in nodes:
        node.register_hook(see)
        node.register_prehook(see)
    inner = [node for node in nodes if "AccumulateGrad" not in node.name()]
    assert len(inner) > 15
    for node in inner:  # the caller's, who asks for one gradient and all that come after it
        see(
            torch.autograd.grad(
                out, [GradientEdge(node, 0), x], direction, retain_graph=True, allow_unused=True
            )
        )
    out.backward(direction)
    for tensor, before in seen:
        assert torch.equal(tensor, before)
