"""`import attneck` is light, and gives every name that it promises."""

import subprocess
import sys

import pytest

import attneck


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
