"""attneck --completion SHELL: a script by which a shell completes commands, options, models and recipes.

The script is whole: no program of ours runs at the press of a key.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import shtab

from attneck.commands.arguments import parser_of
from attneck.errors import UserError, suggestion
from attneck.models.catalog import CATALOG
from attneck.papers.tables import PAPERS
from attneck.studies.study import shipped_studies
from attneck.training.recipe import SURGERIES
from attneck.training.recipe_file import shipped_recipes

SHELLS = ("bash", "zsh", "fish")


def main(words: list[str], commands: Mapping[str, str]) -> None:
    """Print the script for the shell that the words name; `commands`: what each does, by its name."""
    shell = words[0] if words else ""
    if shell not in SHELLS or len(words) > 1:
        near = suggestion(shell, list(SHELLS))
        raise UserError(f"--completion {' '.join(words)}: wanted one of {', '.join(SHELLS)}{near}")
    parser = ArgumentParser("attneck")
    parser.add_argument("--version", action="store_true", help="the version")
    parser.add_argument("--completion", choices=SHELLS, help="a script for a shell")
    below = parser.add_subparsers()
    for name, what in commands.items():
        add(below.add_parser(name, help=what), name)
    print(shtab.complete(parser, shell))


def add(parser: ArgumentParser, name: str) -> None:
    """What a command takes, by its own parser; no torch is imported."""
    models = list(CATALOG)
    # Of these the first word chooses what the others are read by, and is read by itself.
    chosen = {"train": shipped_recipes(), "study": shipped_studies()}.get(name)
    if chosen:
        first: Any = parser.add_argument("first")
        first.complete = one_or_file(name, chosen)
    # What a parser does not know: the words of an option or a place that are more than a kind.
    surgeries = ["none", *SURGERIES]
    named = {"--model.name": models, "--model.surgery": surgeries, "--surgery": surgeries}
    places = {"list": models, "count": models, "export": models, "papers": list(PAPERS)}
    own = parser_of(import_module(f"attneck.commands.{name}").main, (chosen or [])[:1])
    for action in own._actions:
        flags, about = action.option_strings, _sentence(action.help)
        if "--help" in flags:
            continue
        if flags and action.nargs == 0:
            parser.add_argument(*flags, action="store_true", help=about)
            continue
        words = next((named[flag] for flag in flags if flag in named), None)
        if not flags:
            words = places.pop(name, None)
        options = {"nargs": action.nargs, "choices": action.choices or words, "help": about}
        added: Any = parser.add_argument(*(flags or [action.dest]), **options)
        if name == "export" and words == models and not flags:
            added.complete = one_or_file(name, models)
        elif added.choices is None and re.search("PATH|STR", str(action.metavar)):
            added.complete = shtab.FILE


def one_or_file(name: str, words: list[str]) -> dict[str, Any]:
    """One of some words, or a file: shtab has either."""
    known, function = " ".join(words), f"_attneck_{name}_or_file"
    alternatives = f"_alternative 'names:name:({known})' 'files:file:_files'"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"(string split ' ' '{known}'; __fish_complete_path (commandline -ct))",
        "preamble": {
            "bash": f"{function}() {{ compgen -f -W '{known}' -- $1; }}",
            "zsh": f"{function}() {{ {alternatives}; }}",
        },
    }


def _sentence(text: str | None) -> str:
    """The first sentence of a help text, or its first part, without its default."""
    return re.split(r"[.;] | \((?:default|required)", text or "")[0].strip(" .").replace("%", "%%")
