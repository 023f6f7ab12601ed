"""Every listed model: builds, learns, keeps its weights, gives features, takes another size and head."""

from typing import Any

import pytest
import torch
from awake import awake

from attneck.explain import maps
from attneck.layers import BAM, MHSA2d
from attneck.models import create_model, list_models
from attneck.models.catalog import CATALOG, find
from attneck.models.cifar import CifarResNetOptions
from attneck.models.densenet import DenseNetOptions
from attneck.models.efficientnet import EfficientNetOptions
from attneck.models.features import Pyramid
from attneck.models.resnet import ResNetOptions
from attneck.models.vit import ViTOptions

CLASSES = 5


def narrow(name: str) -> dict[str, Any]:
    """A quarter of the width where that leaves enough: as deep, with every branch, and fewer weights to draw.

    `tests/measure/test_counts.py` runs each at its full width, without storage.
    """
    options = CATALOG[name].options
    if isinstance(options, ResNetOptions):
        return {"widths": [width // 4 for width in options.widths]}
    if isinstance(options, CifarResNetOptions) and min(options.outs) >= 128:
        return {key: [width // 4 for width in getattr(options, key)] for key in ("mids", "outs")}
    if isinstance(options, ViTOptions) and options.heads % 4 == 0:
        return {"width": options.width // 4, "heads": options.heads // 4}
    return {}


def shallow(name: str) -> dict[str, Any]:
    """Narrow, with two blocks a stage or four layers a dense one: every kind of block that it has."""
    options = CATALOG[name].options
    if isinstance(options, ResNetOptions):
        *depths, last = options.depths  # where each block of the last stage has a flag, they stay
        last = last if len(options.attend) > 1 else min(last, 2)
        return narrow(name) | {"depths": [*(min(depth, 2) for depth in depths), last]}
    if isinstance(options, CifarResNetOptions):
        return narrow(name) | {"depths": [min(depth, 2) for depth in options.depths]}
    if isinstance(options, DenseNetOptions):
        return {"depths": [4 for _ in options.depths]}
    if isinstance(options, ViTOptions):
        return narrow(name) | {"depth": 2}
    return {"variant": "b0"} if isinstance(options, EfficientNetOptions) else {}


KINDS = {find(name, shallow(name)).options: name for name in reversed(list_models())}
"""Networks that differ in depth or size alone are one kind; its first name."""


@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_every_kind_of_model(name: str) -> None:
    check(name, **shallow(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model(name: str) -> None:
    check(name, **narrow(name))


def check(name: str, **options: Any) -> None:
    side = 16 if CATALOG[name].image_size == 32 else 64
    arguments = {"num_classes": CLASSES, "image_size": side, **options}
    torch.manual_seed(0)
    images = torch.randn(2, 3, side, side)
    model = awake(create_model(name, **arguments))

    logits = model(images)
    assert logits.shape == (2, CLASSES)
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any() or key.endswith("bias"), key  # one before a norm has none
        assert parameter.grad.sum().isfinite(), key  # one that isn't shows in the sum
        parameter.grad = None

    # A network built anew takes the weights, every one, and is then the same network; its parts by timm's
    # methods are the whole.
    with torch.no_grad():
        want = model.eval()(images)
        check_maps(model, images[:1])
        with torch.device("meta"):
            again = create_model(name, **arguments)
        again.load_state_dict(model.state_dict(), assign=True)
        again.eval()
        last = again.forward_features(images)
        torch.testing.assert_close(again.forward_head(last), want, rtol=0, atol=0)
        pooled = again.forward_head(last, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        again.reset_classifier(0)
        torch.testing.assert_close(again.forward_head(last), pooled, rtol=0, atol=0)

        # Another image size and another classifier.
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(images.new_ones(2, 3, side + 8, side)).shape == (2, 7)
        weights = sum(parameter.numel() for parameter in model.get_classifier().parameters())
        assert weights == 7 * (model.num_features + 1)

    # Its features, with nothing left over that has no gradient.
    pyramid = Pyramid(model)
    levels = pyramid(images)
    assert len(levels) == min(4, len(model.feature_info))
    for features, channels, reduction in zip(levels, pyramid.channels, pyramid.reductions, strict=True):
        # SqueezeNet's stem does not pad, and each of its maps is a cell short.
        cells = -(-side // reduction) - name.startswith("squeezenet")
        assert features.shape == (2, channels, cells, cells)
    reached = leaves(levels)
    for key, parameter in pyramid.named_parameters():
        assert parameter in reached, key


def check_maps(model: torch.nn.Module, image: torch.Tensor) -> None:
    """Each of its layers is seen, in its place, and the network says what it says unseen."""
    ours = [name for name, layer in model.named_modules() if isinstance(layer, BAM | MHSA2d)]
    if ours:
        found = maps(model, image)
        torch.testing.assert_close(found.output, model(image)[0], rtol=0, atol=0)
        assert sorted(one.name for one in [*found.bams, *found.mhsas]) == sorted(ours)
        for one in found.mhsas:
            torch.testing.assert_close(one.row(one.map_size[0] - 1, 0).sum((1, 2)), torch.ones(one.heads))


def leaves(results: list[torch.Tensor]) -> set[torch.Tensor]:
    """What has a gradient of any of the results: the graph says so without the backward pass."""
    todo = [result.grad_fn for result in results]
    seen, found = set(todo), set()
    while todo:
        node = todo.pop()
        assert node is not None
        if hasattr(node, "variable"):
            found.add(node.variable)
        new = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= new
        todo += new
    return found


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20_bot_bam",
        "cifar_densenet100_bam",
        "resnet18_bam",
    ],
)
def test_one_of_each(name: str) -> None:
    """The same, at its full width: a family each."""
    check(name)
