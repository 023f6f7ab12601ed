"""The completion scripts, in the shells that they are for."""

import shutil
import subprocess

import pytest

from attneck import cli
from attneck.training.recipe_file import shipped_recipes

# What is on the line, and words that are offered, or are not.
LINES = [
    ("attneck ", [*cli.COMMANDS], []),
    ("attneck li", ["list"], ["train"]),
    ("attneck --c", ["--completion"], ["--version"]),
    ("attneck --completion ", ["bash", "zsh", "fish"], []),
    ("attneck count maskrcnn_botnet5", ["maskrcnn_botnet50", "maskrcnn_botnet50_011"], ["botnet50"]),
    ("attneck train ", shipped_recipes(), ["cifar_resnet20"]),
    ("attneck train demo --model.na", ["--model.name"], []),
    ("attneck train demo --model.name cifar_resnet20_b", ["cifar_resnet20_bam"], ["cifar_resnet20_se"]),
    ("attneck train demo --model.surgery ", ["none", "attend", "insert_bam"], ["demo"]),
    ("attneck draw botnet50 --surgery at", ["attend"], ["none"]),
    ("attneck train demo --precision ", ["float32", "bfloat16"], ["demo"]),
    ("attneck data ", ["check", "where"], ["coco"]),
    ("attneck data check voc", ["voc2007", "voc0712"], ["where"]),
    ("attneck data check coco --no", ["--no-masks"], []),
    ("attneck list botnet50 --o", ["--options"], ["--json"]),
    ("attneck predict run a", ["a photo.jpg", "another.jpg"], []),
    ("attneck curves a.b a", ["a photo.jpg"], []),
    ("attneck export a", ["a photo.jpg"], []),
    ("attneck export cifar_resnet20_b", ["cifar_resnet20_bam"], []),
    ("attneck train a", ["a photo.jpg"], []),
]


def script(shell, capsys):
    assert cli.main(["--completion", shell]) == 0
    return capsys.readouterr().out


def offered(program, folder):
    """What the shell says to each of LINES."""
    (folder / "a photo.jpg").touch()
    (folder / "another.jpg").touch()
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [part.strip("\n").split("\n") for part in done.stdout.split("=\n")[1:]]


def compare(found):
    assert len(found) == len(LINES)
    for (line, wanted, others), words in zip(LINES, found, strict=True):
        assert set(wanted) <= set(words), line
        assert not set(others) & set(words), line


def test_bash(tmp_path, capsys):
    lines = [f'words=({line}); [[ "{line}" == *" " ]] && words+=(""); query' for line, _, _ in LINES]
    query = """query() {
      COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMPREPLY=(); _shtab_attneck
      echo =; printf '%s\\n' "${COMPREPLY[@]}"
    }"""
    compare(offered(["bash", "-c", "\n".join([script("bash", capsys), query, *lines])], tmp_path))


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish(tmp_path, capsys):
    # What it does stands after a tab.
    lines = [f"echo =; complete -C '{line}' | string split -f 1 \\t" for line, _, _ in LINES]
    found = offered(["fish", "-N", "-c", "\n".join([script("fish", capsys), *lines, "true"])], tmp_path)
    compare([[word.replace("\\ ", " ") for word in words] for words in found])


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_finds_the_script(tmp_path, capsys):
    """It offers words only at the press of a key: here it reads the script, as of a folder in fpath."""
    (tmp_path / "_attneck").write_text(script("zsh", capsys))
    reads = "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -d dump; print $_comps[attneck]"
    words = ["zsh", "-fc", f"zsh -n _attneck && {reads}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout) == ("", "_attneck\n")


@pytest.mark.parametrize("words", [[], ["bsh"], ["bash", "zsh"]])
def test_a_shell_that_is_none(words, capsys):
    assert cli.main(["--completion", *words]) == 2
    assert "wanted one of bash, zsh, fish" in capsys.readouterr().err
