"""Several surgeries on one network, as a recipe says them: those of a script, in their order."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from attneck import cli
from attneck.commands.recipe_words import parse
from attneck.errors import UserError
from attneck.layers import BAM, MHSA2d
from attneck.models.weights import StaysRandomWarning, load_matching
from attneck.runs.report.words import in_words
from attneck.runs.run import Run
from attneck.surgery import attend, insert_bam, insert_se
from attneck.tasks.classification import Classification, build_classifier
from attneck.training.recipe import Model
from attneck.training.recipe_file import parse_recipe

BOTH: dict[str, Callable[..., Any]] = {"attend": attend, "insert_bam": insert_bam, "insert_se": insert_se}
CASES = [
    ("resnet18", "attend+insert_bam", {}),
    ("resnet18", "insert_bam+attend", {}),
    (
        "resnet18",
        "attend+insert_bam",
        {"attend.heads": 2, "insert_bam.reduction": 8, "insert_bam.at": "blocks"},
    ),
    ("regnetx_002", "insert_bam+attend", {"attend.stage": -2, "attend.blocks": [1, 3], "attend.heads": 2}),
    ("convnext_atto", "insert_se+insert_bam", {"insert_bam.start": "paper", "insert_se.at": "blocks"}),
]


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


def by_hand(name: str, names: str, options: dict[str, Any]) -> nn.Module:
    model = timm.create_model(name, num_classes=3)
    for function in names.split("+"):
        own = {
            key.partition(".")[2]: value for key, value in options.items() if key.startswith(f"{function}.")
        }
        BOTH[function](model, image_size=64, **own)
    return model


@pytest.mark.parametrize(("name", "names", "options"), CASES)
def test_the_recipe_s_network_is_the_one_made_by_hand(name: str, names: str, options: dict[str, Any]) -> None:
    want = seeded(lambda: by_hand(name, names, options)).train()
    recipe = Model(name=f"timm/{name}", surgery=names, surgery_options=options)
    got: Any = seeded(lambda: build_classifier(recipe, 3, 64)).train()
    assert len(got.surgery_reports) == 2
    assert any(isinstance(module, BAM) for module in got.modules())
    torch.testing.assert_close(got.state_dict(), want.state_dict(), rtol=0, atol=0)
    x = torch.rand(2, 3, 64, 64)
    for model in (got, want):
        with torch.no_grad():  # gains and the last norms of blocks start at zero, and gradients end there
            for parameter in (one for one in model.parameters() if one.ndim == 1):
                parameter.add_(0.1)
        F.cross_entropy(model(x), torch.tensor([0, 2])).backward()
    for (key, one), other in zip(got.named_parameters(), want.parameters(), strict=True):
        assert one.grad is not None, key
        assert torch.equal(one.grad, other.grad), key
    for report in got.surgery_reports:
        assert any(got.get_parameter(key).grad.any() for key in report.new if key.endswith("weight"))


def test_the_order_is_the_names_order() -> None:
    """A block with attention, put in first, is one that cannot attend."""
    stages = {"insert_attention_block.stage": 1, "attend.stage": 1}
    for names in ("attend+insert_attention_block", "insert_attention_block+attend"):
        recipe = Model(name="timm/resnet18", surgery=names, surgery_options=stages)
        if names.startswith("attend"):
            made = build_classifier(recipe, 3, 64)
            assert sum(isinstance(module, MHSA2d) for module in made.modules()) == 3
        else:
            with pytest.raises(ValueError, match=r"'layer2\.bot' cannot attend: it has an MHSA2d already"):
                build_classifier(recipe, 3, 64)


def test_weights_with_the_names_from_before_an_adoption_fill_it() -> None:
    theirs = seeded(lambda: timm.create_model("botnet26t_256", num_classes=3)).eval()
    weights = copy.deepcopy(theirs.state_dict())
    x = torch.rand(1, 3, 256, 256)
    for names in ("adopt+insert_bam", "insert_bam+adopt"):
        made = build_classifier(Model(name="timm/botnet26t_256", surgery=names), 3, 256).eval()
        loaded = Classification.start(made, weights)
        assert not loaded.unused
        with torch.no_grad():  # a BAM that is new changes nothing
            torch.testing.assert_close(made(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_only_what_is_adopted_first_need_not_be_made_for_the_images() -> None:
    for names, options in (("adopt+insert_bam", {}), ("insert_bam+adopt", {"img_size": [64, 64]})):
        made: Any = build_classifier(Model(name="timm/botnet26t_256", surgery=names), 3, 64).eval()
        assert made.origin.options == options
        assert made(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an option of no function": ("attend+insert_bam", {"insert_bam.redction": 8}, "'insert_bam.reduction'"),
    "without its function": (
        "attend+insert_bam",
        {"reduction": 8},
        "perhaps you meant 'insert_bam.reduction'",
    ),
    "of another function": ("attend+insert_bam", {"insert_se.reduction": 8}, "has no option 'insert_se.red"),
    "of one, with its function": ("insert_bam", {"insert_bam.reduction": 8}, "meant 'reduction'"),
    "bam twice": ("insert_bam+insert_bam", {}, "ends in a BAM already"),
    "nothing to adopt": ("attend+adopt", {}, r"attend\+adopt: adopt would change nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_line(case: str) -> None:
    names, options, says = REFUSED[case]
    recipe = Model(name="timm/resnet18", surgery=names, surgery_options=options)
    with pytest.raises(ValueError, match=says) as error:
        build_classifier(recipe, 3, 64)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 450


def test_a_function_that_comes_twice_finds_nothing_new() -> None:
    recipe = Model(name="timm/resnet18", surgery="attend+attend", surgery_options={"attend.blocks": 1})
    with pytest.raises(ValueError, match=r"'layer4\.1' cannot attend: it has an MHSA2d already"):
        build_classifier(recipe, 3, 64)
    again = Model(name="timm/botnet26t_256", surgery="adopt+adopt")
    with pytest.raises(ValueError, match=r"adopt\+adopt: adopt would change nothing"):
        build_classifier(again, 3, 256)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "attned",
            "model.surgery='attned': there is no 'attned' in attneck.surgery; perhaps you meant 'attend'",
        ),
        ("attend+insert_bm", "there is no 'insert_bm' in attneck.surgery; perhaps you meant 'insert_bam'"),
        ("attend+none", "there is no 'none' in attneck.surgery"),
        ("attend+", "there is no '' in attneck.surgery"),
        (
            "attend, insert_bam",
            "give none, adopt, attend, insert_attention_block, insert_bam, insert_se, or several",
        ),
    ],
)
def test_a_name_that_there_is_not_is_refused_in_a_line(given: str, says: str) -> None:
    for refused in (
        lambda: parse_recipe({"model": {"surgery": given}}, "demo"),
        lambda: parse("demo", ["--model.surgery", given]),
    ):
        with pytest.raises(UserError, match=re.escape(says)) as error:
            refused()
        assert "\n" not in str(error.value)
        assert "alue error" not in str(error.value)


def test_words_and_options_of_the_command_line() -> None:
    words = ["--model.surgery", "attend+insert_bam", "--model.surgery-options", "insert_bam.reduction", "8"]
    assert parse("demo", words).recipe.model.surgery_options == {"insert_bam.reduction": 8}
    dotted = ["--model.surgery=attend+insert_bam", "--model.surgery-options.insert_bam.reduction", "8"]
    assert parse("demo", dotted).recipe == parse("demo", words).recipe


def test_a_run_says_each_goes_on_with_the_same_bits_and_leaves(
    tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(
        "train demo --out run --model.name timm/test_resnet --model.options.depths None "
        "--model.surgery attend+insert_bam --model.surgery-options insert_bam.reduction 8 "
        "--data.train-size 32 --data.val-size 10 --batch 8 --epochs 1 --schedule.warmup-epochs 0 "
        "--checkpoint-steps 1"
    )
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert re.search(r": MHSA2d of \d+ channels .*: BAM of \d+ channels", said, re.DOTALL)
    recipe, ended = Run("run").recipe, json.loads(Path("run/summary.json").read_text())["weights"]
    assert recipe.model.surgery_options == {"insert_bam.reduction": 8}
    told = dict(in_words(recipe, {}))["Network"]
    assert "self-attention, then BAM is put into it (insert_bam.reduction 8)" in told
    Path("run/checkpoints/step-00000004.pt").unlink()
    assert cli.main(["train", "run", "--resume"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["weights"] == ended
    assert cli.main(["train", "run", "--resume", "--model.surgery", "insert_bam+attend"]) == 2
    assert "model.surgery: attend+insert_bam → insert_bam+attend" in capsys.readouterr().err
    assert cli.main(["export", "run", "net.safetensors"]) == 0


@pytest.mark.parametrize("function", [insert_bam, insert_se])
def test_what_was_filled_and_stays_switched_off_is_said(function: Any) -> None:
    trained, network = (timm.create_model("resnet18", num_classes=3) for _ in range(2))
    function(trained, start="paper", image_size=32)
    function(network, image_size=32)  # as the identity
    with pytest.warns(StaysRandomWarning, match="filled, and switched off by a gain of 0"):
        load_matching(network, trained.state_dict())
    again = timm.create_model("resnet18", num_classes=3)
    function(again, image_size=32)
    assert load_matching(again, network.state_dict()).warning is None
