"""Recipes that are broken, hostile or mutated: refused in a line and at once, or they mean what they say."""

import os
import random
import time

import pytest
import yaml
from fault_cases import LONG, some
from hypothesis import given, settings
from hypothesis import strategies as st

from attneck.errors import UserError
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import dump_recipe, load_recipe, parse_recipe, shipped_recipes

SECONDS = 2.0
"""Of processor time, for a machine under load; on a free one a refusal takes a tenth of this."""


def bomb(levels: int, width: int = 9) -> str:
    """A list of lists of lists … by aliases: width ** levels values in a few hundred bytes."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


TEXTS = {
    "alias bomb": bomb(9),
    "alias bomb in milestones": bomb(7) + "\nschedule: {kind: step, milestones: *a6}",
    "alias bomb in options": bomb(8) + "\nmodel: {options: {depths: *a7}}",
    "alias": "reach: &a x\nmodel: {name: *a}",
    "anchor": "epochs: &n 3",
    "anchor on a mapping": "model: &m {name: cifar_resnet20}",
    "alias to itself": "model: &m {options: *m}",
    "merge": "model: {<<: {name: cifar_resnet20}}",
    "deep lists": "reach: " + "[" * 5000,
    "deep lists, closed": "reach: " + "[" * 20000 + "]" * 20000,
    "deep mappings": "{a: " * 3000,
    "deep blocks": "".join(f"{' ' * n}a:\n" for n in range(300)),
    "deep in a row": "- " * 3000 + "x",
    "deep keys": "? " * 3000 + "x",
    "many values": "md5: [" + ", ".join(["x"] * 15000) + "]",
    "many keys": "\n".join(f"k{n}: 1" for n in range(5000)),
    "long word": "reach: " + "x" * 60_000,
    "longer than may be": "reach: x\n" + "# comment\n" * 10_000,
    "megabytes": "reach: x\n" * 300_000,
    "long key": "k" * 30_000 + ": 1",
    "unknown long key": "k" * 3000 + ": {}",
    "key twice": "epochs: 3\nepochs: 4",
    "key twice in a part": "model: {name: cifar_resnet20, name: resnet50}",
    "part twice": "model: {}\nmodel: {}",
    "key twice in options": "model: {options: {heads: 1, heads: 2}}",
    "tag of Python": "reach: !!python/object/apply:os.system ['touch made']",
    "tag of a Python name": "reach: !!python/name:os.system",
    "tag of a Python module": "reach: !!python/module:os",
    "tag of one's own": "model: !mine {name: cifar_resnet20}",
    "tag of a number": "epochs: !!int '3'",
    "tag of a set": "md5: !!set {a, b}",
    "tag of bytes": "reach: !!binary aGVsbG8=",
    "two documents": "epochs: 3\n---\nepochs: 4",
    "an unended quote": 'reach: "x',
    "an unended list": "md5: [x",
    "a tab": "model:\n\tname: cifar_resnet20",
    "a list": "- epochs: 3",
    "a word": "epochs",
    "a number": "3",
    "false": "false",
    "zero": "0",
    "an empty list": "[]",
    "an empty word": "''",
    "a key of a list": "? [a, b]\n: 1",
    "a key of a number": "3: 1",
    "a key of null": "null: 1",
    "a key of true": "true: 1",
    "an option of a number": "model: {options: {1: 2}}",
    "a part of a list": "model: []",
    "a part of null": "model: null",
    "a part of a word": "data: cifar100",
    "a field of a mapping": "epochs: {a: 1}",
    "NUL in a name": 'model: {name: "a\\0b"}',
    "NUL in a path": 'data: {root: "/tmp/a\\0b"}',
    "NUL in an option": 'model: {options: {bam_combine: "a\\0b"}}',
    "NUL in an option's name": 'model: {options: {"a\\0b": 1}}',
    "NUL in weights": 'model: {weights: "\\0"}',
    "half a character": 'reach: "\\ud800"',
    "octal": "epochs: 010",
    "base 60": "epochs: 1:30",
    "base 60 with a point": "optimizer: {lr: 1:30.5}",
    "a date": "reach: 2026-01-01",
    "no date": "reach: 2026-13-45",
    "a time": "reach: 2026-01-01 10:00:00",
    "no time": "reach: 2026-01-01 99:00:00",
    "5,000 digits": "epochs: " + "9" * 5000,
    "5,000 digits of a rate": "optimizer: {lr: " + "9" * 5000 + "}",
    "4,000 digits": "seed: " + "9" * 4000,
    "400 digits": "steps: " + "9" * 400,
    "400 digits of a rate": "optimizer: {lr: " + "9" * 400 + "}",
    "400 digits of an option": "model: {options: {drop_path: "
    + "9" * 400
    + "}, name: cifar_resnet20}\nepochs: x",
    "400 digits in a list": "schedule: {kind: step, milestones: [" + "9" * 400 + "]}",
    "true of epochs": "epochs: true",
    "yes of epochs": "epochs: yes",
    "true of a rate": "optimizer: {lr: true}",
    "true of a share": "optimizer: {momentum: false}",
    "true of a milestone": "schedule: {kind: step, milestones: [true]}",
    "a word of epochs": "epochs: '3'",
    "a point of epochs": "epochs: 3.0",
    "a half of epochs": "epochs: 3.5",
    "no of a name": "model: {name: no}",
    "a batch of 10^12": "batch: 1000000000000",
    "a side of 10^6": "data: {image_size: 1000000}",
    "10^18 epochs": "epochs: 1000000000000000000",
    "10^18 steps": "steps: 1000000000000000000",
    "10^6 workers": "data: {workers: 1000000}",
    "10^12 images": "data: {train_size: 1000000000000}",
    "drawn images of 16,384": "data: {name: shapes, image_size: 16384}",
    "drawn images of 16,384 in training": "data: {name: shapes, image_sizes: [32, 16384]}",
    "10^9 drawn images": "data: {name: shapes, train_size: 1000000000}",
    "10^9 held out": "data: {name: clear_shapes, val_size: 1000000000}",
    "10^6 operations": "data: {name: folder, augment: randaugment, randaugment_layers: 1000000}",
    "10^12 micro-batches": "accumulate: 1000000000000",
    "a seed of 2^64": "seed: 18446744073709551616",
    "a seed of 2^63": "seed: 9223372036854775808",
    "a rate of 10^300": "optimizer: {lr: 1.0e+300}",
    "a factor of 10^300": "data: {name: shapes, augment: scale_jitter, jitter: [0.1, 1.0e+300]}",
    "a milestone of 10^300": "schedule: {kind: step, milestones: [1.0e+300]}",
    "a factor of minus 1": "data: {augment: scale_jitter, jitter: [-1, 2]}",
    "many unknown fields": "\n".join(f"field_{n}: 1" for n in range(500)),
    "a control sequence": 'reach: x\n"\\e[31m": 1',
    "a line break": '"a\\nb": 1',
    "emoji": "😀: 1",
}
BYTES = {
    "UTF-16": "epochs: 3".encode("utf-16"),
    "UTF-16, big end": "epochs: 3".encode("utf-16-be"),
    "UTF-32": "epochs: 3".encode("utf-32"),
    "Latin-1": "reach: Größe".encode("latin-1"),
    "NUL": b"epochs: 3\0",
    "zeros": bytes(1000),
    "bell": b"reach: \x07",
    "escape": b"reach: \x1b[31m",
    "half a character": b"reach: \xe2\x82",
    "a surrogate": b"reach: \xed\xa0\x80",
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04\x95\x10\x00.",
    "JSON, cut": b'{"epochs": 3, "mod',
    "all bytes": bytes(range(256)) * 8,
}
NUMBERS = {
    "optimizer": ("lr", "momentum", "weight_decay", "clip_norm", "lr_batch"),
    "schedule": ("warmup_epochs", "warmup_start", "gamma", "warmup_steps"),
    "data": (
        "image_size",
        "train_size",
        "val_size",
        "workers",
        "randaugment_layers",
        "randaugment_magnitude",
    ),
    "": (
        "epochs",
        "steps",
        "batch",
        "accumulate",
        "label_smoothing",
        "ema",
        "seed",
        "checkpoint_minutes",
        "checkpoint_steps",
        "eval_epochs",
        "steps_batch",
    ),
}
for part, fields in NUMBERS.items():
    for field in fields:
        for value in (
            ".inf",
            "-.inf",
            ".nan",
            "1" + "0" * 30,
            "-1" + "0" * 30,
            "true",
            "[1]",
            "{a: 1}",
            "x",
            "''",
        ):
            inner = f"{field}: {value}"
            TEXTS[f"{part}.{field} {value[:8]}{'…' * (len(value) > 8)}"] = (
                f"{part}: {{{inner}}}" if part else inner
            )


def refused(path: str) -> str:
    """What is said of a recipe that must be refused; as the command line says it."""
    from attneck.errors import ending

    started = time.process_time()
    with pytest.raises((UserError, OSError)) as error:
        load_recipe(path)
    code, line = ending(error.value)
    assert code == 2
    assert len(line.splitlines()) == 1
    assert len(line) <= 500
    assert line.isprintable()
    assert not LONG or time.process_time() - started < SECONDS
    return line


@pytest.mark.parametrize("case", some(TEXTS, 40))
def test_a_text_that_is_no_recipe(case, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(TEXTS[case], encoding="utf-8")
    refused(str(file))
    assert [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("case", some(BYTES, 5))
def test_bytes_that_are_no_recipe(case, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(BYTES[case])
    refused(str(file))


def fifo(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path)


def unreadable(path):
    path.mkdir()
    (path / "recipe.yaml").mkdir()


PLACES = {
    "a pipe": fifo,
    "a symlink loop": loop,
    "a symlink to nothing": lambda path: path.symlink_to("nowhere"),
    "a symlink to a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a folder with a folder": unreadable,
    "nothing": lambda path: None,
}
NAMES = {
    "a device": "/dev/zero",
    "a device, .yaml": "/dev/../dev/zero.yaml",
    "nothing": "",
    "too long": "x" * 5000,
    "too long, .yaml": "x" * 5000 + ".yaml",
    "long path": "x/" * 3000 + "a.yaml",
    "NUL": "a\0b",
    "NUL, .yaml": "a\0b.yaml",
    "a surrogate": "a\udcff.yaml",
    "a line break": "a\nb",
    "emoji": "😀",
    "the folder above": "..",
    "the root": "/",
    "a control sequence": "\x1b[31m.yaml",
    "a URL": "https://example.com/recipe.yaml",
    "a space": " ",
}


@pytest.mark.parametrize("case", some(PLACES, 7))
@pytest.mark.parametrize("suffix", [".yaml", ""])
def test_a_place_that_is_no_recipe(case, suffix, tmp_path):
    path = tmp_path / f"recipe{suffix}"
    PLACES[case](path)
    refused(str(path))


@pytest.mark.parametrize("case", some(NAMES, 16))
def test_a_name_of_no_recipe(case):
    refused(NAMES[case])


@pytest.mark.parametrize(
    "value", [None, 3, 2.5, [], {}, b"\xff", object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_name_of_a_recipe(value):
    """From Python."""
    with pytest.raises((TypeError, ValueError, UserError)) as error:
        load_recipe(value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "# only a comment", "---", "null", "~", "{}"])
def test_an_empty_recipe_is_the_default_one(text, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert load_recipe(str(file)) == Recipe()


# Mutations: of a shipped recipe's text, one at a time.


def mutated(text: str, draw: random.Random) -> str:
    """One random change of a text: of its characters, its lines, or a value."""
    lines = text.splitlines(keepends=True)
    at, line = draw.randrange(len(text)), draw.randrange(len(lines))
    match draw.randrange(9):
        case 0:  # another character
            return text[:at] + chr(draw.choice([*range(32, 127), 0, 9, 10, 233, 0x1F600])) + text[at + 1 :]
        case 1:  # one fewer
            return text[:at] + text[at + 1 :]
        case 2:  # one more
            return text[:at] + draw.choice("{}[]:,-#&*!|>'\"%@`0aN .\t\n") + text[at:]
        case 3:  # cut
            return text[:at]
        case 4:  # a line fewer
            return "".join(lines[:line] + lines[line + 1 :])
        case 5:  # a line twice
            return "".join(lines[: line + 1] + lines[line:])
        case 6:  # two lines change places
            other = draw.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            return "".join(lines)
        case 7:  # another indentation
            lines[line] = draw.choice([" ", "  ", "\t", "- "]) + lines[line]
            return "".join(lines)
        case _:  # another value
            key, colon, rest = lines[line].partition(":")
            values = [
                "1e999",
                "-1",
                "0",
                ".nan",
                "null",
                "[]",
                "{}",
                "yes",
                "''",
                "1_000",
                "0x10",
                "~",
                "*a",
                "&b",
            ]
            lines[line] = f"{key}{colon} {draw.choice(values)}\n" if colon else lines[line] + rest
            return "".join(lines)


def case_of(seed: int) -> str:
    draw = random.Random(seed)
    text = dump_recipe(load_recipe(draw.choice(shipped_recipes())))
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        text = mutated(text or "a", draw)
    return text


@pytest.mark.parametrize("seed", some(range(900), 30))
def test_a_random_mutation_is_refused_in_a_line_or_is_a_recipe(seed, tmp_path):
    """What is a recipe then survives a round trip: it means something."""
    file = tmp_path / "recipe.yaml"
    file.write_text(case_of(seed), encoding="utf-8")
    started = time.process_time()
    try:
        recipe = load_recipe(str(file))
    except UserError:
        refused(str(file))
    else:
        file.write_text(dump_recipe(recipe))
        assert load_recipe(str(file)) == recipe
    assert not LONG or time.process_time() - started < SECONDS


# Properties: any recipe round-trips; a change of one field changes that field alone, or is refused.

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
COUNTS = st.integers(1, 10**6)
RATES = st.floats(0, 1e6, exclude_min=True)
SHARES = st.floats(0, 1, exclude_max=True)
VALUES = st.one_of(st.booleans(), st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9), WORDS)
FIELDS = {
    "reach": WORDS,
    "model.name": WORDS,
    "model.options": st.dictionaries(WORDS, VALUES | st.lists(st.integers(0, 99), max_size=3), max_size=3),
    "model.weights": st.none() | WORDS,
    "model.surgery": st.sampled_from(["none", "attend", "insert_bam+insert_se"]),
    "data.name": st.sampled_from(["shapes", "cifar100", "folder", "coco", "voc2007"]),
    "data.root": st.none() | WORDS,
    "data.image_size": st.none() | st.integers(1, 512),
    "data.train_size": st.none() | st.integers(1, 10_000),
    "data.md5": st.lists(WORDS, max_size=2),
    "data.workers": st.integers(0, 256),
    "optimizer.lr": RATES,
    "optimizer.lr_batch": st.none() | st.integers(1, 4096),
    "optimizer.momentum": SHARES,
    "optimizer.nesterov": st.booleans(),
    "optimizer.weight_decay": SHARES,
    "optimizer.clip_norm": st.none() | RATES,
    "schedule.warmup_epochs": st.floats(0, 1),
    "schedule.warmup_start": SHARES,
    "epochs": st.none() | COUNTS,
    "eval_epochs": COUNTS,
    "batch": st.integers(1, 4096),
    "label_smoothing": SHARES,
    "ema": SHARES,
    "precision": st.sampled_from(["float32", "bfloat16"]),
    "channels_last": st.booleans(),
    "compile": st.booleans(),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "checkpoint_minutes": RATES,
    "checkpoint_steps": st.none() | COUNTS,
}
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.binary(max_size=4),
    st.dates(),
)


def nested(flat: dict[str, object]) -> dict[str, object]:
    """A recipe's content from its fields by dotted name."""
    content: dict[str, object] = {}
    for name, value in flat.items():
        part, _, field = name.rpartition(".")
        (content.setdefault(part, {}) if part else content)[field] = value
    return content


