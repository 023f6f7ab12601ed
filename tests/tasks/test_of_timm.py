"""timm's networks on images of a size that they are not made for."""

import pytest
import torch

import attneck
from attneck.errors import UserError
from attneck.tasks.classification import build_classifier
from attneck.training.recipe import Model, Recipe

TINY = {"embed_dim": 12, "depth": 1, "num_heads": 1}


def built(name, size, **options):
    return build_classifier(Model(name=f"timm/{name}", options=options), 5, size)


def test_a_vision_transformer_is_made_for_the_images():
    small = built("vit_tiny_patch16_224", 64, **TINY)
    assert small.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert small.origin.options["img_size"] == [64, 64]
    assert small.pos_embed.shape[1] == 1 + (64 // 16) ** 2
    own = built("vit_tiny_patch16_224", 224, **TINY)
    assert own.origin.options == TINY
    assert own.training
    torch.manual_seed(0)
    one = built("resnet10t", 64).state_dict()
    torch.manual_seed(0)
    other = built("resnet10t", 224).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_attention_of_timms_is_made_for_the_images_or_adopted():
    net = built("botnet26t_256", 64)
    assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert net.stages[3][1].self_attn.pos_embed.height_rel.shape[0] == 3
    adopted = build_classifier(Model(name="timm/botnet26t_256", surgery="adopt"), 5, 64)
    assert "img_size" not in adopted.origin.options
    assert adopted.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_what_takes_no_other_size_is_refused_in_a_line():
    with pytest.raises(
        ValueError, match=r"does not take images of 64x64 pixels \(.*give data.image_size 224"
    ) as error:
        built("vit_tiny_patch16_224", 64, img_size=224, **TINY)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)
    for name, options in (
        ("vit_tiny_patch16_224", {"heads": 3}),
        ("resnet10t", {"output_stride": 4}),
        ("resnet10t", {"global_pool": "nonsense"}),
        ("resnet18.no_such_weights", {}),
    ):
        with pytest.raises(ValueError, match=rf"timm does not make {name} with {{.*}} \(.+\)") as error:
            built(name, 64, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="multiple values for keyword argument 'num_classes'"):
        built("resnet10t", 64, num_classes=7)
    for option in (
        "pretrained",
        "checkpoint_path",
    ):  # of other means, and not in the run
        with pytest.raises(ValueError, match=rf"model.options {option}: .* give model.pretrained NAME"):
            built("resnet10t", 64, **{option: True})


def test_a_run_is_read_back_for_its_own_size_alone(tmp_path):
    recipe = {
        "model": {"name": "timm/vit_tiny_patch16_224", "options": TINY},
        "data": {"name": "shapes", "image_size": 32, "train_size": 4, "val_size": 4},
        "batch": 4,
        "pictures": False,
    }
    attneck.train(Recipe.model_validate(recipe), tmp_path / "run")
    run = attneck.Run(tmp_path / "run")
    assert run.model()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match="for images of 32 pixels alone, and not of 48"):
        run.evaluate(image_size=48)
