"""attneck look: where a model's BAMs and self-attention look in a photo, as a picture."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attneck.checks import whole
from attneck.commands.arguments import Checkpoint, Flag, call
from attneck.commands.given_model import kind_of, only_of_runs, viewer
from attneck.commands.output_file import check_output, picture_file, write_picture
from attneck.errors import UserError, brief, say, shown_path, user_mistakes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from attneck.explain.looking import Look
    from attneck.explain.seeing import Maps
    from attneck.explain.sheet import Place
    from attneck.serve.network import Viewer

MOST_PIXELS = 1 << 24
"""Of a photo that is kept in memory."""
MOST_OF_A_DETECTOR = 1 << 20
"""Likewise, or four times what it takes: it makes a mask of the photo's size for each object."""
LIKELIEST = 3
"""Classes that are written beside the photo."""


def look(
    model: Annotated[str, tyro.conf.Positional],
    image: Annotated[Path, tyro.conf.Positional],
    /,
    at: tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
    save: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None,
    html: Path | None = None,
    beside: str | None = None,
    tables: Flag = False,
    cam: Flag = False,
    dark: Flag = False,
    image_size: int | None = None,
    max_pixels: int | None = None,
    checkpoint: Checkpoint = "newest",
) -> None:
    """See where a model looks in a photo: each BAM, and each head of each self-attention from a place.

    BAM over the stages, as in Figure 1 of its paper: what comes in, the spatial branch M_s, the gate M (the
    mean over channels), and what goes out. Self-attention from the marked place: the weights of every place,
    of all heads and of each, and by content and by position alone (the mean over the heads). Above each is
    how far it looks on average, over all places, in pixels of the model's input.

    Colours lie on the photo where the network's map lies, a square a place of the map; the frame is what the
    model sees of it.

    Args:
        model: a run's folder, what attneck.hub.save wrote, timm/NAME for timm's weights, or a name of
            `attneck list` (untrained).
        image: a photo (JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF), turned upright as its EXIF says.
        at: places x,y in the photo's pixels that self-attention is shown from, such as 120,80 200,40; the
            middle of what the model sees if not given.
        layers: names of the attention's modules that are shown, or patterns such as 'layer4.*'; all if not
            given.
        save: the picture: .png, .svg or .pdf; if not given the photo's name with -look.png, here, with a
            number where that is taken.
        html: in place of the picture, or beside --save's: the page of attneck serve with this photo and all
            numbers in it, one file that any browser opens without a network.
        beside: another model, shown beside it; below it where a screen is too narrow for both.
        tables: the learned position tables as well.
        cam: Grad-CAM of the likeliest class as well; of a network without attention, that alone.
        dark: on a dark page.
        image_size: side in pixels that the model is given; its own if not given.
        max_pixels: a larger photo is refused; 178,956,970 if not given.
        checkpoint: a run's newest, or its best by the recipe's metric.
    """
    places = [_place(word) for word in at]
    _check_options(html, save, of_picture=bool(at or layers or tables or cam or dark))
    with user_mistakes():
        for flag, value in {"--image-size": image_size, "--max-pixels": max_pixels}.items():
            if value is not None:
                whole(flag, value, most=1 << 62)

    from attneck.data.readers.decode import decode_small, look_at

    look_at(str(image), "look", max_pixels)
    file = None if save is None and html is not None else picture_file("--save", save, f"{image.stem}-look")
    _check_not_the_photo(image, {"--save": file, "--html": html})
    words = [model] if beside is None else [model, beside]
    kinds = [kind_of(word) for word in words]
    only_of_runs(model, kinds[0], {"--checkpoint": checkpoint != "newest"})

    photo, size = decode_small(str(image), "look", MOST_PIXELS, max_pixels)
    _check_places(places, size)
    seers = [viewer(word, image_size, checkpoint) for word in words]
    photo = _bounded(photo, seers)
    if html is not None:
        _write_page(html, photo, image.name, list(zip(words, seers, strict=True)))
    if file is None:
        return
    with user_mistakes():
        looks = [_look(seer, photo, cam, layers) for seer in _titled(words, seers)]
        _check_attention(looks, " and ".join(words), at=bool(places), tables=tables)

        from attneck.explain.looking import picture

        scale = photo.width / size[0], photo.height / size[1]  # where it was made smaller
        marked = _marked(places, looks[0], photo, scale)
        for one in looks:
            _check_seen(one, marked, size, scale)
        figure = picture(photo, looks, marked, tables=tables, dark=dark)
    write_picture(figure, file)
    for one in looks:
        for note in one.maps.notes:
            say(f"{one.title}: {note}")
    print(f"wrote {shown_path(file)}")


