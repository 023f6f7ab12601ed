"""Grad-CAM: against captum's, by hand, and of maps wherever their channels are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attneck
from attneck.explain.gradcam import grad_cam


class Halves(nn.Module):
    """A class is the mean of a channel, times a number of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[0.0, 0, 1], [2, 0, 0]])[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class ChannelsLast(nn.Module):
    """The same network twice: its last map is [B, C, H, W] or [B, H, W, C]."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, 2), last
        self.norm, self.out, self.head = nn.LayerNorm(8), nn.Identity(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        x = self.out(x if self.last else x.permute(0, 3, 1, 2))
        return self.head(x.square().mean((1, 2) if self.last else (2, 3)))


class SharedActivation(nn.Module):
    """One module gives a map, the last one, and then a vector; what comes after the map writes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        self.conv, self.act, self.head = nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.act(self.stem(x))))
        return self.head(self.act(x.add_(1).flatten(2).max(2).values))


class Side(nn.Module):
    """Its last convolution stands beside a shortcut: only what the two sum up to is all that is said."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3), Residual()
        self.side, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        return self.head((x + self.side(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def by_captum(model: nn.Module, layer: nn.Module, image: Tensor, label: int) -> Any:
    from captum.attr import LayerGradCam

    found = LayerGradCam(model, layer).attribute(image[None], target=label, relu_attributions=True)
    return found[0, 0].detach().numpy()


def test_it_is_gradient_times_map() -> None:
    model, image = Halves().eval(), torch.rand(3, 4, 6)
    label, found = grad_cam(model, image)
    assert label == int(model(image[None]).argmax())
    label, found = grad_cam(model, image, 1)
    assert label == 1
    assert found == pytest.approx(((2 * image[0]) / 24).numpy())  # d mean / d map is 1/24, times the map


@pytest.mark.parametrize(
    ("name", "layer"),
    [("cifar_resnet20_bot_bam", "act"), ("resnet26_thin", "layer4"), ("botnet26_thin", "layer4")],
)
def test_as_captum(name: str, layer: str) -> None:
    torch.manual_seed(0)
    model = attneck.create_model(name, num_classes=7, image_size=64).eval().requires_grad_(False)
    image = torch.randn(3, 64, 64)
    found = [grad_cam(model, image, label)[1] for label in range(7)]
    assert max(one.max() for one in found) > 0  # of some classes nothing speaks for it
    for label, one in enumerate(found):
        assert one == pytest.approx(by_captum(model, model.get_submodule(layer), image, label), rel=1e-4)


def test_channels_last() -> None:
    """H = W = C = 8 of the map: nothing tells the axes apart but where they come from."""
    image = torch.randn(3, 17, 17)
    one, other = ChannelsLast(False).eval(), ChannelsLast(True).eval()
    other.load_state_dict(one.state_dict())
    label, found = grad_cam(one, image)
    assert found.shape == (8, 8)
    assert found == pytest.approx(by_captum(one, one.out, image, label), rel=1e-4)
    again = grad_cam(other, image)
    assert again[0] == label
    assert again[1] == pytest.approx(found, rel=1e-4)


def test_the_call_that_gave_the_map() -> None:
    model, image = SharedActivation().eval(), torch.randn(3, 12, 12)
    label, found = grad_cam(model, image)
    values = model.conv(model.stem(image[None]).relu()).relu().detach().requires_grad_()  # [1, 8, 10, 10]
    logits = model.head((values + 1).flatten(2).max(2).values)
    logits[0, label].backward()
    assert values.grad is not None
    by_hand = (values.grad.mean((2, 3), keepdim=True) * values)[0].sum(0).relu()
    assert found == pytest.approx(by_hand.detach().numpy(), rel=1e-4)


def test_a_branch_is_not_the_last_map() -> None:
    model, image = Side().eval(), torch.randn(3, 9, 9)
    label, found = grad_cam(model, image)
    assert found == pytest.approx(by_captum(model, model.block, image, label), rel=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "xcit_nano_12_p16_224"])
def test_tokens_are_no_map(name: str) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no map near its end"):
        grad_cam(timm.create_model(name).eval(), torch.randn(3, 224, 224))


def test_a_segmenter_has_no_class() -> None:
    with pytest.raises(ValueError, match="gives no logits"):
        grad_cam(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)), torch.randn(3, 9, 9))


def test_it_needs_no_gradients_of_its_caller() -> None:
    image = torch.rand(3, 6, 6)
    want = grad_cam(Halves().eval(), image)
    with torch.no_grad():
        got = grad_cam(Halves().eval(), image)
    assert got[0] == want[0]
    assert (got[1] == want[1]).all()
