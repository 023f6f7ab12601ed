"""attneck bench input: images a second on one core, beside torchvision's and timm's loaders."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from attneck.checks import whole
from attneck.commands.arguments import Json, call
from attneck.commands.output_file import check_output
from attneck.commands.progress import tell
from attneck.errors import UserError, user_mistakes


def bench_input(
    root: Annotated[str | None, tyro.conf.arg(aliases=["--data.root"])] = None,
    image_size: int = 224,
    batch: int = 32,
    images: int = 128,
    seconds: float = 4.0,
    out: Path | None = None,
    json_: Json = False,
) -> None:
    """Measure how many images a second one core decodes, augments and puts into batches.

    Beside torchvision's ImageFolder with its v2 transforms, of PIL images and of tensors, and timm's loader:
    in one run, taking turns, medians. The JPEGs are COCO's and VOC's photographs at ImageNet's size, about
    500 x 375 pixels and 110 kB. It is the processor's own time, so other work of the machine counts little.

    Args:
        root: the folder with coco or VOCdevkit; ATTNECK_DATA if not given.
        image_size: side of the training images.
        batch: of images.
        images: how many JPEGs are made.
        seconds: how long each is timed.
        out: write the JSON document there too.
        json_: print one JSON document and nothing else.
    """
    with user_mistakes():
        whole("--image-size", image_size, most=4096)
        whole("--images", images)
        whole("--batch", batch, most=images)
    if not 0 < seconds <= 3600:
        raise UserError(f"--seconds {seconds}: wanted more than 0, 3600 at most")
    if out is not None:
        check_output("--out", out, (".json",))
    with user_mistakes():
        from attneck.data.root import resolve

        data = resolve(root, "bench input", "coco or VOCdevkit")

    import torch

    from attneck.files import write_atomic
    from attneck.measure.loaders import OURS, contestants, photographs
    from attneck.measure.speed import interleave
    from attneck.training.environment import environment

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, user_mistakes():
            tell(f"makes {images} JPEGs, then times each loader for {seconds:g} s")
            made = photographs(data, Path(folder), images)
            calls = contestants(Path(folder), image_size, batch)
            times = interleave(calls, seconds=seconds, now=time.process_time)
            about = environment("cpu")
    finally:
        torch.set_num_threads(threads)
    document: dict[str, Any] = {
        "what": "input",
        "clock": "processor time",
        "environment": about,
        "photographs": made,
        "image_size": image_size,
        "batch": batch,
        "rounds": len(times[OURS]),
        "rows": [
            {
                "name": name,
                "images_per_second": batch / times.median(name),
                "ms": 1000 * times.median(name) / batch,
                "ratio": times.ratio(name, over=OURS),
            }
            for name in calls
        ],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if out is not None:
        write_atomic(out, (text + "\n").encode())
    print(text if json_ else _table(document))


def _table(document: dict[str, Any]) -> str:
    """The rows to read, a line each."""
    about, made = document["environment"], document["photographs"]
    head = (
        f"{about['processor']}, one core, processor time, {document['rounds']} rounds; "
        f"{made['images']} JPEGs of "
        f"{made['width']:.0f} x {made['height']:.0f} pixels and {made['bytes'] / 1000:.0f} kB on average, to "
        f"{document['image_size']} pixels, batches of {document['batch']}"
    )
    width = max(len(row["name"]) for row in document["rows"])
    lines = [
        f"{row['name'].ljust(width)}  {row['images_per_second']:7.0f} images/s  {row['ms']:6.2f} ms  "
        f"{row['ratio']:5.2f}"
        for row in document["rows"]
    ]
    foot = "the last column: its time over attneck's, the median of the rounds: above 1, attneck is faster."
    return "\n".join([head, "", *lines, "", foot])


def main(words: list[str]) -> None:
    """Parse and run."""
    call(bench_input, "attneck bench input", words)