def flat(recipe: Recipe) -> dict[str, object]:
    found = {}
    for name, value in recipe.model_dump().items():
        if isinstance(value, dict):
            found |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            found[name] = value
    return found


CONTENTS = st.fixed_dictionaries({}, optional=FIELDS).map(nested)


@settings(max_examples=300 if LONG else 30, derandomize=True, deadline=None, database=None)
@given(CONTENTS)
def test_any_recipe_survives_a_round_trip_through_its_file(tmp_path_factory, content):
    recipe = parse_recipe(content, "drawn")
    file = tmp_path_factory.getbasetemp() / "drawn.yaml"  # a folder with recipe.yaml is a run
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(file)) == recipe


@settings(max_examples=600 if LONG else 60, derandomize=True, deadline=None, database=None)
@given(CONTENTS, st.sampled_from([*flat(Recipe())]), ANYTHING)
def test_a_change_is_refused_in_a_line_or_is_that_field_alone(content, field, value):
    before = parse_recipe(content, "drawn")
    changed = nested(flat(before) | {field: value})
    try:
        after = parse_recipe(changed, "changed")
    except UserError as refusal:
        said = str(refusal)
        assert len(said.splitlines()) == 1
        return
    differing = {name for name, new in flat(after).items() if new != flat(before)[name]}
    assert differing <= {field}
    new = flat(after)[field]
    assert new == value or str(new) == str(value) or float(new) == float(value)
    assert yaml.safe_load(dump_recipe(after)) == after.model_dump(mode="json")
