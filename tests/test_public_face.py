"""`import attneck` is light, and gives every name that it promises."""

import subprocess
import sys

import pytest

import attneck
from attneck.commands.recipe_words import parse
from attneck.errors import UserError


@pytest.mark.parametrize("name", attneck.__all__)
def test_every_public_name_is_there(name):
    assert getattr(attneck, name) is getattr(attneck, name)
    assert name in dir(attneck)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        attneck.creat_model  # noqa: B018


def test_importing_it_imports_no_torch():
    program = "import sys, attneck; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_count_reads_as_the_design_has_it():
    counts = attneck.measure.count(attneck.create_model("cifar_resnet20"), 32)
    assert counts.params == sum(p.numel() for p in attneck.create_model("cifar_resnet20").parameters())
    assert counts.params_paper < counts.params
    assert counts.madds > 40e6


def test_a_recipe_by_its_name_is_trained_with_other_fields(tmp_path, monkeypatch):
    asked = []

    def stop(recipe, *rest):
        asked.append(recipe)
        raise KeyboardInterrupt

    monkeypatch.setattr("attneck.runs.train.check_compiler", stop)
    fields = {"epochs": 1, "model.options.bam": "blocks"}
    in_parts = {"epochs": 1, "model": {"options": {"bam": "blocks"}}}
    for given, changes in (("demo", fields), ("demo", in_parts), (None, fields)):
        recipe = given or asked[0].model_copy(update={"epochs": 3})
        with pytest.raises(KeyboardInterrupt):
            attneck.train(recipe, tmp_path / "run", fields=changes)
    words = ["--epochs", "1", "--model.options.bam", "blocks"]
    assert asked == [parse("demo", words).recipe] * 3
    with pytest.raises(UserError, match=r"demo: there is no field 'modle\.name' in a recipe"):
        attneck.train("demo", fields={"modle.name": "x"})
