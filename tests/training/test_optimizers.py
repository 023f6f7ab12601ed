"""timm's optimisers: resumed with the same bits, held back from a NaN, refused where a field isn't theirs."""

import io

import pytest
import timm
import torch
from small_run import ALONE, At, Net, Task, digest, recipe, run
from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_layer_decay
from torch import nn

from attneck.errors import RunFailed, UserError
from attneck.models import create_model
from attneck.training import checkpoint, loop
from attneck.training.optimizer import (
    HOLD_BACK,
    make_optimizer,
    parameter_groups,
    restore_optimizer,
    set_rate,
)
from attneck.training.optimizer_names import OptimizerName, fields_of
from attneck.training.recipe import Optimizer
from attneck.training.recipe_file import parse_recipe
from attneck.training.state import _check_optimizer

NAMES = OptimizerName.__args__


def optimizer(name, **more):
    return Optimizer.model_validate({"name": name, "lr": 0.01, **more})


def test_no_nesterov_is_what_others_have() -> None:
    """So another optimiser can be named for a recipe that says so of its SGD."""
    assert not Optimizer(name="adamw", lr=1e-3, nesterov=False).nesterov


@pytest.mark.parametrize("name", NAMES)
def test_the_fields_are_those_that_timm_says(name):
    info, knows = get_optimizer_info(name), fields_of(name)
    assert (knows.momentum, knows.eps) == (info.has_momentum, info.has_eps)
    assert knows.betas == (info.num_betas if info.has_betas else 0)
    assert not info.second_order


def trained(net, made, gradients):
    for gradient in gradients:
        for weight in net.parameters():
            weight.grad = torch.full_like(weight, gradient) * weight.detach().sign()
        made.step()
    return [weight.detach().clone() for weight in net.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_none_clips_by_itself(name):
    """clip_norm alone does, in the loop: what a tensor does is not of another tensor's gradient."""
    found = []
    for share in (1.0, 1000.0):
        torch.manual_seed(0)
        net = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)])
        one, other = net.parameters()
        made = make_optimizer(net, optimizer(name))
        for scale in (1.0, share, 1.0):
            one.grad, other.grad = torch.full_like(one, 0.5), torch.full_like(other, scale)
            made.step()
        found.append(one.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_keeps_is_restored_and_checked(name):
    """After two steps and a restart the third is that of one that went on; and what is kept is as wanted."""
    options = optimizer(name, weight_decay=0.1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2))
    made = make_optimizer(net, options)
    assert made.param_groups[0]["lr"] == 0.01
    trained(net, made, [1.0, -0.5])
    state = made.state_dict()
    _check_optimizer(state, parameter_groups(net, options), options)
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    other = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2))
    other.load_state_dict(net.state_dict())
    again = make_optimizer(other, options)
    restore_optimizer(again, torch.load(buffer, weights_only=True))
    for one, two in zip(trained(net, made, [0.25]), trained(other, again, [0.25]), strict=True):
        assert torch.equal(one, two)
    for harm in (lambda row: row.pop(next(iter(row))), lambda row: row.update(strange=torch.ones(2))):
        broken = {
            **made.state_dict(),
            "state": {n: dict(row) for n, row in made.state_dict()["state"].items()},
        }
        harm(broken["state"][0])
        with pytest.raises(ValueError, match="its optimizer"):
            _check_optimizer(broken, parameter_groups(net, options), options)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "on the device"])
@pytest.mark.parametrize("name", ["adamw", "lamb", "adan"])
def test_a_nan_moves_nothing_and_a_resume_ends_as_an_undisturbed_run(tmp_path, monkeypatch, name, at_once):
    """Also where the device is read late: of adamw a kernel holds the step back, of the others it is read."""
    monkeypatch.setattr(loop, "reads_at_once", lambda device: at_once)
    nets = []
    monkeypatch.setattr("small_run.Net", lambda: nets.append(Net()) or nets[-1])
    wanted = recipe(optimizer={"name": name, "lr": 0.01}, ema=0.5, checkpoint_steps=None)
    run(tmp_path / "whole", wanted, Task(ALONE))
    whole, _, _ = checkpoint.load_latest(tmp_path / "whole/checkpoints")
    with pytest.raises(RunFailed, match=r"step 4 \(epoch 2, batch 1\): .* first that of conv\.weight"):
        run(tmp_path / "broken", wanted, Task(ALONE, "nan", At(3)))
    state, _, _ = checkpoint.load_latest(tmp_path / "broken/checkpoints")
    assert state["step"] == 3
    for weight, tensor in nets[-1].named_parameters():
        assert torch.equal(tensor, state["model"][weight]), weight
    run(tmp_path / "broken", wanted, Task(ALONE), resume=True)
    resumed, _, _ = checkpoint.load_latest(tmp_path / "broken/checkpoints")
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize("name", sorted(HOLD_BACK))
def test_a_fused_kernel_holds_a_step_back(name):
    net = nn.Linear(3, 2)
    made = make_optimizer(net, optimizer(name), fused=True)
    before = trained(net, made, [1.0])
    kept = digest(made.state_dict())
    made.found_inf = torch.ones(())
    assert all(map(torch.equal, trained(net, made, [float("nan")]), before))
    assert digest(made.state_dict()) == kept
    made.found_inf = torch.zeros(())
    assert not any(map(torch.equal, trained(net, made, [1.0]), before))


