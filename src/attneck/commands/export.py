"""attneck export: a model as a file for elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from attneck import export as exporting
from attneck.commands.arguments import Checkpoint, Flag, Json, call
from attneck.commands.given_model import kind_of, load, only_of_runs
from attneck.commands.progress import tell
from attneck.errors import RunFailed, UserError
from attneck.runs.provenance import recipe_name


def write(
    model: Annotated[str, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    /,
    image_size: int | None = None,
    batch: int = 1,
    dynamic: tuple[Literal["batch", "size"], ...] | None = None,
    opset: Literal[18, 20, 23] | None = None,
    raw: Flag = False,
    recalibrate: int | None = None,
    root: Annotated[str | None, tyro.conf.arg(name="data.root", aliases=["--root"])] = None,
    checkpoint: Checkpoint = "newest",
    json_: Json = False,
) -> None:
    """A model as a file for elsewhere: ONNX, a torch.export program, or weights.

    ONNX and programs are compared with the model itself before they are written, and the differences shown.
    They have its classes, and what images it wants, as metadata. A detector's graph takes one image of any
    size. A run's folder of weights has a model card.

    Args:
        model: a run's folder, what attneck.hub.save wrote, timm/NAME for timm's weights, or a name of
            `attneck list` (untrained).
        file: .onnx; .pt2 for torch.export; .safetensors for the weights with what makes their model; a name
            without an ending for the same as a folder, laid out as on the Hugging Face Hub.
        image_size: side in pixels; the one that the model was made for if not given.
        batch: images at once, in a graph that does not leave it open.
        dynamic: what a graph leaves open: batch, size; both if neither is named.
        opset: of ONNX; 18 if not given.
        raw: a run's weights themselves, where it keeps their moving average too.
        recalibrate: of a run's classifier, with BatchNorm statistics of so many of its training images, of
            --image-size: 2000 say. attneck eval --recalibrate says what that gives.
        root: for --recalibrate, where the data lies now, if elsewhere than the recipe says.
        checkpoint: a run's newest, or its best by the recipe's metric.
        json_: print one JSON document and nothing else.
    """
    is_open = () if dynamic is None else dynamic or exporting.DYNAMIC
    for flag, given in (("--image-size", image_size), ("--batch", batch)):
        if given is not None and given < 1:
            raise UserError(f"{flag} {given}: wanted 1 or more")
    try:
        graph = _check_file(file, is_open, opset, batch)
        kind = kind_of(model)
        asked = {"--raw": raw, "--checkpoint": checkpoint != "newest"}
        only_of_runs(model, kind, asked | {"--recalibrate": recalibrate is not None})
        if recalibrate is None and root is not None:
            raise UserError("--data.root goes with --recalibrate, whose images it says: leave it out")
        run, network, size = load(kind, model, image_size, raw, checkpoint)
        if run is not None and recalibrate is not None:
            run.recalibrated(network, recalibrate, root=root, image_size=image_size)
        document: dict[str, Any] = {"model": model, "untrained": kind == "name", "recalibrated": recalibrate}
        if graph:
            name = recipe_name(run.folder) if run else None
            tell(f"traces {model}, writes the graph and compares it; a detector takes a minute")
            done = exporting.export(
                network,
                file,
                image_size=size,
                batch=batch,
                dynamic=is_open,
                opset=opset,
                notes={"recipe": name} if name else {},
            )
            document |= dataclasses.asdict(done) | {"file": str(file)}
        else:
            from attneck import hub

            document |= {"file": str(hub.save(network, file, run=run)), "config": hub.describe(network)}
    except ValueError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        left = "not all was written: run the command again" if file.is_dir() else "nothing was written"
        raise UserError(f"{error.filename or file}: {error.strerror}; {left}") from None
    except exporting.DisagreementError as error:
        raise RunFailed(str(error)) from None
    if json_:
        print(json.dumps(document))
    else:
        _show(document)


def _check_file(file: Path, dynamic: Collection[str], opset: int | None, batch: int) -> bool:
    """Whether it gets a graph; UserError or ValueError where it cannot be written, or not so."""
    if file.suffix in exporting.FORMATS:
        exporting.check_request(file, dynamic, opset)
        return True
    if file.suffix not in {".safetensors", ""}:
        endings = ", ".join([*exporting.FORMATS, ".safetensors"])
        raise UserError(f"{file}: wanted a name that ends in {endings}, or has no ending (a folder)")
    if dynamic or opset or batch != 1:
        raise UserError(f"--dynamic, --opset and --batch say nothing to weights ({file}): leave them out")
    exporting.check_writable(file / "config.json" if file.is_dir() else file)
    return False


def _show(document: dict[str, Any]) -> None:
    """Say what was written, and how it compares."""
    what = f"{document['model']}{', untrained' if document['untrained'] else ''}"
    if (images := document["recalibrated"]) is not None:
        what += f", BatchNorm by {images:,} training images"
    if "config" in document:
        print(f"wrote   {document['file']}: {what} (attneck.load reads it)")
        return
    kind = f"ONNX opset {document['opset']}" if document["opset"] else "torch.export"
    print(f"wrote   {document['file']}: {what}, {kind}, {document['bytes'] / 1e6:.1f} MB")
    least = document["smallest"]
    holds = f", from {least[0]} × {least[1]} pixels on" if least else ""
    print(f"images  {_times(document['input'])}, float32{holds}")
    for check in document["checks"]:
        share = f"differs by {check['max_abs']:.1e} at most, {check['max_rel']:.1e} of the largest value"
        if check["objects"] is not None:
            equal = " (scores or overlaps equal but for rounding)" if check["unmatched"] else ""
            share = f"{check['objects']} objects, {check['unmatched']} without a counterpart{equal}; {share}"
        print(f"checked {_times(check['shape'])}: {share}")
    other = "onnxruntime" if document["opset"] else "the program"
    shape = f"{_times(document['checks'][0]['shape'])}, threads: {document['threads']}, medians"
    print(
        f"speed   {document['eager_ms']:.1f} ms here, {document['exported_ms']:.1f} ms in {other} ({shape})"
    )


def _times(shape: list[int | str]) -> str:
    return " × ".join(map(str, shape))


def main(words: list[str]) -> None:
    """Parse and run."""
    call(write, "attneck export", words)