def _check_options(html: Path | None, save: Path | None, *, of_picture: bool) -> None:
    """UserError for a page's file that cannot be, and for options of a picture that is not asked for."""
    if html is None:
        return
    check_output("--html", html, (".html",))
    if save is None and of_picture:
        raise UserError(
            "--at, --layers, --tables, --cam and --dark are of the picture: give --save PICTURE too"
        )


def _check_not_the_photo(image: Path, files: dict[str, Path | None]) -> None:
    """UserError for a file, by its flag, that would be written over the photo."""
    for flag, path in files.items():
        if path is not None and path.exists() and path.samefile(image):
            raise UserError(f"{flag} {shown_path(path)} is the photo itself: give another name")


def _check_places(places: Sequence[tuple[int, int]], size: tuple[int, int]) -> None:
    """UserError for a place that a photo of this (width, height) does not have."""
    for x, y in places:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise UserError(
                f"--at {x},{y}: the photo is {size[0]} × {size[1]} pixels, from 0,0 at its top left"
            )


def _check_attention(looks: Sequence[Look], models: str, *, at: bool, tables: bool) -> None:
    """UserError for options of attention that none of the models has."""
    attending = [layer for one in looks for layer in one.maps.mhsas]
    if at and not attending:
        raise UserError(f"--at is of self-attention, and {models} has none: leave it out")
    if tables and not any(layer.tables for layer in attending):
        raise UserError(f"--tables: {models} has no position tables; leave it out")


def _titled(words: list[str], seers: list[Viewer]) -> list[Viewer]:
    """Two models side by side are called by their folders too."""
    from attneck.files import told_apart

    if len(seers) == 1:
        return seers
    names = told_apart([*map(Path, words)])
    return [
        seer if seer.title == name else replace(seer, title=f"{name}: {seer.title}")
        for seer, name in zip(seers, names, strict=True)
    ]


def _marked(
    places: Sequence[tuple[int, int]], first: Look, photo: Image.Image, scale: tuple[float, float]
) -> list[Place]:
    """The places in the photo as it was read; the middle of what the first model sees where there are none.

    Args:
        scale: as `_check_seen` has it.
    """
    from attneck.explain.sheet import Place

    across, down = scale
    if places:
        return [Place((x + 0.5) * across, (y + 0.5) * down, f"x {x}, y {y}") for x, y in places]
    # The very middle: of a narrow photo less than a pixel may be seen.
    left, top, right, bottom = first.window.box
    x, y = min(left + right, photo.width) / 2, min(top + bottom, photo.height) / 2
    return [Place(x, y, f"x {int(x / across)}, y {int(y / down)}")]


def _check_seen(
    one: Look, places: Sequence[Place], size: tuple[int, int], scale: tuple[float, float]
) -> None:
    """UserError for a place that an attending model does not see.

    Args:
        size: of the photo, (width, height).
        scale: of the photo as it was read, to it, likewise.
    """
    if not one.maps.mhsas:
        return
    left, top, right, bottom = one.window.box
    (across, down), (width, height) = scale, size
    # Pixels whose middle it sees.
    first = max(0, ceil(left / across - 0.5)), max(0, ceil(top / down - 0.5))
    last = min(width, ceil(right / across - 0.5)) - 1, min(height, ceil(bottom / down - 0.5)) - 1
    for place in places:
        if not (left <= place.x < right and top <= place.y < bottom):
            raise UserError(
                f"the place {place.name} lies outside what {one.title} sees of the photo, from "
                f"{first[0]},{first[1]} to {last[0]},{last[1]}: give one that it sees"
            )


def _bounded(photo: Image.Image, seers: Sequence[Viewer]) -> Image.Image:
    """A copy that is no larger than the detectors among them can bear."""
    from attneck.data.readers.decode import within

    networks: list[Any] = [seer.network for seer in seers if seer.detects]
    sides = [min(network.transform.min_size) for network in networks]
    most = min((max(4 * side * side, MOST_OF_A_DETECTOR) for side in sides), default=MOST_PIXELS)
    size = within(photo.size, most)
    return photo if size == photo.size else photo.resize(size)


