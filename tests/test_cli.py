"""The command line: nothing heavy before it is needed, one line and exit code 2 for a mistake."""

import json
import subprocess
import sys

import pytest

from attneck import cli


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["train"],
        ["train", "demo", "--help"],
        ["eval", "--help"],
        ["data", "--help"],
        ["train", "demo", "--model.name", "cifar_resnet2"],
        ["train", "demo", "--modle.name", "x"],
        ["train", "dmeo"],
        ["export", "--help"],
        ["export", "botnte50", "net.onnx"],
        ["export", "botnet50", "net.onxx"],
    ],
    ids=" ".join,
)
def test_needs_no_torch(words):
    """--help and every refusal stay quick because torch (seconds of imports) stays out."""
    program = (
        "import sys\n"
        "from attneck.cli import main\n"
        f"try: code = main({words!r})\n"
        "except SystemExit as end: code = end.code\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip().endswith("False"), done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian", "demo"], "perhaps you meant 'train'"),
        (["train", "dmeo"], "perhaps you meant 'demo'"),
        (["train", "demo", "--model.name", "cifar_resnet21"], "perhaps you meant 'cifar_resnet20'"),
        (
            ["train", "demo", "--modle.name", "x"],
            "unknown option --modle.name; perhaps you meant --model.name",
        ),
        (["train", "demo", "--epochs", "many"], "--epochs 'many': wanted {None}|INT"),
        (["train", "demo", "--epochs"], "Missing value for argument '--epochs'"),
        (["train", "demo", "--epochs", "3", "--epochs", "4"], "--epochs is given more than once"),
        (["train", "demo", "--precision", "float16"], "invalid choice 'float16' for argument '--precision'"),
        (["count"], "missing STR: a name of `attneck list`"),
        (["train", "demo", "--model.options", "bam_dilatoin", "2"], "perhaps you meant 'bam_dilation'"),
        (["train", "demo", "--model.options", "bam_combine", "mean"], "'sum', 'prod', 'max'"),
        (["train", "demo", "--out", "there", "--resume"], "no checkpoint there"),
        (["train", "nowhere", "--resume"], "no recipe 'nowhere'"),
        (["train", "demo", "--batch", "100000"], "larger than the data set"),
        (["train", "--epochs", "3"], "the recipe comes first"),
        (["eval", "nowhere"], "is no run"),
        (["list", "botnte*"], "no model matches"),
        (["data", "check", "folder", "--root", "nowhere"], "nowhere is not a folder"),
        (["data", "where", "shapes", "--root", "nowhere"], "drawn by the program"),
        (["train", ".", "--epochs", "3"], "is no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert said.startswith("attneck: ")


def test_a_folder_of_a_recipes_name_hides_no_recipe(tmp_path, monkeypatch):
    """What `attneck train surgery` reads where data or results lie in surgery/."""
    from attneck.training.recipe import load_recipe

    monkeypatch.chdir(tmp_path)
    wanted = load_recipe("surgery")
    (tmp_path / "surgery").mkdir()
    assert load_recipe("surgery") == wanted
    (tmp_path / "surgery/recipe.yaml").write_text("epochs: 7")
    assert load_recipe("surgery").epochs == 7


def test_list_prints_names_or_json(capsys):
    assert cli.main(["list", "cifar_resnet20*"]) == 0
    names = capsys.readouterr().out.split()
    assert "cifar_resnet20_bam" in names
    assert cli.main(["list", "cifar_resnet20*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == names


def test_data_where_and_check(capsys):
    assert cli.main(["data", "where", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "shapes"
    assert cli.main(["data", "check", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val"] == {"images": 2000, "classes": 10, "size": 32}
