"""A command's words become its arguments; words that do not fit are refused in one line."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shutil
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from contextvars import ContextVar
from itertools import takewhile
from typing import Annotated, Any, Literal, TypeVar

import tyro

from attneck.errors import UserError, brief, suggestion

T = TypeVar("T")

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Json = Annotated[Flag, tyro.conf.arg(name="json")]
Checkpoint = Literal["newest", "best"]
Options = dict[str, bool | int | float | str | list[int]]
"""Of a model or of its surgery."""

ALIASES = (("--save", "--out"), ("--data.root", "--root"), ("--data.val-share", "--val-share"))
"""What commands take by both names; a recipe's fields have one."""

BEYOND = (
    r"Error parsing recipe\.(\S+): \d+ validation errors? for \w+ (\S+) (?:Value error, )?(.+?) "
    r"\[type=\w+, input_value=(.+?), input_type"
)
"""What pydantic says of a value that its field cannot have, in tyro's words: part, field, wanted, given."""
LEAST_WIDTH = 20
"""Columns that a help text is laid out for at least."""


def call(command: Callable[..., None], prog: str, words: list[str]) -> None:
    """Call `command` with what `words` say.

    Raises:
        UserError: words that it does not take; and what `command` raises.
    """

    @functools.wraps(command)
    def later(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    parse(later, prog, words)()


def parse(kind: Callable[..., T], prog: str, words: list[str], **options: Any) -> T:
    """What `words` make of `kind`, a function or a dataclass; `options` are `tyro.cli`'s.

    Raises:
        UserError: an unknown option, a value that is missing or does not fit, an option that is given twice.
    """
    if _asking.get():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of tyro 1, until there is a tyro 2
            raise _Answer(tyro.extras.get_parser(kind, prog=prog, **options))
    given = [_flag(word) for word in words if word.startswith("--")]
    if twice := [flag for flag, count in Counter(given).items() if count > 1]:
        raise UserError(f"{twice[0]} is given more than once: give it once, with all of its values")
    if named := _named_twice(words):
        raise UserError(f"{named} is given twice, and one of its values would not count: give it once")
    for one, other in ALIASES:
        if one in given and other in given and not prog.startswith("attneck train"):
            raise UserError(f"{one} and {other} are one option: give one of them")
    told, columns = io.StringIO(), os.environ.get("COLUMNS")
    try:
        if {"-h", "--help"} & set(words):
            # tyro takes all of the memory for a terminal of two columns.
            os.environ["COLUMNS"] = str(max(LEAST_WIDTH, shutil.get_terminal_size().columns))
            options.setdefault("description", _description(kind))
        else:
            os.environ["COLUMNS"] = "10000"  # what is told is read below, and lines would be broken
        with redirect_stderr(told):
            return tyro.cli(kind, prog=prog, args=words, **options)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_line(told.getvalue(), words)} ({prog} --help)") from None
    finally:
        if columns is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = columns


def check_first(prog: str, words: list[str], known: Sequence[str]) -> None:
    """Raises UserError unless the first word is one of `known`, some of which have options of their own."""
    if _asking.get():
        return
    if not words:
        raise UserError(f"missing {', '.join(known[:-1])} or {known[-1]} ({prog} --help)")
    if not words[0].startswith("-") and words[0] not in known:
        raise UserError(
            f"{brief(words[0])}{suggestion(words[0], list(known))}: {prog} takes {', '.join(known[:-1])} or "
            f"{known[-1]} ({prog} --help)"
        )


def _named_twice(words: list[str]) -> str | None:
    """An option of a model that is named twice: its values are a word, or several whole numbers."""
    for place, word in enumerate(words):
        if not re.fullmatch(r"--(model\.)?(surgery[-_])?options", word):
            continue
        left = list(takewhile(lambda one: not one.startswith("--"), words[place + 1 :]))
        names: list[str] = []
        while left:
            name = left.pop(0)
            if name in names:
                return f"{word} {name}"
            names.append(name)
            numbers = list(takewhile(lambda one: re.fullmatch(r"-?\d+", one), left))
            del left[: max(1, len(numbers))]
    return None


def _description(kind: Callable[..., Any]) -> str:
    """The docstring up to its list of arguments, in lines that fit: tyro makes one of a paragraph's.

    It leaves those alone that are indented.
    """
    text = (inspect.getdoc(kind) or "").partition("\nArgs:")[0]
    width = shutil.get_terminal_size().columns
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(textwrap.fill(one, width, subsequent_indent="  ") for one in paragraphs)


def parser_of(main: Callable[[list[str]], None], words: list[str]) -> Any:
    """tyro's parser for a command, much as argparse's; `words` are those that choose it."""
    token = _asking.set(True)
    try:
        main(words)
    except _Answer as answer:
        return answer.parser
    finally:
        _asking.reset(token)
    raise AssertionError("the command read its words otherwise")


class _Answer(Exception):  # noqa: N818 - how `parse` gives it to `parser_of`, whatever is between them
    def __init__(self, parser: Any) -> None:
        super().__init__()
        self.parser = parser


_asking: ContextVar[bool] = ContextVar("_asking", default=False)


def _flag(word: str) -> str:
    """The option that a word names: --a.no-b and --a.b are one."""
    return re.sub(r"(^--|\.)no-", r"\1", word.partition("=")[0].replace("_", "-"))


def _line(box: str, words: list[str]) -> str:
    """What tyro's box of many lines is about."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # where stdout is a terminal it has colours
    rows = [row.strip("╭╮╰╯│─|+ ") for row in plain.splitlines()]  # drawn with +, - and | where it must be
    rows = [row for row in rows if row.strip("-") and not row.startswith("For full")]
    first, *rest = rows[1:] or ["words that do not fit"]  # without the title
    if first.startswith("Unrecognized options: "):
        unknown = first.removeprefix("Unrecognized options: ").rstrip(",").split(", ")
        word = next((word for word in unknown if word.startswith("-")), unknown[0])
        near = [row.split()[0].rstrip(",") for row in rest if row.startswith("--")]
        before = words[words.index(word) - 1] if word in words[1:] else ""
        if word.lower() in ("true", "false") and before.startswith("--"):
            *path, last = _flag(before).removeprefix("--").split(".")
            off = "--" + ".".join([*path, f"no-{last}"])
            return f"{before} {word}: it takes no value; alone it is on, and off with nothing or {off}"
        kind = "unknown option" if word.startswith("-") else "unexpected word"
        return f"{kind} {word}{f'; perhaps you meant {near[0]}' if near else ''}"
    if first.startswith("Error parsing ") and "Argument helptext:" in rest:
        name, _, wanted = rest[rest.index("Argument helptext:") + 1].partition(" ")  # --epochs {None}|INT
        after = words[words.index(name) + 1 :] if name in words else []
        given = takewhile(lambda word: not word.startswith("--"), after)
        return f"{' '.join([name, *map(brief, given)])}: wanted {wanted}"
    if first.startswith("Missing from "):
        return f"missing {': '.join(rest[:2])}".replace(". (required)", "")
    said = " ".join([first, *rest])
    if found := re.search(r"validation error for \w+ Value error, (.*?) \[type=value_error", said):
        return found[1]  # fields that do not go together, in the recipe's own words
    if found := re.match(BEYOND, said):  # as of a field in YAML
        part, field, wanted, value = found.groups()
        return f"{part}.{field}={value}: {wanted[0].lower()}{wanted[1:]}"
    if found := re.match(r"invalid choice '(.*)' for argument '\S+'\. Expected one of (.*)", said):
        return said.rstrip(".") + suggestion(found[1], re.findall(r"'([^']+)'", found[2]))
    return said
