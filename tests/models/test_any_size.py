"""Any size: whole networks under torch.compile(dynamic=True), and checkpoints at another image size.

Most graphs run as they are traced: `tests/layers/test_compile.py` goes on to the backward pass of each layer.
"""

from typing import Any

import pytest
import torch
from torch import nn

from attneck.attention import choice
from attneck.models import create_model

THIN = {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 32]}
VIT = {"width": 32, "depth": 1, "heads": 2}


def make(name: str, **options: Any) -> Any:
    """A network in which every branch has an effect."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, **options)
    for key, parameter in model.named_parameters():
        if "qkv" in key or "rel_" in key:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.3, 0.6)
    return model


@pytest.fixture
def no_recompilation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Calls refuse to compile from the second on, in a process that has not asked for attention before."""
    monkeypatch.setattr(choice, "_asked", None)
    torch._dynamo.reset()
    yield lambda: torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "options", "backend"),
    [
        (
            "cifar_resnet20_bot_bam",
            {"depths": [1, 1], "mids": [16, 32], "outs": [16, 32], "image_size": 32},
            "eager",
        ),
        pytest.param("botnet50", {**THIN, "image_size": 64}, "eager", marks=pytest.mark.slow),
        (
            "deit_small_patch16_224",
            {**VIT, "image_size": 64},
            "aot_eager",
        ),  # its resize is left to eager mode
    ],
)
def test_one_graph_for_every_size(
    name: str, options: dict[str, Any], backend: str, no_recompilation: Any
) -> None:
    """Its own size among them; forward and backward, as eager mode has them."""
    model = make(name, **options)
    model.eval()  # BatchNorm's statistics would move between the two
    compiled = torch.compile(model, dynamic=True, backend=backend)
    side = model.origin.image_size[0]
    for taller, wider in [(8, 16), (0, 0), (32, 0), (5, 1)]:
        images = torch.randn(2, 3, side + taller, side + wider)
        gradients = []
        for network in (compiled, model):
            model.zero_grad()
            network(images).square().mean().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        no_recompilation()
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_a_detector_is_compiled_once(no_recompilation: Any) -> None:
    """Images of other sizes in every call."""
    torch.manual_seed(0)
    model = create_model("ssd300_mobilenet", num_classes=4).eval()
    compiled = torch.compile(model, dynamic=True, backend="eager")
    for sizes in ([(200, 250), (310, 280)], [(120, 333), (300, 300)]):
        images = [torch.rand(3, height, width) for height, width in sizes]
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), model(images))
        no_recompilation()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("botnet50", THIN),
        ("resnet50_bot_c4", {**THIN, "depths": [1, 1, 2, 1], "position": "absolute"}),
        ("cifar_resnet20_bot", {"depths": [1, 1, 1]}),
        ("vit_base_patch16_384", VIT),
    ],
)
def test_a_checkpoint_loads_at_another_image_size(name: str, options: dict[str, Any]) -> None:
    """And says there what the old network says, whose tables are resampled at each call."""
    old = make(name, image_size=64, **options).eval()
    new = create_model(name, num_classes=4, image_size=96, **options).eval()
    checkpoint = old.state_dict()
    shapes = {key: tensor.shape for key, tensor in checkpoint.items()}
    assert not all(shapes[key] == tensor.shape for key, tensor in new.state_dict().items())
    result = new.load_state_dict(checkpoint)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert {key: tensor.shape for key, tensor in checkpoint.items()} == shapes  # the caller's is left alone
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(new(images), old(images), rtol=1e-4, atol=1e-4)


def test_a_vit_s_checkpoint_of_no_square_is_pytorch_s_to_refuse() -> None:
    old = create_model("vit_base_patch16_384", image_size=(32, 48), **VIT)
    new = create_model("vit_base_patch16_384", image_size=64, **VIT)
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        new.load_state_dict(old.state_dict())
