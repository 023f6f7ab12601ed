"""attneck predict: what a run's detector finds in images, drawn on them and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attneck.commands.progress import shown
from attneck.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from attneck.runs.run import Detector, Scene


def predict(
    run: Annotated[Path, tyro.conf.Positional],
    images: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    held_out: int = 0,
    out: Path | None = None,
    min_score: float = 0.5,
    beside: Path | None = None,
) -> None:
    """Find objects in images with a run's detector; draw them, with masks where it has them.

    Writes a picture for each image, called as it is, and predictions.json: COCO's results, the images that
    they are of, and their classes' names.

    Args:
        run: the run's folder.
        images: image files.
        held_out: so many of the run's own held-out images as well, evenly spread; each picture then has what
            is in the image, beside what was found.
        out: the folder to write into; predictions in the run's if not given.
        min_score: what is less sure is left out, 0 to 1.
        beside: another detector's run: each picture has both, side by side.
    """
    if not images and held_out == 0:
        raise UserError(f"no image given: attneck predict {run} IMAGE…, or --held-out 4 for some of its own")
    if held_out < 0:
        raise UserError(f"--held-out {held_out}: give how many, 0 or more")
    if not 0 <= min_score <= 1:
        raise UserError(f"--min-score {min_score}: give 0 to 1")

    from attneck.data.readers.decode import decode
    from attneck.explain.detections import beside as in_a_row
    from attneck.explain.detections import draw
    from attneck.files import write_atomic
    from attneck.runs.run import Scene, held_out_scenes, load_detector

    runs = [run] if beside is None else [run, beside]
    detectors = [load_detector(folder) for folder in runs]
    try:
        scenes = [Scene(str(path), decode(str(path), "predict"), None) for path in images]
    except ValueError as error:
        raise UserError(str(error)) from None
    if held_out > 0:
        scenes += held_out_scenes(detectors[0].recipe, held_out)
    folder = out if out is not None else run / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    found = [find(detector, [scene.image for scene in scenes], min_score) for detector in detectors]
    titles = [detector.recipe.model.name for detector in detectors]
    for number, (scene, name) in enumerate(zip(scenes, names(scenes), strict=True)):
        here = [[row for row in rows if row["image_id"] == number] for rows in found]
        drawn = [draw(scene.image, rows) for rows in here]
        file = folder / f"{name}.png"
        if scene.objects is not None:
            drawn, above = [draw(scene.image, scene.objects), *drawn], ["what is there", *titles]
            in_a_row(drawn, above).savefig(file, bbox_inches="tight")
        elif beside is not None:
            in_a_row(drawn, titles).savefig(file, bbox_inches="tight")
        else:
            drawn[0].save(file)
        print(f"{file}  {' and '.join(str(len(rows)) for rows in here)} objects")
    document = {
        "images": [
            {
                "id": number,
                "file_name": scene.file,
                "width": scene.image.width,
                "height": scene.image.height,
            }
            for number, scene in enumerate(scenes)
        ],
        "runs": [
            {
                "run": str(which),
                "model": detector.recipe.model.name,
                "step": detector.step,
                "detections": rows,
            }
            for which, detector, rows in zip(runs, detectors, found, strict=True)
        ],
    }
    file = folder / "predictions.json"
    write_atomic(file, (json.dumps(document, indent=1) + "\n").encode())
    print(file)


def find(detector: Detector, pictures: list[Image.Image], min_score: float) -> list[dict[str, Any]]:
    """COCO's results on the images, numbered from 0, each with its class's name as `category`."""
    import torch
    from torchvision.transforms.functional import to_tensor

    from attneck.detection.results import to_coco_detections
    from attneck.training.loop import precision

    names = dict(zip(detector.category_ids, detector.classes, strict=True))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = detector.model.to(device)
    rows = []
    for number, picture in enumerate(shown(pictures, detector.recipe.model.name)):
        with torch.inference_mode(), precision(detector.recipe, device):
            outputs = model([to_tensor(picture).to(device)])
        rows += to_coco_detections(
            outputs, [{"image_id": torch.tensor(number)}], detector.category_ids, min_score
        )
    return [row | {"category": names[row["category_id"]]} for row in rows]


def names(scenes: list[Scene]) -> list[str]:
    """A picture's name for each image: its own without its ending; numbered where two have the same."""
    stems = [Path(scene.file).stem for scene in scenes]
    counts = Counter(stems)
    return [stem if counts[stem] == 1 else f"{number}-{stem}" for number, stem in enumerate(stems, 1)]


def main(words: list[str]) -> None:
    """Parse and run."""
    tyro.cli(predict, prog="attneck predict", args=words)
