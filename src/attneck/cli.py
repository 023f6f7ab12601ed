"""The command line: imports the command that was asked for, and turns its end into an exit code."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from attneck import signals
from attneck.errors import RunFailed, UserError, suggestion

# Each command is `main(arguments) -> None` in the module of its name under attneck.commands.
COMMANDS = {
    "list": "the models there are",
    "count": "parameters and multiply-adds of a model",
    "papers": "the papers' figures beside what is computed and measured here",
    "train": "train what a recipe says",
    "eval": "top-1, top-5 and error of a run, or a detector's AP",
    "predict": "what a run's detector finds in images",
    "curves": "loss and error or AP of runs, side by side, as a picture",
    "data": "find a data set and check it",
    "bench": "time layers and networks against other implementations",
    "export": "a model as ONNX, a torch.export program, or safetensors",
}


def usage() -> str:
    """What `attneck --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: attneck COMMAND …", "", *lines, "", "attneck COMMAND --help shows its options."]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command: 0 done, 2 the user's mistake, 128 + N stopped by signal N, 1 the rest."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        signals.watch(" before the first step" if words[:1] == ["train"] else "")
    if not words or words[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0
    if words[0] in {"-V", "--version"}:
        from attneck import __version__

        print(f"attneck {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"no command {words[0]!r}{suggestion(words[0], list(COMMANDS))} (attneck --help)")
        import_module(f"attneck.commands.{words[0]}").main(words[1:])
    except (UserError, RunFailed) as error:
        # Of many processes that say the same, one does.
        if os.environ.get("RANK", "0") == "0" or getattr(error, "of_one", False):
            print(f"attneck: {error}", file=sys.stderr)
        return error.code if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:  # of a program that calls this one
        print("attneck: stopped by SIGINT", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, head say, had enough
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
