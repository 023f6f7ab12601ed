"""Every option of every family does something: the network's result, or what it is made of, is another."""

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attneck.models import create_model, list_models
from attneck.models.catalog import CATALOG, find
from attneck.models.resnet import ResNetOptions
from attneck.models.vit import ViTOptions

# Small networks in which every option has something to act on; and another value for each option.
RESNET: dict[str, Any] = {
    "depths": [2, 2, 2, 2],
    "widths": [16, 16, 16, 32],
    "attend": [0, 1],
    "insert_c4": "non_local",
    "bam": "stages",
    "bam_reduction": 4,
    "se": [2, 5],
}
CIFAR: dict[str, Any] = {
    "depths": [2, 2, 2],
    "block": "bottleneck",
    "order": "pre",
    "bam": "stages",
    "bam_reduction": 4,
    "attend": True,
    "mids": [8, 16, 16],
    "outs": [16, 16, 32],
}
BAM: dict[str, Any] = {
    "bam_reduction": 2,
    "bam_dilation": 2,
    "bam_combine": "max",
    "bam_branches": "spatial",
    "bam_variant": "official",
    "bam_gate": False,
}
HEAD: dict[str, Any] = {"dropout": 0.5, "global_pool": "max", "bn_momentum": 0.5, "bn_eps": 0.1}
ATTENTION: dict[str, Any] = {"heads": 2, "position": "absolute", "content": False, "resample": "keep"}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet50": (
        RESNET,
        {
            "depths": [2, 2, 2, 1],
            "block": {"block": "basic", "attend": []},
            "widths": [16, 16, 16, 16],
            "groups": 2,
            "base_width": 32,
            "stride_on": "1x1",
            "attend": [1],
            "c5_stride": 1,
            "output_stride": 8,
            "insert_c4": "bot",
            "insert_c5": "non_local",
            "nl_value": True,
            "se": [3],
            "se_in_bot": True,
            "shortcut_act": True,
            "activation": "silu",
            "drop_path": 0.5,
            "drop_block": 0.5,
            "bam": "none",
            **BAM,
            **ATTENTION,
            **HEAD,
        },
    ),
    "cifar_resnet20": (
        CIFAR,
        {
            "depths": [2, 2, 1],
            "block": {"block": "basic", "outs": [8, 16, 16]},
            "order": "post",
            "stem": 8,
            "mids": [8, 8, 16],
            "outs": [16, 16, 16],
            "groups": 2,
            "stride_on": "1x1",
            "shortcut": "activated",
            "attend": False,
            "se": True,
            "drop_path": 0.5,
            "bam": "blocks",
            **BAM,
            **ATTENTION,
            **HEAD,
        },
    ),
    "cifar_densenet100": (
        {"depths": [2, 2], "bam": "stages", "bam_reduction": 4},
        {"depths": [3, 2], "growth": 4, "bam": "none", **BAM, **HEAD},
    ),
    "mobilenet": (
        {"alpha": 0.125, "bam": "stages", "bam_reduction": 4},
        {"alpha": 0.25, "output_stride": 16, "bam": "none", **BAM, **HEAD},
    ),
    "squeezenet1_1": (
        {"bam": "stages", "dropout": 0.0},
        {"stem_padding": 1, "pool": "features", "bam": "none", **BAM, **HEAD},
    ),
    "efficientnet_b0": ({}, {"variant": "b1", "drop_path": 0.5, "output_stride": 16, **HEAD}),
    "vit_base_patch16_384": (
        {"width": 16, "depth": 2, "heads": 4},
        {
            "width": 32,
            "depth": 3,
            "heads": 2,
            "patch": 8,
            "drop_path": 0.5,
            "dropout": 0.5,
            "global_pool": "avg",
        },
    ),
}
# Options that go only together with a change of another.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("resnet50", "depths"): {"attend": [1]},
    ("resnet50", "bam"): {"bam_reduction": 16},
    ("resnet50", "shortcut_act"): {"attend": [1]},  # test_resnet.py has it alone
    ("cifar_resnet20", "order"): {"shortcut": "raw"},
    ("cifar_densenet100", "bam"): {"bam_reduction": 16},
    ("mobilenet", "bam"): {"bam_reduction": 16},
}


def fill(model: nn.Module) -> nn.Module:
    """Every parameter by its name alone, so that two networks differ by what they are, not by their luck."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel()
            parameter.copy_(noise * (2 / fan_in) ** 0.5 if parameter.ndim > 1 else 0.5 + 0.2 * noise)
    return model


def result(
    name: str, options: dict[str, Any], image_size: int = 64
) -> tuple[dict[str, torch.Size], Tensor, list[Tensor]]:
    """Shapes of the parameters by name, logits in training at one seed, and what the norms learned.

    The images are of 64 pixels, whatever the network is made for.
    """
    model = fill(create_model(name, num_classes=8, image_size=image_size, **options))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    logits = model(images)
    assert logits.isfinite().all()
    learned = [value for key, value in model.named_buffers() if key.endswith("running_mean")]
    return {key: value.shape for key, value in model.named_parameters()}, logits.detach(), learned


def test_one_number_is_a_list_of_it() -> None:
    """As a command line gives it: --model.options se 5."""
    for options in ({"se": 5}, {"attend": 1}):
        listed = {name: [value] for name, value in options.items()}
        assert find("resnet50", options).options == find("resnet50", listed).options
    with pytest.raises(ValueError, match="depths"):
        find("resnet50", {"depths": 3})
    with pytest.raises(ValueError, match="wanted a list"):
        find("resnet50", {"se": True})


def test_no_option_is_forgotten() -> None:
    families = {type(CATALOG[name].options) for name in list_models()}
    covered = {type(CATALOG[name].options): set(changes) for name, (_, changes) in FAMILIES.items()}
    for family in families:
        without_norms = {"bn_momentum", "bn_eps"} if family is ViTOptions else set()
        of_the_start = {"zero_init_last"} if family is ResNetOptions else set()  # test_resnet.py has it
        assert set(family.model_fields) == covered[family] | without_norms | of_the_start, family
        for option in without_norms:
            with pytest.raises(ValueError, match=f"{option}=0.5 would change nothing"):
                family(**{option: 0.5})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_option_has_an_effect(name: str) -> None:
    base, changes = FAMILIES[name]
    shapes, logits, learned = result(name, base)
    again, same, _ = result(name, base)
    assert again == shapes
    torch.testing.assert_close(same, logits)  # what is compared does not vary by itself
    for option, value in changes.items():
        change = value if isinstance(value, dict) else {option: value} | TOGETHER.get((name, option), {})
        new_shapes, new_logits, new_learned = result(name, base | change)
        if option == "resample":  # on another map
            pair = (result(name, one, 128)[1] for one in (base, base | change))
            assert not torch.allclose(*pair, rtol=1e-4, atol=1e-5)
            continue
        if option == "bn_momentum":
            assert not torch.allclose(new_learned[0], learned[0])
            continue
        assert new_shapes != shapes or not torch.allclose(new_logits, logits, rtol=1e-4, atol=1e-5), option
