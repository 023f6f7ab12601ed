"""The command line: nothing heavy before it is needed, one line and exit code 2 for a mistake."""

import json
import os
import shlex
import subprocess
import sys
from contextlib import contextmanager

import pytest

from attneck import cli
from attneck.commands import list as list_command
from attneck.errors import UserError
from attneck.models import catalog
from attneck.models.options import FamilyOptions


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in [*cli.COMMANDS, "--version", "--completion", "ATTNECK_DATA"])
    assert max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian", "demo"], "perhaps you meant 'train'"),
        (["train", "dmeo"], "perhaps you meant 'demo'"),
        (["train", "demo", "--model.name", "cifar_resnet20_bm"], "perhaps you meant 'cifar_resnet20_bam'"),
        (
            ["train", "demo", "--modle.name", "x"],
            "unknown option --modle.name; perhaps you meant --model.name",
        ),
        (["train", "demo", "--epochs", "many"], "--epochs 'many': wanted {None}|INT"),
        (["train", "demo", "--epochs"], "Missing value for argument '--epochs'"),
        (["train", "demo", "--epochs", "3", "--epochs", "4"], "--epochs is given more than once"),
        (["train", "demo", "--data.root", "a", "--data.root", "b"], "--data.root is given more than once"),
        (["train", "demo", "--data.root", "a", "--root", "b"], "unknown option --root"),
        (["count", "a", "--foo", "bar"], "unknown option --foo"),  # not the a that is in bar
        (["bench", "bam", "--size", "8", "--batch", "1", "--rounds", "1"], "unknown option --rounds"),
        (["eval", "r", "--root", "a", "--data.root", "b"], "--data.root and --root are one option"),
        (["draw", "botnet50", "--save", "a.svg", "--out", "b.svg"], "--save and --out are one option"),
        (["train", "demo", "--precision", "float16"], "invalid choice 'float16' for argument '--precision'"),
        (["count"], "missing STR: a name of `attneck list`"),
        (["train", "demo", "--model.options", "bam_dilatoin", "2"], "perhaps you meant 'bam_dilation'"),
        (["train", "demo", "--model.options", "bam_combine", "mean"], "'sum', 'prod', 'max'"),
        (["train", "demo", "--out", "there", "--resume"], "no checkpoint there"),
        (["train", "nowhere", "--resume"], "no recipe 'nowhere'"),
        (["train", "demo", "--batch", "100000"], "larger than the data set"),
        (["train", "--epochs", "3"], "the recipe comes first"),
        (["eval", "nowhere"], "no model or run is called 'nowhere'"),
        (["list", "botnte*"], "no model matches"),
        (["data", "check", "folder", "--root", "nowhere"], "nowhere is not a folder"),
        (["data", "where", "shapes", "--root", "nowhere"], "drawn by the program"),
        (["train", ".", "--epochs", "3"], "is no run"),
        (["train", "demo", "--model.name", "regnety_002"], "a network of timm's is timm/NAME"),
        (
            ["train", "demo", "--pictures", "False"],
            "it takes no value; alone it is on, and off with nothing or --no-pictures",
        ),
        (["bench", "inptu"], "'inptu'; perhaps you meant 'input': attneck bench takes attention, bam, step"),
        (["data", "pakc"], "'pakc'; perhaps you meant 'pack': attneck data takes check, where or pack"),
        (["data"], "missing check, where or pack"),
        (
            ["count", "cifar_resnet20", "--options", "bam", "stages", "bam", "blocks"],
            "--options bam is given",
        ),
        (
            ["train", "demo", "--model.options", "depths", "1", "1", "1", "se", "True", "depths", "1"],
            "--model.options depths is given twice",
        ),
        (["train", "demo", "--verbose"], "--verbose names tensors of model.weights or model.pretrained"),
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
    from attneck.training.recipe_file import load_recipe

    monkeypatch.chdir(tmp_path)
    wanted = load_recipe("surgery")
    (tmp_path / "surgery").mkdir()
    assert load_recipe("surgery") == wanted
    (tmp_path / "surgery/recipe.yaml").write_text("epochs: 7")
    assert load_recipe("surgery").epochs == 7


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    from attneck.training.recipe_file import load_recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("epochs: 7")
    with pytest.raises(UserError, match="the recipe has an empty name"):
        load_recipe("")


def test_list_prints_names_or_json(capsys):
    assert cli.main(["list", "cifar_resnet20*"]) == 0
    names = capsys.readouterr().out.split()
    assert "cifar_resnet20_bam" in names
    assert cli.main(["list", "cifar_resnet20*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == names


@pytest.mark.parametrize("name", ["botnet50", "maskrcnn_botnet50", "ssd300_vgg16"])
def test_list_shows_the_options_of_a_model(name, capsys):
    """All that create_model takes, each with its value; and a value that is said can be given."""
    assert cli.main(["list", name, "--options", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    entry = catalog.find(name)
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in entry.options.as_dict().items()
    }
    if entry.task == "detection":
        values = {key: value for key, value in values.items() if key not in FamilyOptions.model_fields}
    assert {row["name"]: row["value"] for row in rows} == values
    assert catalog.find(name, values) == entry
    assert cli.main(["list", name, "--options"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines()[:-2])) <= 80  # and two lines to copy
    assert all(row["help"].endswith(".") and f"  {row['name']} " in told for row in rows)


def test_every_option_of_every_family_has_a_help_text():
    families = {type(entry.options) for entry in catalog.CATALOG.values()}
    assert len(families) == 11
    for family in families:
        for name, field in family.model_fields.items():
            assert field.description, f"{family.__name__}.{name}"


@pytest.mark.parametrize("command", ["list", "eval", "predict", "export", "bench"])
def test_help_breaks_between_words(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_on_a_terminal_of_one_column(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    assert cli.main(["count", "--help"]) == 0
    assert os.environ["COLUMNS"] == "1"
    assert "--num-classes" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (
            {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}]},
            "number ≥ 0, ≤ 1 or None",
        ),
        ({"enum": [8, 16, 32]}, "8, 16, 32"),
        ({"const": "avg"}, "avg"),
        (
            {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
            "4 numbers ≥ 1",
        ),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 4}, "numbers ≥ 1"),
        ({"type": "boolean"}, "True, False"),
    ],
)
def test_an_option_s_type_in_words(about, said):
    assert list_command._type(about) == said


