"""A contact sheet of a data set's training images, as they are or as a recipe's training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attneck.commands.output_file import check_output
from attneck.errors import UserError
from attneck.training.recipe_file import load_recipe


def check_sheet(path: Path, name: str, augmented: str | None) -> None:
    """UserError for what cannot be the sheet's file, and for a recipe of another data set."""
    check_output("--sheet", path, (".png",))
    if path.exists():
        raise UserError(f"--sheet {path} is there already: give another name")
    if augmented is not None and (other := load_recipe(augmented).data.name) != name:
        raise UserError(f"--augmented {augmented} is a recipe for {other}: give one for {name}")


def draw_sheet(path: Path, name: str, augmented: str | None, **options: Any) -> None:
    """Draw a page of images, evenly spread over the classes; one that cannot be read is left out.

    augmented: the recipe that says how they are augmented, each as in the first epoch; None as they are.
    options: of `open_dataset`.

    Raises NotWritten where the file cannot be written.
    """
    import numpy as np
    from PIL import Image

    from attneck.data.classification import open_dataset
    from attneck.data.readers.decode import UnreadableImage
    from attneck.data.sampling import spread
    from attneck.explain.contact_sheet import COLUMNS, ROWS, Tile, pages, small
    from attneck.files import write_atomic

    what = "training images as they are"
    sides: list[int] | None = None
    if augmented is not None:
        recipe = load_recipe(augmented)
        what = f"training images as {augmented} augments them ({recipe.data.augment})"
        own = recipe.data
        options |= {"image_size": own.image_size, "problem": own.problem, "seed": recipe.seed}
        options |= own.augmentation()
        sides = own.image_sizes
    images = open_dataset(name, "train", **options)
    # By class: what is evenly spread over that has each class its share.
    order = np.argsort(images.labels, kind="stable")
    tiles: list[Tile] = []
    for place in spread(len(order), min(COLUMNS * ROWS, len(order)), name).tolist():
        index = int(order[place])
        try:
            seen = images.at(sides[len(tiles) % len(sides)]) if sides else images
            image = Image.fromarray(seen.pixels([(0, index)])[0]) if augmented else images.whole(index)
        except UnreadableImage:
            continue
        tiles.append(Tile(small(image), (images.classes[int(images.labels[index])],)))
    if not tiles:
        raise UserError(f"{name}: none of the images for the sheet can be read")
    write_atomic(path, next(pages(tiles, f"{name}: {len(tiles)} of {len(order):,} {what}")))
