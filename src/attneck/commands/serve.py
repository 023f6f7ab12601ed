"""attneck serve: a page on which attention follows the pointer, from this machine alone."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import tyro

from attneck import signals
from attneck.commands.arguments import Checkpoint, call
from attneck.commands.given_model import kind_of, only_of_runs, viewer
from attneck.errors import RunFailed, UserError
from attneck.files import told_apart
from attneck.training.recipe_file import is_run

RUNS = Path("runs")
PORT = 8765


def serve(
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    port: int = PORT,
    checkpoint: Checkpoint = "newest",
) -> None:
    """A page in your browser: give it an image, and see where each head of each block looks from the pointer.

    It shows predictions, attention by content and by position, BAM's stages, and two models side by side. It
    answers on this machine alone (127.0.0.1), and what it is given stays there. Ctrl-C ends it.

    Args:
        models: runs' folders, what attneck.hub.save wrote, timm/NAME for timm's weights, or names of `attneck
            list` (untrained); if none is given the newest run in runs/.
        port: where it answers, or the next that is free; 0 for any.
        checkpoint: of runs, the newest, or the best by the recipe's metric.
    """
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: give 1 to {(1 << 16) - 1}, or 0 for any that is free")
    given = models or (_newest_run(),)
    kinds = [kind_of(model) for model in given]
    if "run" not in kinds:
        only_of_runs(given[0], kinds[0], {"--checkpoint": checkpoint != "newest"})

    from attneck.serve.gallery import Gallery
    from attneck.serve.network import Network
    from attneck.serve.server import open_server, serving

    gallery = Gallery(
        [
            Network(viewer(model, None, checkpoint), name)
            for model, name in zip(given, told_apart([*map(Path, given)]), strict=True)
        ]
    )
    stopped = threading.Event()
    with signals.noted(lambda number, frame: stopped.set()) as stop:
        stop.saved = lambda number: f"stopped by {signal.Signals(number).name}"
        server = open_server(gallery, port)
        with serving(server):
            print(f"{server.url}  {', '.join(given)}  (Ctrl-C ends it)", flush=True)
            stopped.wait()
    raise RunFailed(f"stopped by {signal.Signals(stop.signal).name}", 128 + stop.signal)


def _newest_run() -> str:
    """In RUNS, of those that have saved something."""
    saved = [path for path in RUNS.glob("*/checkpoints/step-*.pt") if is_run(path.parents[1])]
    if not saved:
        raise UserError(
            f"no model given, and no run with a checkpoint in {RUNS}/: attneck serve RUN-OR-MODEL…, "
            "attneck serve botnet50 say"
        )
    return str(max(saved, key=lambda path: path.stat().st_mtime).parents[1])


def main(words: list[str]) -> None:
    """Parse and run."""
    call(serve, "attneck serve", words)
