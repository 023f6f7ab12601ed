"""attneck.hub.save of networks that a script made: timm's, and what surgery did to them or to ours."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import attneck
from attneck import cli, hub
from attneck.commands.given_model import viewer
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
    "attend, bam": lambda model: (attend(model, heads=2, image_size=64), insert_bam(model, image_size=64)),
    "bam, attend": lambda model: (insert_bam(model, reduction=8), attend(model, blocks=(1,))),
    "all": lambda model: [
        one(model, image_size=64) for one in (insert_attention_block, attend, insert_bam, insert_se)
    ],
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
    insert_bam(theirs)
    adopt(theirs)  # finds nothing
    assert hub.describe(theirs)["surgery"]["name"] == "adopt+insert_bam"
    ours = attneck.create_model("cifar_resnet20_bot", num_classes=3, depths=[1, 1, 1])
    insert_bam(ours)
    insert_se(ours)
    for number, (model, side) in enumerate(((theirs, 256), (ours, 32))):
        again = attneck.load(hub.save(lively(model), tmp_path / str(number)))
        x = torch.rand(1, 3, side, side)
        with torch.no_grad():
            assert torch.equal(again(x), model.eval()(x))


def test_the_commands_take_it(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = timm.create_model("resnet18", num_classes=2)
    attend(model, image_size=64)
    insert_bam(model, image_size=64)
    hub.save(model, "net.safetensors", label_names=["cat", "dog"])
    for name in ("cat", "dog"):
        Path("val", name).mkdir(parents=True)
        Image.new("RGB", (90, 70), (200, 30, 90)).save(f"val/{name}/photo.png")
    assert cli.main(["predict", "net.safetensors", "val/cat/photo.png"]) == 0
    assert cli.main(["look", "net.safetensors", "val/cat/photo.png"]) == 0
    assert cli.main(["eval", "net.safetensors", "--data.root", "."]) == 0
    assert cli.main(["export", "net.safetensors", "net.pt2"]) == 0
    assert viewer("net.safetensors").facts["classes"] == ("cat", "dog")  # as attneck serve has it
    model.pretrained_cfg["crop_mode"] = "squash"
    hub.save(model, "squashed.safetensors")
    assert attneck.load("squashed.safetensors").pretrained_cfg["crop_mode"] == "squash"
    assert cli.main(["predict", "squashed.safetensors", "val/cat/photo.png"]) == 2


def test_surgery_goes_on_after_a_load(tmp_path: Any) -> None:
    model = timm.create_model("resnet18", num_classes=3)
    attend(model, blocks=1, image_size=64)
    loaded = attneck.load(hub.save(model, tmp_path / "one.safetensors"))
    insert_bam(loaded, start="paper", image_size=64)
    again, x = attneck.load(hub.save(loaded, tmp_path / "two.safetensors")), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), loaded.eval()(x))
    assert hub.describe(again)["surgery"] == {
        "base": "resnet18",
        "name": "attend+insert_bam",
        "options": {"attend.blocks": 1, "insert_bam.start": "paper"},
    }


def of_two_sizes(model: nn.Module) -> None:
    attend(model, image_size=64)
    insert_bam(model)


def unlike_twice(model: nn.Module) -> None:
    attend(model, stage=-1)
    attend(model, stage=-2)


def scaled(model: Any) -> None:
    """Computes otherwise by what no layer shows."""
    plain = model.forward_head
    model.forward_head = lambda *given, **options: 2 * plain(*given, **options)


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "options": ({"act_layer": nn.SiLU}, None, "its act1 kind is SiLU and would be ReLU"),
    "maps": ({"features_only": True}, None, "FeatureListNet was not made by attneck.create_model, timm or a"),
    "grey": ({"in_chans": 1}, None, "1 tensors .conv1.weight first. are not those of timm/resnet18 any more"),
    "two sizes": ({}, of_two_sizes, "on this ResNet attend for 64×64, insert_bam for 224×224 were done"),
    "twice": ({}, unlike_twice, "on this ResNet attend was done twice with different options"),
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
