"""attneck --completion SHELL: a script by which a shell completes commands, options, models and recipes.

The script is whole: no program runs at the press of a key. bash's also serves zsh, through its bashcompinit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from attneck.commands.arguments import parser_of
from attneck.errors import UserError, suggestion
from attneck.models.catalog import CATALOG
from attneck.papers.tables import PAPERS
from attneck.studies.study import shipped_studies
from attneck.training.recipe import SURGERIES
from attneck.training.recipe_file import shipped_recipes

SHELLS = ("bash", "zsh", "fish")


class Value(NamedTuple):
    """What may stand for a word: some words, and files."""

    words: list[str]
    files: bool


class Option(NamedTuple):
    """An option's spellings, what it does, and its value; None for a flag."""

    flags: list[str]
    help: str
    value: Value | None


class Command(NamedTuple):
    """What follows a command's name: words by their place, the last of them again and again; and options."""

    help: str
    words: list[Value]
    many: bool
    options: list[Option]


def main(words: list[str], commands: Mapping[str, str]) -> None:
    """Print the script for the shell that the words name; `commands`: what each does, by its name."""
    shell = words[0] if words else ""
    if shell not in SHELLS or len(words) > 1:
        near = suggestion(shell, list(SHELLS))
        raise UserError(f"--completion {' '.join(words)}: wanted one of {', '.join(SHELLS)}{near}")
    known = {name: command(name, what) for name, what in commands.items()}
    print(fish(known) if shell == "fish" else bash(known, zsh=shell == "zsh"))


def command(name: str, what: str) -> Command:
    """What a command takes, by its own parser; no torch is imported."""
    models = list(CATALOG)
    # Of these the first word chooses what the others are read by, and is read by itself.
    chosen = {"train": shipped_recipes(), "study": shipped_studies()}.get(name, [])
    # What a parser does not know: the words of an option or a place that are more than a kind.
    surgeries = ["none", *SURGERIES]
    named = {"--model.name": models, "--model.surgery": surgeries, "--surgery": surgeries}
    first = {
        "list": Value(models, False),
        "count": Value(models, False),
        "export": Value(models, True),
        "papers": Value(list(PAPERS), False),
    }
    parser = parser_of(import_module(f"attneck.commands.{name}").main, chosen[:1])
    places = [action for action in parser._actions if not action.option_strings]
    words = [_value(action) for action in places]
    if chosen:
        words.insert(0, Value(chosen, True))
    elif name in first:
        words[:1] = [first[name]]
    options = []
    for action in parser._actions:
        if action.option_strings:
            value = None if action.nargs == 0 else _value(action)
            for flag, known in named.items():
                if flag in action.option_strings:
                    value = Value(known, False)
            options.append(Option(list(action.option_strings), _sentence(action.help), value))
    return Command(what, words, any(action.nargs in ("*", "+") for action in places), options)


def _value(action: Any) -> Value:
    choices = [] if action.choices is None else sorted(str(choice) for choice in action.choices)
    return Value(choices, not choices and bool(re.search("PATH|STR", str(action.metavar))))


def _sentence(text: str | None) -> str:
    """The first sentence of a help text, or its first part, without its default."""
    return re.split(r"[.;] | \((?:default|required)", text or "")[0].strip(" .")


def bash(commands: dict[str, Command], zsh: bool = False) -> str:
    """For bash, or for zsh by its emulation of bash's completion."""
    lines = ["# attneck --completion bash >> ~/.bashrc"]
    if zsh:
        lines = [
            "# attneck --completion zsh >> ~/.zshrc",
            "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit",
        ]
    lines += [
        "_attneck() {",
        '  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
        '  local command="${COMP_WORDS[1]}" words="" files=""',
        f'  local models="{" ".join(CATALOG)}"',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    words="{" ".join(commands)} --help --version --completion"',
        '  elif [ "$command" = --completion ]; then',
        f'    words="{" ".join(SHELLS)}"',
        "  else",
        '    case "$command $prev" in',
    ]
    for name, known in commands.items():
        for option in known.options:
            if option.value is not None:
                pattern = "|".join(f'"{name} {flag}"' for flag in option.flags)
                lines.append(f"    {pattern}) {_assigned(option.value)};;")
    lines += ["    *)", '      case "$command $COMP_CWORD" in']
    for name, known in commands.items():
        flags = " ".join(flag for option in known.options for flag in option.flags)
        for place, value in enumerate(known.words, start=2):
            last = place == len(known.words) + 1 and known.many
            lines.append(f'      "{name} "{"*" if last else place}) {_assigned(value)};;')
        lines.append(f'      "{name} "*) words="{flags}";;')
    lines += ["      esac", '      case "$cur" in', "      -*) files=''", '        case "$command" in']
    for name, known in commands.items():
        flags = " ".join(flag for option in known.options for flag in option.flags)
        lines.append(f'        {name}) words="{flags}";;')
    lines += [
        "        esac;;",
        "      esac;;",
        "    esac",
        "  fi",
        "  local IFS=$'\\n'  # a file's name may have a space",
        "  words=\"${words// /$'\\n'}\"",
        '  COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        '  if [ -n "$files" ]; then COMPREPLY+=($(compgen -f -- "$cur")); fi',
        "}",
        "complete -o filenames -F _attneck attneck",
    ]
    return "\n".join(lines)


def _assigned(value: Value) -> str:
    words = "$models" if value.words == list(CATALOG) else " ".join(value.words)
    return f'words="{words}"; files={"1" if value.files else ""}'


def fish(commands: dict[str, Command]) -> str:
    """For fish, with what each word does."""
    lines = [
        "# attneck --completion fish > ~/.config/fish/completions/attneck.fish",
        "function __attneck_in # COMMAND [PLACE [more]]",
        "  set -l words (commandline -opc)",
        "  test (count $words) -gt 1; and test $words[2] = $argv[1]; or return 1",
        "  test (count $argv) -eq 1; or test (count $words) -eq $argv[2]",
        "  or test (count $argv) -eq 3 -a (count $words) -gt $argv[2]",
        "end",
        "complete -c attneck -f",
        "complete -c attneck -n __fish_use_subcommand -l help -d 'the commands'",
        "complete -c attneck -n __fish_use_subcommand -l version -d 'the version'",
        "complete -c attneck -n __fish_use_subcommand -l completion -x -a "
        f"'{' '.join(SHELLS)}' -d 'a script for a shell'",
        f"set -g __attneck_models {' '.join(CATALOG)}",
    ]
    for name, known in commands.items():
        lines.append(f"complete -c attneck -n __fish_use_subcommand -a {name} -d {_quoted(known.help)}")
        for place, value in enumerate(known.words, start=2):
            more = " more" if place == len(known.words) + 1 and known.many else ""
            lines.append(f"complete -c attneck -n '__attneck_in {name} {place}{more}' {_fish_value(value)}")
        for option in known.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag[:2] == "--" else f"-s {flag[1:]}" for flag in option.flags
            )
            takes = "" if option.value is None else f" -r {_fish_value(option.value)}"
            said = _quoted(option.help)
            lines.append(f"complete -c attneck -n '__attneck_in {name}' {flags}{takes} -d {said}")
    return "\n".join(lines)


def _fish_value(value: Value) -> str:
    models = value.words == list(CATALOG)
    words = '"$__attneck_models"' if models else _quoted(" ".join(value.words))
    return " ".join([*([f"-a {words}"] if value.words else []), "-F" if value.files else "-f"])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
