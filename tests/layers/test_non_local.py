"""NonLocal2d against the oracle."""

import pytest
import torch

from attneck.attention import reference
from attneck.layers import NonLocal2d


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("channels", "map_size"), [(8, (4, 4)), (7, (3, 6))])
def test_result_and_gradients_are_the_oracle_s(
    training: bool, channels: int, map_size: tuple[int, int], value: bool
) -> None:
    torch.manual_seed(0)
    layer = NonLocal2d(channels, value=value).double().train(training)
    torch.nn.init.normal_(layer.norm.weight)  # at its initial zero nothing would show
    torch.nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    x = torch.randn(2, channels, *map_size, dtype=torch.float64, requires_grad=True)
    statistics = {} if training else {"mean": layer.norm.running_mean, "var": layer.norm.running_var}
    others = (layer.theta.weight, layer.phi.weight, layer.out.weight, layer.norm.weight, layer.norm.bias)
    projection = None if layer.value is None else layer.value.weight
    want = reference.non_local(x, *others, **statistics, value=projection)
    got, direction, leaves = layer(x), torch.randn_like(want), [x, *layer.parameters()]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad(got, leaves, direction), torch.autograd.grad(want, leaves, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_new_block_changes_nothing() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(NonLocal2d(8)(x), x)


def test_parameters() -> None:
    layer = NonLocal2d(1024)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 512 * 1024 + 1024**2 + 2 * 1024
    with_value = NonLocal2d(1024, value=True)
    assert sum(p.numel() for p in with_value.parameters()) == sum(p.numel() for p in layer.parameters())
    assert [*layer.state_dict()] == [name for name in with_value.state_dict() if name != "value.weight"]
    with pytest.raises(ValueError, match="was given 1; it needs 2 or more"):
        NonLocal2d(1)
    with pytest.raises(ValueError, match="value='x': wanted True or False"):
        NonLocal2d(4, value="x")