def _write_page(html: Path, photo: Image.Image, name: str, seers: list[tuple[str, Viewer]]) -> None:
    """The page as a file, whole or not at all."""
    from attneck.files import told_apart, write_atomic
    from attneck.serve.alone import alone
    from attneck.serve.network import Network

    names = told_apart([Path(word) for word, _ in seers])
    page = alone(photo, name, [Network(seer, one) for (_, seer), one in zip(seers, names, strict=True)])
    write_atomic(html, page.encode())
    print(f"wrote {shown_path(html)}, {len(page) / 1e6:.1f} MB")


def _look(seer: Viewer, photo: Image.Image, cam: bool, layers: Sequence[str]) -> Look:
    """What one model sees, and says of the photo."""
    from attneck.explain.looking import Look

    image = seer.prepared(photo)
    with seer.checked():
        found = _chosen(_maps(seer, image, cam), layers, seer.title)
    height, width = found.seen  # of a detector's padded batch the photo's part
    lines = [f"The model sees the framed part, as {width}\u00a0×\u00a0{height} pixels."]
    if not seer.trained:
        lines.append("It is untrained: its weights are random, and where it looks means nothing.")
    drawn = None
    if cam:
        if seer.detects:
            raise UserError(
                f"--cam is of a classifier's likeliest class, and {seer.title} finds objects: leave it out"
            )
        from attneck.explain.gradcam import grad_cam
        from attneck.tasks.task import class_name

        label, values = grad_cam(seer.network, image)
        drawn = class_name(seer.facts["classes"], label), values
    if seer.trained:
        lines += ["", *_predictions(seer, found.output)]
    return Look(seer.title, lines, found, seer.window(photo.size, found), drawn)


def _maps(seer: Viewer, image: Tensor, cam: bool) -> Maps:
    """Its attention in an image [3, H, W] as it takes it; with Grad-CAM a classifier may have none."""
    import torch

    from attneck.explain.seeing import Maps, maps
    from attneck.layers import BAM, MHSA2d

    attends = any(isinstance(module, BAM | MHSA2d) for module in seer.network.modules())
    if attends or seer.detects:
        return maps(seer.network, image)
    if not cam:
        raise UserError(
            f"{seer.title} has no BAM and no self-attention of ours, which attneck.surgery puts in: "
            "--cam shows what speaks for its likeliest class, if its classes are made from a map"
        )
    with torch.no_grad():
        output = seer.network(image[None])[0]
    size = image.shape[1], image.shape[2]
    return Maps(size, size, (), (), output)


def _chosen(found: Maps, layers: Sequence[str], title: str) -> Maps:
    """Of the modules that `layers` names; all where it names none.

    Raises UserError for a name that is nobody's.
    """
    if not layers:
        return found
    names = [*(one.name for one in found.bams), *(one.name for one in found.mhsas)]
    if not names:
        raise UserError(f"--layers is of attention, and {title} has none: leave it out")
    for pattern in layers:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"--layers {brief(pattern)}: no attention of {title} has that name; it has "
                f"{', '.join(names[:6])}{' …' if len(names) > 6 else ''}"
            )

    def shown(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)

    return replace(
        found,
        bams=tuple(one for one in found.bams if shown(one.name)),
        mhsas=tuple(one for one in found.mhsas if shown(one.name)),
    )


def _predictions(seer: Viewer, output: Any) -> list[str]:
    """The likeliest classes, or the surest objects."""
    from attneck.tasks.classification import likeliest
    from attneck.tasks.task import class_name

    classes = seer.facts["classes"]
    if not seer.detects:
        return [f"{100 * share:.1f} %  {name}" for name, share in likeliest(output, classes, LIKELIEST)]
    best = zip(output["scores"][:LIKELIEST].tolist(), output["labels"][:LIKELIEST].tolist(), strict=True)
    return [f"{score:.2f}  {class_name(classes, label - 1)}" for score, label in best] or ["no object found"]


def _place(word: str) -> tuple[int, int]:
    try:
        x, y = map(int, word.split(","))
    except ValueError:
        raise UserError(f"--at {word!r}: wanted x,y in the photo's pixels, such as 120,80") from None
    return x, y


def main(words: list[str]) -> None:
    """Parse and run."""
    call(look, "attneck look", words)
