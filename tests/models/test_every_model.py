"""Every listed model: builds, learns, keeps its weights, gives features, takes another size, changes its head."""

import io

import pytest
import torch

from attneck.models import create_model, list_models
from attneck.models.catalog import CATALOG
from attneck.models.features import Pyramid

CLASSES = 5


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model(name: str) -> None:
    side = 16 if CATALOG[name].image_size == 32 else 64
    torch.manual_seed(0)
    images = torch.randn(2, 3, side, side)
    model = create_model(name, num_classes=CLASSES, image_size=side)

    logits = model(images)
    assert logits.shape == (2, CLASSES)
    logits.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        parameter.grad = None

    # A network built anew takes the saved weights, every one, and is then the same network.
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model.eval()
    with torch.no_grad():
        want = model(images)
        with torch.device("meta"):
            again = create_model(name, num_classes=CLASSES, image_size=side)
        # Buffers that no state dict holds are the constructor's: none of these networks has any.
        again.load_state_dict(torch.load(file, weights_only=True), assign=True)
        torch.testing.assert_close(again.eval()(images), want, rtol=0, atol=0)
        del again, file

        # timm's methods.
        last = model.forward_features(images)
        torch.testing.assert_close(model.forward_head(last), want, rtol=0, atol=0)
        pooled = model.forward_head(last, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        other = images.new_ones(2, 3, side + 8, side)
        assert model(other).shape == (2, CLASSES)
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(images).shape == (2, 7)
        assert sum(weights.numel() for weights in model.get_classifier().parameters()) == 7 * (model.num_features + 1)
        model.reset_classifier(0)
        torch.testing.assert_close(model(images), pooled, rtol=0, atol=0)

    # Its features, with nothing left over that has no gradient.
    pyramid = Pyramid(model.train())
    maps = pyramid(images)
    assert len(maps) == min(4, len(model.feature_info))
    for features, channels, reduction in zip(maps, pyramid.channels, pyramid.reductions, strict=True):
        # SqueezeNet's stem does not pad, and each of its maps is a cell short.
        cells = -(-side // reduction) - name.startswith("squeezenet")
        assert features.shape == (2, channels, cells, cells)
    sum(features.square().mean() for features in maps).backward()
    for key, parameter in pyramid.named_parameters():
        assert parameter.grad is not None, key


@pytest.mark.parametrize(
    "name",
    ["cifar_resnet20_bot_bam", "cifar_densenet100_bam", "mobilenet_0_7_bam", "squeezenet1_1_bam", "resnet18_bam"],
)
def test_one_of_each(name: str) -> None:
    """The same, without the wait: a family each."""
    test_every_model(name)
