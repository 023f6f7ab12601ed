"""attneck eval: a run's scores on its held-out data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from attneck.errors import UserError


def score(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    root: Annotated[str | None, tyro.conf.arg(name="data.root")] = None,
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Top-1, top-5 and error of a run's newest checkpoint, for its weights (val) and their average (ema).

    Args:
        run: the run's folder.
        root: where the data lies now; as in the run's recipe if not given.
        json_: print one JSON document and nothing else.
    """
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} is no run: there is no recipe.yaml in it (attneck train says where a run is)")

    from attneck.run import evaluate
    from attneck.training.recipe import load_recipe

    data = load_recipe(str(run)).data.model_copy(update={"root": root}) if root else None
    scores = evaluate(run, data)
    if json_:
        print(json.dumps(scores))
        return
    print(f"{scores['model']}, step {scores['step']}, {scores['images']:,} held-out images")
    for prefix, name in (("val", "weights"), ("ema", "their average")):
        if f"{prefix}_top1" in scores:
            top1, top5, error, loss = (scores[f"{prefix}_{key}"] for key in ("top1", "top5", "error", "loss"))
            print(f"{name:14} top-1 {top1:.2f} %  top-5 {top5:.2f} %  error {error:.2f} %  loss {loss:.4f}")


def main(words: list[str]) -> None:
    """Parse and run."""
    tyro.cli(score, prog="attneck eval", args=words)
