"""attneck.hub.save of networks that a script made: timm's, and what surgery did to them or to ours."""

from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import attneck
from attneck import cli, hub
from attneck.surgery import adopt, attend, insert_attention_block, insert_bam, insert_se


def lively(model: nn.Module) -> nn.Module:
    """With statistics and gains that are not those of a new network."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


DONE = {
    "nothing": lambda model: None,
    "attend": lambda model: attend(model, blocks=range(1, 2), heads=2, position="absolute", image_size=64),
    "bam": lambda model: insert_bam(model, image_size=64),
    "bam in blocks": lambda model: insert_bam(model, at="blocks", start="paper", reduction=4),
    "se": insert_se,
    "a block": lambda model: insert_attention_block(model, image_size=64),
}


@pytest.mark.parametrize("name", DONE)
def test_a_network_of_timm_s_is_loaded_as_it_was_saved(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3)
    DONE[name](model)
    lively(model).train()
    drawn = torch.get_rng_state()
    saved = hub.save(model, tmp_path / "net.safetensors", label_names=["a", "b", "c"])
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    again, x = attneck.load(saved), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model.eval()(x))
    assert hub.describe(again) == hub.describe(model, label_names=["a", "b", "c"])


def test_others_attention_and_our_own_networks_after_surgery(tmp_path: Any) -> None:
    theirs = timm.create_model("botnet26t_256", num_classes=3)
    adopt(theirs)
    ours = attneck.create_model("cifar_resnet20_bot", num_classes=3, depths=[1, 1, 1])
    insert_bam(ours)
    for number, (model, side) in enumerate(((theirs, 256), (ours, 32))):
        again = attneck.load(hub.save(lively(model), tmp_path / str(number)))
        x = torch.rand(1, 3, side, side)
        with torch.no_grad():
            assert torch.equal(again(x), model.eval()(x))


def test_the_commands_take_it(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("resnet18", num_classes=2)
    attend(model, image_size=64)
    hub.save(model, "net.safetensors", label_names=["cat", "dog"])
    Image.new("RGB", (90, 70), (200, 30, 90)).save("photo.png")
    assert cli.main(["predict", "net.safetensors", "photo.png"]) == 0
    assert cli.main(["look", "net.safetensors", "photo.png"]) == 0
    model.pretrained_cfg["crop_mode"] = "squash"
    hub.save(model, "squashed.safetensors")
    assert attneck.load("squashed.safetensors").pretrained_cfg["crop_mode"] == "squash"
    assert cli.main(["predict", "squashed.safetensors", "photo.png"]) == 2


def twice(model: nn.Module) -> None:
    attend(model)
    insert_bam(model)


def scaled(model: Any) -> None:
    """Computes otherwise by what no layer shows."""
    plain = model.forward_head
    model.forward_head = lambda *given, **options: 2 * plain(*given, **options)


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "options": ({"act_layer": nn.SiLU}, None, "its act1 kind is SiLU and would be ReLU"),
    "maps": ({"features_only": True}, None, "FeatureListNet was not made by attneck.create_model, timm or a"),
    "grey": ({"in_chans": 1}, None, "1 tensors .conv1.weight first. are not those of timm/resnet18 any more"),
    "two": ({}, twice, "on this ResNet attend, insert_bam were done, and a config says one"),
    "another forward": ({}, scaled, "timm/resnet18 makes another result of an image than this ResNet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_config_cannot_say_is_refused(case: str, tmp_path: Any) -> None:
    options, operation, says = REFUSED[case]
    model = timm.create_model("resnet18", **options)
    if operation is not None:
        operation(model)
    with pytest.raises(ValueError, match=says):
        hub.save(model, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