def test_options_are_of_one_model(capsys):
    assert cli.main(["list", "botnet5*", "--options"]) == 2
    assert "matches 4 models, wanted one" in capsys.readouterr().err


def test_on_a_terminal_a_mistake_is_plain_text(capsys, monkeypatch):
    """The parser writes its errors in colour there."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["train", "demo", "--modle.name", "x"]) == 2
    near = "perhaps you meant --model.name (attneck train demo --help)"
    assert capsys.readouterr().err == f"attneck: unknown option --modle.name; {near}\n"


COMMANDS_WITH_OUTPUT = [
    ["--help"],
    ["list"],
    ["list", "--json"],
    ["list", "botnet50", "--options"],
    ["papers"],
    ["papers", "--json"],
    ["count", "botnet50", "--json"],
    ["train", "demo", "--help"],
]


@pytest.mark.parametrize("words", COMMANDS_WITH_OUTPUT, ids=" ".join)
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(words, monkeypatch, capfd):
    with _unread_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(words) == cli.BROKEN_PIPE
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("words", [["train", "dmeo"], ["list", "--jsn"]], ids=" ".join)
def test_an_error_that_nobody_reads(words, monkeypatch):
    with _unread_pipe() as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        assert cli.main(words) == cli.BROKEN_PIPE


def test_a_broken_pipe_that_is_not_the_reader_s_is_told(monkeypatch, capsys):
    import attneck.commands.list

    def fail(words):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(attneck.commands.list, "main", fail)
    assert cli.main(["list"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "local", "error", "told"),
    [
        ("0", "0", UserError("no"), True),
        ("1", "1", UserError("no"), False),  # the first one of this machine says it
        ("8", "0", UserError("no"), True),  # of another machine, which may be the only one
        ("8", "0", PermissionError(13, "no"), True),
        ("9", "1", MemoryError(), True),  # of one GPU, say
    ],
)
def test_an_error_is_told_once_a_machine(rank, local, error, told, monkeypatch, capsys):
    def fail(words):
        raise error

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["list"]) in (1, 2)
    assert bool(capsys.readouterr().err) == told


def test_python_itself_does_not_complain_of_the_pipe():
    """Of a process of its own, what is said at its very end is heard too."""
    attneck = f"{shlex.quote(sys.executable)} -m attneck"
    commands = ["train demo --help | true", "list --jsn 2>&1 | true"]
    script = "".join(f"{attneck} {command}; echo ${{PIPESTATUS[0]}}\n" for command in commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["141", "141"]
    assert done.stderr == ""


@contextmanager
def _unread_pipe():
    """A stream into a pipe whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        yield pipe


def test_data_where_and_check(capsys):
    assert cli.main(["data", "where", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "shapes"
    assert cli.main(["data", "check", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val"] == {"images": 2000, "classes": 10, "size": 32}


def test_networks_of_timms_are_counted(capsys):
    assert cli.main(["count", "timm/resnet10t", "--image-size", "64", "--num-classes", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["image_size"], found["num_classes"]) == ("timm/resnet10t", 64, 5)
    assert found["madds"] - found["madds_no_classifier"] == 512 * 5
    for words, says in (
        (["timm/resnet10z"], "perhaps you meant 'resnet10t'"),
        (["timm/resnet10t", "--options", "pretrained", "True"], "a model's options say how it is made"),
    ):
        assert cli.main(["count", *words]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["ATTNECK_PRODUCTS", "ATTNECK_PASSES", "ATTNECK_ATTENTION"])
def test_a_wrong_environment_variable_is_the_user_s_mistake(variable, tmp_path, monkeypatch, capsys):
    from attneck.attention import choice
    from attneck.attention.cpu import choice as products
    from attneck.attention.cpu import passes

    monkeypatch.setenv(variable, "foo")
    for module, name in ((choice, "_asked"), (products, "_products"), (passes, "_passes")):
        monkeypatch.setattr(module, name, None)
    words = [
        "train",
        "demo",
        "--out",
        str(tmp_path / "run"),
        "--data.train-size",
        "64",
        "--data.val-size",
        "16",
    ]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "foo" in said
    assert variable in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.lock"]  # it can be given again


def test_words_that_are_refused_without_a_word(monkeypatch, capsys):
    """tyro ends so where it has said nothing itself."""

    def ends(*_, **__):
        raise SystemExit(2)

    monkeypatch.setattr("tyro.cli", ends)
    assert cli.main(["count", "botnet50"]) == 2
    assert capsys.readouterr().err == "attneck: words that do not fit (attneck count --help)\n"
