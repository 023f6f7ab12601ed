"""Frozen stages: nothing in them moves, in one process and in several; refused where it can't be meant."""

import json

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.surgery import Adoption
from attneck.tasks.classification import build_classifier
from attneck.training import layers
from attneck.training.recipe import Model, Recipe

TINY = {
    "model": {"name": "timm/test_resnet"},
    "data": {"name": "shapes", "train_size": 16, "val_size": 10, "image_size": 32},
    "batch": 8,
    "epochs": 1,
    "ema": 0.5,
    "checkpoint_steps": 1,
    "optimizer": {"name": "adamw", "lr": 0.01, "freeze": 2, "layer_decay": 0.9},
}


def test_the_parameters_and_norms_of_the_stages():
    net = timm.create_model("resnet18", num_classes=5)
    said = layers.freeze(net, 1)
    frozen = {name.split(".")[0] for name, weight in net.named_parameters() if not weight.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    count = sum(weight.numel() for weight in net.parameters() if not weight.requires_grad)
    assert said.startswith(
        f"frozen: the stem and 1 stages, {count:,} of 11,179,077 parameters (1.4 %), 5 norms"
    )
    layers.to_training(net)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, norm in norms.items():
        assert norm.training == (name.split(".")[0] not in frozen), name
    assert net.layer2[0].training


def test_norms_without_weights_go_with_their_block():
    net = timm.create_model(
        "resnet18", num_classes=5, norm_layer=lambda n, **_: nn.BatchNorm2d(n, affine=False)
    )
    layers.freeze(net, 1)
    layers.to_training(net)
    assert not net.layer1[0].bn1.training
    assert net.layer2[0].bn1.training


def test_blocks_of_a_vision_transformer_are_its_stages():
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    layers.freeze(net, 3)
    frozen = {name for name, weight in net.named_parameters() if not weight.requires_grad}
    blocks = {name.split(".")[1] for name in frozen if name.startswith("blocks.")}
    assert blocks == {"0", "1", "2"}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < frozen
    with pytest.raises(
        ValueError, match=r"optimizer.freeze 13: VisionTransformer has 12 stages, give 0 to 12"
    ):
        layers.freeze(net, 13)
    with pytest.raises(ValueError, match=r"optimizer\.freeze wants a network whose layers have an order"):
        layers.freeze(nn.Linear(2, 2), 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights, as another training has them."""
    file = tmp_path_factory.mktemp("weights") / "net.safetensors"
    torch.manual_seed(5)
    net = timm.create_model("test_resnet", num_classes=10)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
    save_file(net.state_dict(), file)
    return file, net.state_dict()


def test_a_run_leaves_them_as_they_were_loaded(weights, tmp_path, capsys):
    file, before = weights
    wanted = Recipe.model_validate(TINY | {"model": TINY["model"] | {"weights": str(file)}})
    summary = runs.train(wanted, tmp_path / "run")
    said = capsys.readouterr().err
    assert "attneck: frozen: the stem and 2 stages, " in said
    for name, tensor in Run(tmp_path / "run").weights().items():
        frozen = name.split(".")[0] in {"conv1", "bn1", "layer1", "layer2"}
        if frozen:
            assert torch.equal(tensor, before[name]), name
        elif name.endswith("weight") and name != "fc.weight":
            assert not torch.equal(tensor, before[name]), name
    # From the step before the last: the same end.
    newest = tmp_path / "run/checkpoints/step-00000002.pt"
    newest.unlink()
    assert runs.train(wanted, tmp_path / "run", resume=True).weights == summary.weights
    assert json.loads((tmp_path / "run/summary.json").read_text())["weights"] == summary.weights


def test_what_surgery_put_into_frozen_stages_learns(weights, tmp_path):
    file, before = weights
    model = TINY["model"] | {"weights": str(file), "surgery": "insert_bam"}
    runs.train(Recipe.model_validate(TINY | {"model": model, "epochs": 3}), tmp_path / "run")
    after = Run(tmp_path / "run").weights()
    for name, tensor in after.items():
        if name.split(".")[0] in {"conv1", "bn1", "layer1", "layer2"} and ".bam." not in name:
            assert torch.equal(tensor, before[name]), name
    assert after["layer1.bam.gain"].any()
    assert after["layer2.bam.gain"].any()


def test_what_each_of_several_surgeries_put_in_is_not_frozen():
    for name, size, surgery, options in (
        ("resnet18", 32, "attend+insert_bam", {"attend.stage": 1}),
        ("botnet26t_256", 256, "adopt+insert_bam", {}),
    ):
        model = build_classifier(
            Model(name=f"timm/{name}", surgery=surgery, surgery_options=options), 3, size
        )
        frozen = layers.frozen_by(model, 4)
        for report in model.surgery_reports:
            new = set(report.new) & dict(model.named_parameters()).keys()
            assert new
            assert new & frozen == (new if isinstance(report, Adoption) else set())


def test_what_nothing_was_loaded_into_is_not_frozen(weights, tmp_path):
    _, before = weights
    with pytest.raises(
        UserError, match=r"optimizer.freeze keeps .* weights as they were drawn at random, conv1"
    ):
        runs.train(Recipe.model_validate(TINY), tmp_path / "run")
    part = tmp_path / "part.safetensors"
    save_file({name: one for name, one in before.items() if name != "layer2.0.conv2.weight"}, part)
    wanted = TINY | {"model": TINY["model"] | {"weights": str(part)}}
    with pytest.raises(UserError, match=r"freeze keeps 1 weights .* layer2.0.conv2.weight first"):
        runs.train(Recipe.model_validate(wanted), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_distributed_it_waits_for_no_gradient_of_theirs():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = timm.create_model("test_resnet", num_classes=5)
        layers.freeze(net, 1)
        parallel = DistributedDataParallel(net)
        for _ in range(2):
            layers.to_training(parallel)
            parallel(torch.randn(2, 3, 32, 32)).sum().backward()
        assert net.fc.weight.grad is not None
        assert net.layer1[0].conv1.weight.grad is None
        assert not net.layer1[0].bn1.training
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("name", "stages"), [("vgg11", 7), ("resnet18", 4)])
def test_what_surgery_puts_in_moves_no_layer(name, stages):
    """To timm a module of a flat list is a layer of its own."""
    plain = timm.create_model(name, num_classes=5)
    part = Model.model_validate({"name": f"timm/{name}", "surgery": "insert_bam"})
    changed = build_classifier(part, 5, 64)
    before, after = (layers.layer_of(model, "layer_decay") for model in (plain, changed))
    assert {place: after[place] for place in before} == before
    assert len(after) > len(before)
    assert layers.frozen_by(changed, stages) == layers.frozen_by(plain, stages)
    with pytest.raises(ValueError, match=f"has {stages} stages"):
        layers.frozen_by(changed, stages + 1)
