"""Command lines that nobody meant: one line and exit 2, at once; nothing is written, nothing computed."""

import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_cases import LONG, some

from attneck import cli
from attneck.training.recipe import Recipe

SECONDS = 2.0
"""Of processor time, for a machine under load."""

# Mistakes of every command, to be split as a shell splits them.
TYPED = """
trian demo
TRAIN demo
train/ demo
--train
-x
--modle
😀
count resnet50 --image-size -1
count resnet50 --image-size 0
count resnet50 --image-size 1000000
count resnet50 --image-size 99999999999999999999
count resnet50 --image-size 2.5
count resnet50 --image-size nan
count resnet50 --image-size inf
count resnet50 --image-size ''
count resnet50 --image-size
count resnet50 --image-size 1_000_000
count resnet50 --image-size 224 --image-size 256
count resnet50 --image_size 224 --image-size 256
count resnet50 --num-classes -1
count resnet50 --num-classes 1000000000000
count resnet50 --num-classes many
count resnet50 --num-classes 1e3
count resnet50 --options a
count resnet50 --options heads 0 attend 1
count resnet50 --options depths 3 4 6
count resnet50 --options depths 0 0 0 0
count resnet50 --options drop_path nan
count resnet50 --options drop_path inf
count resnet50 --options nothing 1
count resnet50 --options bam everywhere
count resnet50 --jsn
count resnet50 --json --json
count resnet50 --json yes
count resnet50 resnet18
count resnet51
count 'resnet*'
count ''
count ../resnet50
count --json
count
count 1
count timm/resnet50
count resnet50resnet50resnet50resnet50
list '['
list '[!'
list ''
list a b
list nothing-of-the-kind
list --jason
list --json --json
list '\x1b[31m'
list -1
papers nonsense
papers botnet bam
papers --table nonsense
papers botnet --table nonsense
papers --table ''
papers --table
papers --table 14 --table 15
papers --results nowhere
papers --results /dev/null
papers --jsno
papers ''
data
data check
data where
data chekc shapes
data check nowhere
data check shapes --root /tmp
data check folder --root nowhere
data check folder --root /dev/null
data check cifar100 --root nowhere
data check cifar100 --root ''
data check coco --root nowhere
data check voc2007 --root /proc
data where coco --root nowhere
data check coco --md5 a --root nowhere
data where imagenet
data check shapes clear_shapes
data check shapes --json yes
curves
curves nowhere
curves nowhere --out /tmp
curves nowhere --out .
curves nowhere --out picture
curves nowhere --out picture.exe
curves nowhere --out .png
curves nowhere --out nowhere/curves.png
curves nowhere --out ''
curves nowhere --out
curves . --out curves.svg
curves /dev/null
curves nowhere --oot x.png
curves nowhere --out a.png --out b.png
eval
eval nowhere
eval .
eval /dev/zero
eval ''
eval a b
eval nowhere --data.root ''
eval nowhere --root /tmp
predict
predict nowhere
predict nowhere image.png
predict nowhere --held-out -1
predict nowhere --held-out many
predict nowhere --held-out 2.5
predict nowhere image.png --min-score 2
predict nowhere image.png --min-score nan
predict nowhere image.png --min-score inf
predict nowhere image.png --min-score -0.1
predict nowhere image.png --min-score high
predict nowhere image.png --out ''
predict nowhere image.png --beside ''
predict nowhere image.png --beside nowhere2
predict '' image.png
export
export botnet50
export botnet51 net.onnx
export botnet50 net.onxx
export botnet50 net.onnx more
export botnet50 ''
export botnet50 net.onnx --image-size 0
export botnet50 net.onnx --image-size -5
export botnet50 net.onnx --batch 0
export botnet50 net.onnx --batch x
export botnet50 net.onnx --opset 3
export botnet50 net.onnx --opset x
export botnet50 net.onnx --dynamic nothing
export botnet50 net.safetensors --opset 18
export botnet50 nowhere/net.onnx
export nowhere/run net.onnx
export . net.onnx
export botnet50 net.onnx --raw
bench
bench nothing
bench attention --size 0
bench attention --size -1
bench attention --size 1000000
bench attention --size 16000
bench attention --size 14 --batch 0
bench attention --size 14 --batch 1000000000000
bench attention --size 14 --channels 1000000000
bench attention --size 14 --channels 0
bench attention --size 14 --dtype float3
bench attention --size 14 --dtype int8
bench attention --size 14 --stride 3
bench attention --size 14 --device tpu
bench attention --size 14 --seconds 0
bench attention --size 14 --seconds -1
bench attention --size 14 --seconds nan
bench attention --size 14 --seconds inf
bench attention --size 14 --seconds 1e9
bench attention --size 14 --seconds long
bench attention --size 14 --out nowhere/bench.json
bench attention --size 14 --out .
bench attention --size 14 --out ''
bench attention --threads 100000
bench attention --threads 0
bench attention --threads -1
bench attention --threads 1000000000000
bench attention --threads all
bench attention --batch 4
bench attention --channels 64
bench bam --size 1000000
bench bam --size 16000 --batch 1000
bench step --size 1000000
bench step --size 16000 --batch 10000
bench step --model resnet50
bench attention --compiled --no-compiled
bench attention --compield
train demo --modle.name x
train demo --mdoel x
train demo --model.nmae x
train demo --model.name
train demo --model.name cifar_resnet21
train demo --model.weights nowhere.safetensors
train demo --model.weights nowhere/run
train demo --model.name ''
train demo --model.name 'a b'
train demo --model.options bam_dilatoin 2
train demo --model.options bam_dilation
train demo --model.options bam_dilation 0
train demo --model.options bam_dilation two
train demo --model.options bam_combine mean
train demo --model.surgery transplant
train demo --model.surgery attend+transplant
train demo --model.surgery attend+
train demo --model.surgery none+attend
train demo --epochs
train demo --epochs 0
train demo --epochs -1
train demo --epochs 1.5
train demo --epochs many
train demo --epochs inf
train demo --epochs nan
train demo --epochs 1e3
train demo --epochs 1000000000000000000
train demo --epochs 3 --epochs 4
train demo --epochs=3 --epochs=4
train demo --epochs 3 4
train demo --epoch 3
train demo --steps 10
train demo --steps 0 --epochs None
train demo --batch 0
train demo --batch -128
train demo --batch 1000000000000
train demo --batch 10 --accumulate 3
train demo --accumulate 0
train demo --accumulate 1000000000000
train demo --optimizer.lr 0
train demo --optimizer.lr -1
train demo --optimizer.lr nan
train demo --optimizer.lr inf
train demo --optimizer.lr 1e400
train demo --optimizer.lr 1e300
train demo --optimizer.lr fast
train demo --optimizer.lr
train demo --optimizer.lr 0.1 --optimizer.lr 0.2
train demo --optimizer.momentum 1
train demo --optimizer.momentum nan
train demo --optimizer.weight-decay inf
train demo --optimizer.weight-decay -1
train demo --optimizer.clip-norm 0
train demo --optimizer.clip-norm nan
train demo --optimizer.nesterov --optimizer.no-nesterov
train demo --schedule.kind linear
train demo --schedule.kind step
train demo --schedule.milestones 1
train demo --schedule.kind step --schedule.milestones 2 1
train demo --schedule.kind step --schedule.milestones inf
train demo --schedule.kind step --schedule.milestones nan
train demo --schedule.warmup-epochs 1000
train demo --schedule.warmup-epochs nan
train demo --schedule.warmup-start 2
train demo --schedule.gamma 0.5
train demo --data.name nothing
train demo --data.image-size 0
train demo --data.image-size 1000000
train demo --data.image-size 16000
train demo --data.train-size 1000000000000
train demo --data.val-size -1
train demo --data.workers 1000000
train demo --data.workers -1
train demo --data.augment mixup
train demo --data.jitter 1
train demo --data.jitter nan nan
train demo --data.train-split test
train demo --label-smoothing 1
train demo --label-smoothing nan
train demo --ema 1
train demo --ema nan
train demo --precision float16
train demo --precision 32
train demo --seed 1.5
train demo --seed 100000000000000000000
train demo --checkpoint-minutes 0
train demo --checkpoint-minutes nan
train demo --checkpoint-steps 0
train demo --processes 0
train demo --processes -1
train demo --processes 100000
train demo --processes two
train demo --processes 2 --batch 15
train demo --processes
train demo --out ''
train demo --out
train demo --out a --out b
train demo --resume yes
train demo --resmue
train demo --channels-last yes
train demo --channels-last --no-channels-last
train demo extra
train demo -e 3
train demo - x
train demo --model
train demo --model '{name: x}'
train dmeo
train ''
train ' '
train .
train ..
train /
train /dev/zero
train /dev/null
train nowhere.yaml
train nowhere/recipe.yaml
train https://example.com/recipe.yaml
train 😀
train --epochs 3
train --epochs
train -x
train demo.yaml
train nowhere --resume
"""
LINES = {line: shlex.split(line) for line in TYPED.split("\n") if line}
LINES |= {
    "a NUL in a path": ["train", "demo", "--out", "a\0b"],
    "a NUL in a command": ["li\0st"],
    "a NUL in a recipe": ["train", "a\0b"],
    "a NUL in a pattern": ["list", "\0"],
    "surrogates in a command": ["\udcff\udcfe"],
    "surrogates in a recipe": ["train", "\udcff.yaml"],
    "surrogates in a value": ["train", "demo", "--model.name", "\udcff"],
    "surrogates in a number": ["train", "demo", "--epochs", "\udcff"],
    "surrogates in an option": ["train", "demo", "--\udcff", "1"],
    "surrogates in a pattern": ["list", "\udcff"],
    "surrogates in a run": ["eval", "\udcff"],
    "surrogates in a model": ["count", "\udcff"],
    "surrogates of a recipe's words": ["train", "demo", "--reach", "\udcff"],
    "a path too long": ["curves", "nowhere", "--out", "x" * 5000 + ".png"],
    "a run too long": ["eval", "x" * 5000],
    "a path of many folders": ["eval", "x/" * 3000],
    "a recipe too long": ["train", "x" * 5000],
    "a command too long": ["x" * 100_000],
    "an option too long": ["train", "demo", "--" + "x" * 100_000],
    "a word too long": ["train", "demo", "x" * 100_000],
    "a value too long": ["train", "demo", "--epochs", "x" * 100_000],
    "a number too long": ["train", "demo", "--epochs", "9" * 5000],
    "a rate too long": ["train", "demo", "--optimizer.lr", "9" * 5000],
    "a name too long": ["train", "demo", "--model.name", "x" * 100_000],
    "a pattern too long": ["list", "x" * 100_000],
    "a pattern of brackets": ["list", "[" * 10_000],
    "a model too long": ["count", "x" * 100_000],
    "many words": ["list", *["a"] * 5000],
    "many options": ["train", "demo", *[f"--a{n}" for n in range(300)]],
    "many option pairs": ["count", "resnet50", "--options", *[str(n) for n in range(1000)]],
    "a line break": ["list", "a\nb"],
    "a line break in an option": ["train", "demo", "--a\nb"],
    "a line break in a value": ["train", "demo", "--epochs", "a\nb"],
    "a line break in a run": ["eval", "a\nb"],
    "a control sequence": ["list", "\x1b[31mred"],
    "a control sequence in a run": ["eval", "\x1b[31mred"],
    "a box": ["train", "demo", "--epochs", "│ ─── │"],
    "markup": ["train", "demo", "--epochs", "[bold]x[/bold]"],
    "right to left": ["train", "demo", "--epochs", "\u202e3"],
}


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Runs a command line that must be refused, in an empty folder; gives the line that was said."""

    def run(words, codes=(2,)):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ATTNECK_DATA", str(tmp_path / "no-data"))
        capsys.readouterr()
        started = time.process_time()
        try:
            code = cli.main(words)
        except SystemExit as end:
            code = end.code
        took = time.process_time() - started
        said = capsys.readouterr()
        assert code in codes, said.err
        assert said.out == "" or code == 0
        assert len(said.err.splitlines()) == (code != 0), said.err
        assert len(said.err) <= 510
        assert said.err.rstrip("\n").isprintable()
        assert [*tmp_path.iterdir()] == []
        assert not LONG or took < SECONDS
        return said.err

    return run


@pytest.mark.parametrize("case", some(LINES, 60))
def test_a_mistake_is_one_line_and_exit_2(case, say, monkeypatch):
    import attneck.runs.train

    def never(*args, **options):
        raise AssertionError("it trains")

    if "--resume" not in LINES[case]:
        monkeypatch.setattr(attneck.runs.train, "train", never)
    assert say(LINES[case]).startswith("attneck: ")


def test_no_refusal_imports_torch(tmp_path):
    """That would take seconds. What only a data set or a checkpoint says may."""
    quick = {
        name: words
        for name, words in LINES.items()
        if words[:1] != ["data"] and words[:2] != ["bench", "step"] and "--resume" not in words
    }
    program = (
        "import os, sys\n"
        "from attneck.cli import main\n"
        f"for name, words in {dict(some(quick.items(), 150))!a}.items():\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "    if 'torch' in sys.modules: sys.exit('torch was imported by ' + ascii(name))\n"
    )
    file = tmp_path / "program.py"  # too long for an argument
    file.write_text(program)
    there = {"env": os.environ | {"ATTNECK_DATA": "nowhere"}, "cwd": tmp_path}
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False, **there)
    assert done.returncode == 0, done.stderr[-500:]
    assert "Traceback" not in done.stderr


# Fuzz: command lines that are right, with a few random changes.

RIGHT = [
    ["train", "demo", "--epochs", "3", "--batch", "64", "--optimizer.lr", "0.05", "--out", "there"],
    [
        "train",
        "demo",
        "--model.options",
        "bam_dilation",
        "2",
        "--precision",
        "bfloat16",
        "--no-channels-last",
    ],
    ["train", "coco-1x", "--steps", "10", "--schedule.warmup-steps", "0", "--data.jitter", "0.5", "2"],
    [
        "train",
        "cifar100-lab",
        "--data.workers",
        "2",
        "--ema",
        "0.9",
        "--seed",
        "3",
        "--label-smoothing",
        "0.1",
    ],
    [
        "train",
        "demo",
        "--schedule.kind",
        "step",
        "--schedule.milestones",
        "1",
        "2",
        "--data.train-size",
        "640",
    ],
    ["list", "botnet*", "--json"],
    ["count", "nothing", "--image-size", "256", "--num-classes", "10", "--options", "heads", "2", "--json"],
    ["papers", "nothing", "--table", "14", "--json"],
    ["curves", "nowhere", "--out", "curves.png"],
    ["eval", "nowhere", "--data.root", "data", "--json"],
    ["predict", "nowhere", "image.png", "--held-out", "2", "--min-score", "0.5", "--out", "there"],
    ["data", "where", "coco", "--root", "nowhere", "--json"],
    [
        "export",
        "nothing",
        "net.onnx",
        "--image-size",
        "64",
        "--batch",
        "2",
        "--dynamic",
        "batch",
        "--opset",
        "18",
    ],
    [
        "bench",
        "nothing",
        "--size",
        "14",
        "--batch",
        "2",
        "--seconds",
        "0.5",
        "--no-compiled",
        "--out",
        "b.json",
    ],
]
ODD = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1_0",
    "0x10",
    "9" * 30,
    "9" * 5000,
    "None",
]
ODD += [
    "True",
    "[",
    "{}",
    "*",
    "😀",
    "\udcff",
    "\0",
    "\n",
    "\x1b[2J",
    "=",
    "--=",
    "--x=",
    "--json",
    "--help=1",
    "..",
    "/",
]
ODD += [
    "x" * 3000,
    "é",
    "ＡＢＣ",
    "٣",
    "--out=",
    "~",
    "$HOME",
    "%s",
    "{0}",
    "\\",
    "'",
    '"',
    "null",
    "--no-",
    "/dev/null",
]


def changed(seed: int) -> list[str]:
    draw = random.Random(seed)
    words = list(draw.choice(RIGHT))
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randrange(len(words))
        match draw.randrange(7):
            case 0:
                words[at] = draw.choice(ODD)
            case 1:
                words.insert(at, draw.choice(ODD))
            case 2:
                words.insert(at, words[draw.randrange(len(words))])
            case 3 if len(words) > 1:
                del words[at]
            case 4:  # a slip of the finger
                place = draw.randrange(len(words[at]) + 1)
                words[at] = words[at][:place] + chr(draw.randrange(32, 127)) + words[at][place + 1 :]
            case 5 if len(words[at]) > 1:  # two letters change places
                place = draw.randrange(len(words[at]) - 1)
                a, b = words[at][place : place + 2]
                words[at] = words[at][:place] + b + a + words[at][place + 2 :]
            case _:
                other = draw.randrange(len(words))
                words[at], words[other] = words[other], words[at]
    return [word for word in words if word not in {"-h", "--help"}]


@pytest.mark.parametrize("seed", some(range(1200), 60))
def test_a_random_command_line_is_refused_in_a_line_or_means_something(seed, capsys, tmp_path, monkeypatch):
    """Training and downloads are stubbed at the last moment: a recipe that comes so far is one."""
    import attneck.commands.train
    import attneck.runs.train

    reached = []

    class Done:
        folder, steps, weights, best, early = Path("there"), 1, "0", None, False

    def stub(recipe, out, **options):
        reached.append(recipe)
        return Done

    monkeypatch.setattr(attneck.runs.train, "train", stub)
    monkeypatch.setattr(attneck.commands.train, "launch", lambda words, processes: reached.append(Recipe()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNECK_DATA", str(tmp_path / "no-data"))
    started = time.process_time()
    try:
        code = cli.main(changed(seed))
    except SystemExit as end:
        code = end.code
    took = time.process_time() - started
    said = capsys.readouterr()
    if code == 0:
        assert said.err == ""
        assert all(isinstance(recipe, Recipe) for recipe in reached)
    else:
        assert code == 2, said.err
        assert len(said.err.splitlines()) == 1, said.err
        assert len(said.err) <= 510
        assert said.err.rstrip("\n").isprintable()
        assert not LONG or took < SECONDS
    assert [*tmp_path.iterdir()] == []


def test_a_fault_of_the_program_is_a_traceback_and_a_line_that_asks_for_a_report(capsys, monkeypatch):
    import attneck.commands.list

    def broken(words):
        raise ZeroDivisionError("of the program")

    monkeypatch.setattr(attneck.commands.list, "main", broken)
    assert cli.main(["list", "botnet*"]) == 1
    *before, last = capsys.readouterr().err.splitlines()
    assert before[0].startswith("Traceback")
    assert "ZeroDivisionError: of the program" in before[-1]
    assert last.startswith("attneck: this is a fault of the program")
    for part in ("attneck 0.", "Python 3.", "attneck list 'botnet*'"):
        assert part in last


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (FileNotFoundError(2, "No such file or directory", "a/b"), 2, "a/b: No such file or directory"),
        (PermissionError(13, "Permission denied", "a"), 2, "a: Permission denied"),
        (OSError(28, "No space left on device", "a"), 1, "a: No space left on device"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(36, "File name too long", "a" * 5000), 2, "File name too long"),
        (ConnectionError("no route to huggingface.co"), 1, "no route to huggingface.co"),
        (MemoryError(), 1, "out of memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
            ),
            1,
            "out of memory",
        ),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_a_line(error, code, says, capsys, monkeypatch):
    import attneck.commands.list

    def refuse(words):
        raise error

    monkeypatch.setattr(attneck.commands.list, "main", refuse)
    assert cli.main(["list"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert len(line) <= 510


@pytest.mark.parametrize(
    ("command", "code", "lines"),
    [
        ("list > /dev/full", 1, 1),
        ("list --json > /dev/full", 1, 1),
        ("--help > /dev/full", 1, 1),
        ("list | head -n 1", 0, 0),
        ("list >&-", 0, 0),
        ("list $'\\xff'", 2, 1),
        ("data where coco --root $'.\\xff'", 2, 1),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii attneck --help", 0, 0),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_of_a_shell(command, code, lines, tmp_path):
    """What only a process of its own shows: of its streams, and of bytes that are no text."""
    attneck = f"{shlex.quote(sys.executable)} -m attneck"
    script = command.replace("attneck", attneck) if "attneck" in command else f"{attneck} {command}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert "Traceback" not in done.stderr