def test_what_a_network_excludes_by_a_pattern_has_no_decay():
    """As timm reads `no_weight_decay`: XCiT's says pos_embed.*."""
    net = timm.create_model("xcit_nano_12_p16_224", num_classes=5)
    excluded = net.pos_embed.token_projection.weight
    groups = make_optimizer(net, optimizer("adamw", weight_decay=0.1)).param_groups
    (decay,) = [g["weight_decay"] for g in groups if any(p is excluded for p in g["params"])]
    assert decay == 0


@pytest.mark.parametrize("name", ["botnet50", "cifar_resnet50"])
def test_timms_optimisers_leave_position_tables_alone(name):
    """They ask the network, by `no_weight_decay`; what it says is what our own groups spare."""
    options = {"attend": True} if name.startswith("cifar") else {}
    with torch.device("meta"):
        net = create_model(name, num_classes=5, **options)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    made = create_optimizer_v2(net, "adamw", lr=0.1, weight_decay=0.1)
    decayed = [
        {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
        for groups in (made.param_groups, parameter_groups(net, optimizer("adamw", weight_decay=0.1)))
    ]
    tables = {name for name in names.values() if name.endswith(("rel_h", "rel_w"))}
    assert tables
    assert not tables & decayed[0]
    assert decayed[0] == decayed[1]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_layer_decay_is_timms(name, decay_all):
    """Each parameter has the rate and the decay of timm's groups; a transformer's positions have none."""
    net = timm.create_model(name, num_classes=5)
    options = optimizer("adamw", weight_decay=0.1, layer_decay=0.75, decay_all=decay_all)
    made = make_optimizer(net, options)
    set_rate(made, 0.2)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    ours = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    theirs = {
        names[id(p)]: (0.2 * g["lr_scale"], g["weight_decay"])
        for g in param_groups_layer_decay(
            net,
            0.1,
            no_weight_decay_list=() if decay_all else getattr(net, "no_weight_decay", tuple)(),
            layer_decay=0.75,
            weight_decay_exclude_1d=not decay_all,
        )
        for p in g["params"]
    }
    assert ours.keys() == theirs.keys()
    for parameter, (rate, decay) in theirs.items():
        assert ours[parameter][0] == pytest.approx(rate, rel=1e-12), parameter
        assert ours[parameter][1] == decay, parameter
    assert len({rate for rate, _ in ours.values()}) > 5


def test_every_optimiser_decays_the_same_parameters():
    net = timm.create_model("resnet18", num_classes=5)
    decayed = [
        {
            id(p)
            for g in make_optimizer(net, optimizer(name)).param_groups
            if g["weight_decay"]
            for p in g["params"]
        }
        for name in ("sgd", "adamw", "lamb")
    ]
    assert decayed[0] == decayed[1] == decayed[2] != set()


def test_no_position_table_decays():
    """timm's BottleneckAttn has tables of two dimensions, of which its network says nothing."""
    net = timm.create_model("botnet26t_256", num_classes=5)
    groups = parameter_groups(net, optimizer("sgd", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed = [names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]]
    assert len(decayed) > 25
    assert not [name for name in decayed if "pos_embed" in name]


@pytest.mark.parametrize("table", ["pos_embed", "pos_emb", "rel_h", "abs_w", "height_rel"])
def test_a_table_is_known_by_its_name(table):
    net = nn.Module()
    net.register_parameter(table, nn.Parameter(torch.ones(5, 2)))
    net.register_parameter(f"conv_{table}", nn.Parameter(torch.ones(5, 2)))
    spared = [g for g in parameter_groups(net, optimizer("sgd", weight_decay=0.1)) if not g["weight_decay"]]
    assert [p is getattr(net, table) for g in spared for p in g["params"]] == [True]


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "lars"])
def test_momentum_is_the_recipe_s(name):
    (group,) = make_optimizer(nn.Linear(3, 2, bias=False), optimizer(name, momentum=0.7)).param_groups
    assert group["momentum"] == 0.7


def test_no_order_of_layers_is_refused():
    with pytest.raises(
        ValueError, match=r"optimizer\.layer_decay wants a network whose layers have an order"
    ):
        make_optimizer(nn.Linear(2, 2), optimizer("sgd", layer_decay=0.5))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"name": "admw", "lr": 1}, "; perhaps you meant 'adamw'"),
        ({"name": "adamw"}, "optimizer.name adamw is given without optimizer.lr, and 0.1 is SGD's: give one"),
        ({"name": "adamw", "lr": 1, "momentum": 0.8}, "optimizer.momentum: adamw has none, leave it out"),
        ({"name": "lion", "lr": 1, "eps": 1e-6}, "optimizer.eps: lion has none, leave it out"),
        ({"betas": [0.9, 0.99]}, "optimizer.betas: sgd has none, leave it out"),
        ({"name": "adan", "lr": 1, "betas": [0.9, 0.9]}, "optimizer.betas: adan has 3, 2 are given"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay=1.5"),
        ({"freeze": -1}, "optimizer.freeze=-1"),
    ],
)
def test_fields_of_others_are_refused_in_a_line(content, says):
    with pytest.raises(UserError) as error:
        parse_recipe({"optimizer": content}, "source")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_written_recipe_is_read_again():
    """Which names every field, also those of other optimisers at their defaults."""
    wanted = parse_recipe({"optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95]}}, "source")
    assert parse_recipe(wanted.model_dump(mode="json"), "again") == wanted
    made = make_optimizer(nn.Linear(2, 2), wanted.optimizer)
    assert made.param_groups[0]["betas"] == (0.9, 0.95)
