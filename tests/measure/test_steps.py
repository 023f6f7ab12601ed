"""The steps that are timed are the same step, whatever form the attention has."""

import pytest
import torch
from torch import nn

from attneck.measure import contestants, steps
from attneck.measure.steps import StepCase


@pytest.mark.parametrize("model", ["botnet26_thin", "maskrcnn_botnet26_thin"])
def test_plain_attention_takes_the_same_step(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    create = steps.create_model
    monkeypatch.setattr(
        steps, "create_model", lambda *a, **k: made.append(lively(create(*a, **k))) or made[-1]
    )
    case = StepCase(model, model.replace("bot", "res"), 128, 2)
    ours, plain, other = steps.step_names(case)
    made.clear()
    for name in (ours, plain, other):
        steps.step_call(case, name, "forward+backward")()
    forms = [sum(isinstance(layer, contestants.PlainMHSA) for layer in network.modules()) for network in made]
    assert forms[1] > 0
    assert forms[0] == forms[2] == 0
    one, same = made[0].state_dict(), made[1].state_dict()  # running statistics, too
    assert one.keys() == same.keys()
    if model.startswith("maskrcnn"):  # its regions follow the last bits, and all weights the regions
        made[1].load_state_dict(one)
        images = torch.rand(1, 3, 128, 128, dtype=torch.float64)
        one, same = (network.double().get_submodule("backbone")(images) for network in made[:2])
    for name in one:
        torch.testing.assert_close(one[name], same[name], rtol=1e-4, atol=1e-5)


def lively(network: nn.Module) -> nn.Module:
    """Its last BatchNorms of branches start at 1: at 0 they hide what attention makes."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
    return network


@pytest.mark.parametrize(
    ("model", "what"), [("cifar_resnet20_bot", ""), ("maskrcnn_botnet26_thin", "backbone")]
)
def test_the_network_is_compiled_and_of_a_detector_its_backbone(
    model: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[nn.Module] = []
    compiled: list[nn.Module] = []
    create = steps.create_model
    monkeypatch.setattr(steps, "create_model", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    case = StepCase(model, model.replace("bot", "res"), 96, 1)
    steps.step_call(case, f"{model}{steps.PLAIN_ATTENTION}{contestants.COMPILED}", "forward+backward")
    assert compiled == [made[0].get_submodule(what)]
    assert any(isinstance(layer, contestants.PlainMHSA) for layer in made[0].modules())


def test_a_network_without_attention_has_no_such_form() -> None:
    assert steps.step_names(StepCase("resnet18_bam", "resnet18", 32, 1)) == ["resnet18_bam", "resnet18"]
