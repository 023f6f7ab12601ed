"""The command line: imports the command that was asked for, and turns its end into an exit code.

This is the one place where errors become lines. What is the user's to mend, or the machine's, is one line; a
fault of the program is a traceback, and a line that asks to report it.
"""

from __future__ import annotations

import os
import platform
import select
import shlex
import sys
import traceback
from contextlib import suppress
from importlib import import_module

from attneck import signals
from attneck.errors import (
    EXPECTED,
    LONGEST,
    UserError,
    brief,
    ending,
    is_first_here,
    is_out_of_memory,
    one_line,
    say,
    suggestion,
)

# Each command is `main(arguments) -> None` in the module of its name under attneck.commands.
COMMANDS = {
    "list": "the models there are",
    "count": "parameters and multiply-adds of a model",
    "papers": "the papers' figures beside what is computed and measured here",
    "train": "train what a recipe says",
    "eval": "top-1, top-5 and error, or AP, of a run, whole and by class",
    "predict": "what a model finds in images: their classes, or objects",
    "look": "where BAM and self-attention look in a photo, as a picture",
    "draw": "a network's stages and what attention is in them, as a picture",
    "study": "train variants of a network by several seeds, and compare",
    "report": "a run's report.html, or several runs side by side",
    "status": "where runs are, told from outside",
    "curves": "loss and error or AP of runs, side by side, as a picture",
    "data": "find a data set and check it",
    "serve": "a page on which attention follows the pointer",
    "bench": "time layers and networks against other implementations",
    "export": "a model as ONNX, a torch.export program, or safetensors",
}


LONGEST_WORD = 4096
"""As long as a path may be."""

BROKEN_PIPE = 141
"""The exit code of a program whose reader, head say, had enough: 128 and SIGPIPE's number."""

ENDING = """attneck COMMAND --help shows its options.

  --version           the version of attneck
  --completion SHELL  a script that completes commands in bash, zsh or fish:
                      attneck --completion bash >> ~/.bashrc

ATTNECK_DATA is the folder with the data sets, where a command is given none;
attneck data where NAME says where a set is looked for."""


def usage() -> str:
    """What `attneck --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: attneck COMMAND …", "", *lines, "", ENDING])


def main(arguments: list[str] | None = None) -> int:
    """Run a command: 0 done, 2 the user's mistake, 128 + N stopped by signal N, 1 the rest."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        signals.watch(" before the first step" if words[:1] == ["train"] else "")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path of any bytes, and × on any terminal, can be printed
            stream.reconfigure(errors="backslashreplace")
    try:
        return answered(words)
    except BrokenPipeError:  # of stderr, as an error was told
        drop_unread()
        return BROKEN_PIPE


def answered(words: list[str]) -> int:
    """`run`, and its end as an exit code; an error is told on stderr."""
    try:
        try:
            run(words)
        except SystemExit as end:  # argument parsers end so after --help, and rich at a broken pipe
            if isinstance(end.__context__, BrokenPipeError):
                drop_unread()
                return BROKEN_PIPE
            if end.code:
                raise
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # a full disk is heard of here, not at Python's end
    except KeyboardInterrupt:  # of a program that calls this one
        say("stopped by SIGINT")
        return 130
    except Exception as error:
        signals.let_end()
        if not isinstance(error, EXPECTED) and not is_out_of_memory(error):
            traceback.print_exc()
            say(report(words))
            return 1
        unread = drop_unread()
        if unread and isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        code, line = ending(error)
        if is_first_here() or getattr(error, "of_one", False) or is_out_of_memory(error):
            say(line)  # once a machine, as another one may lack something else
        return code
    return 0


def run(words: list[str]) -> None:
    """What the words ask for.

    Raises UserError when there is no such command, and what the command raises.
    """
    if any(not word or "\0" in word for word in words):  # an empty path would be the current folder
        raise UserError("an empty word, or one with a NUL character: give a value, or leave the option out")
    if longest := next((word for word in words if len(word) > LONGEST_WORD), None):
        raise UserError(f"{brief(longest)} has {len(longest):,} characters: {LONGEST_WORD:,} at most")
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
    elif words[0] in {"-V", "--version"}:
        from attneck import __version__

        print(f"attneck {__version__}")
    elif words[0] == "--completion":
        from attneck.commands.completion import main as print_script

        print_script(words[1:], COMMANDS)
    elif words[0] not in COMMANDS:
        raise UserError(f"no command {words[0]!r}{suggestion(words[0], list(COMMANDS))} (attneck --help)")
    else:
        import_module(f"attneck.commands.{words[0]}").main(words[1:])


def report(words: list[str]) -> str:
    """The line under a traceback: that it is no mistake of the user's, and what a report needs."""
    from attneck import __version__

    torch = sys.modules.get("torch")
    versions = [f"attneck {__version__}", f"Python {platform.python_version()}"]
    versions += [f"torch {torch.__version__}"] if torch is not None else []
    asked = one_line(shlex.join(["attneck", *words]), LONGEST // 2)
    return (
        "this is a fault of the program, not yours: please report it with the lines above and this one; "
        f"{', '.join(versions)}, {platform.platform()}; command: {asked}"
    )


def drop_unread() -> bool:
    """Write what stdout and stderr still hold, or throw it away: else Python tries at its end, and complains.

    True where one of them has no reader any more.
    """
    unread = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # there is no such stream, or it is no file
            watch = select.poll()
            watch.register(stream.fileno(), 0)
            unread |= any(events & (select.POLLERR | select.POLLHUP) for _, events in watch.poll(0))
            try:
                stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
    return unread
