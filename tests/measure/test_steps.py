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
    monkeypatch.setattr(steps, "create_model", lambda *a, **k: made.append(create(*a, **k)) or made[-1])
    case = StepCase(model, model.replace("bot", "res"), 128, 2)
    ours, plain, other = steps.step_names(case)
    made.clear()
    for name in (ours, plain, other):
        steps.step_call(case, name, "forward+backward")()
    forms = [sum(isinstance(layer, contestants.PlainMHSA) for layer in network.modules()) for network in made]
    assert forms[1] > 0
    assert forms[0] == forms[2] == 0
    for one, same in zip(made[0].parameters(), made[1].parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-5)


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
