"""BAM under forward-mode, second derivatives and torch.func, on either backend."""

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from attneck.layers import BAM

BACKENDS = ["auto", "plain"]
OPTIONS = [{}, {"variant": "official"}, {"branches": "channel"}, {"start": "identity"}]


def problem(options: dict[str, str], backend: str = "auto") -> tuple[BAM, Tensor]:
    torch.manual_seed(0)
    module = BAM(16, backend=backend, **options).double().eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module, torch.randn(2, 16, 3, 4, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_derivatives_are_finite_differences(
    options: dict[str, str], backend: str, frozen: bool
) -> None:
    module, x = problem(options, backend)
    module.requires_grad_(not frozen)
    tangent, step = torch.randn_like(x), 1e-6
    with torch.no_grad():
        want = (module(x + step * tangent) - module(x - step * tangent)) / (2 * step)
    assert want.norm() > 1
    torch.testing.assert_close(jvp(module, (x,), (tangent,))[1], want, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(pushed, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_second_derivatives_are_finite_differences(options: dict[str, str], backend: str) -> None:
    module, x = problem(options, backend)
    module.train()
    x = x[:, :, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(module, (x,), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_penalty_on_the_weights_gradients_where_the_input_has_none(options: dict[str, str]) -> None:
    """And batched gradients: the input is data, or comes from layers that are frozen."""
    results = []
    for backend in BACKENDS:
        module, x = problem(options, backend)
        weights = [*module.train().parameters()]
        out = module(x)
        first = torch.autograd.grad(out.square().mean(), weights, create_graph=True)
        penalty = torch.stack([one.square().sum() for one in first]).sum()
        second = torch.autograd.grad(penalty, weights)
        batched = torch.autograd.grad(
            module(x), weights, torch.stack([torch.ones_like(x), x]), is_grads_batched=True
        )
        results.append([*second, *batched])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_penalty_on_the_input_s_gradient_reaches_the_weights(options: dict[str, str]) -> None:
    results = []
    for backend in BACKENDS:
        module, x = problem(options, backend)
        x = x.requires_grad_()
        out = module.train()(x).sum()
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        (out + gradient.square().sum()).backward()
        results.append([parameter.grad for parameter in (x, *module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_func_s_transforms(backend: str) -> None:
    module, x = problem({}, backend)
    weights = dict(module.named_parameters())

    def loss(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        out: Tensor = functional_call(module, weights, (one[None],))
        return out.square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for i, one in enumerate(x):
        alone = copy.deepcopy(module)
        alone(one[None]).square().sum().backward()
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(each[name][i], parameter.grad, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vmap(module)(torch.stack((x, -x))), torch.stack((module(x), module(-x))))
