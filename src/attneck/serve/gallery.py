"""The images that came, what each model sees in them, and the one thread in which all of it is computed."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from attneck.errors import NotFinite

if TYPE_CHECKING:
    from PIL import Image

    from attneck.serve.looks import Look
    from attneck.serve.network import Network

T = TypeVar("T")

MOST_IMAGES = 8
"""So many are kept; an older one must come again."""
MAX_PIXELS = 64_000_000
"""Of an image's file: what is larger takes long and much memory to read."""
SEEN_PIXELS = 1 << 22
"""Of an image as the models and the page get it."""
LONGEST = 65_500
"""Pixels of a side that a JPEG can have."""


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """What the page's server does not do.

    Attributes:
        status: HTTP's.
        said: the sentence that the page shows.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


@dataclass
class _Held:
    image: Image.Image
    seen: dict[int, Look] = field(default_factory=dict)


class Gallery:
    """All methods may be called from any thread, and raise Refused."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = Lock()
        # torch keeps threads of its own for each that calls it, and an image of many pixels takes memory.
        self._worker = ThreadPoolExecutor(1, "attention")

    def models(self) -> list[dict[str, Any]]:
        """What the page says of each model."""
        return [network.told() for network in self._networks]

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep an image file's picture: its key, and its (width, height) as the page gets it."""
        image = self._done(lambda: _decoded(data))
        key = secrets.token_urlsafe(12)
        with self._lock:
            self._held[key] = _Held(image)
            while len(self._held) > MOST_IMAGES:
                self._held.popitem(last=False)
        return {"image": key, "width": image.width, "height": image.height}

    def photo(self, key: str) -> bytes:
        """The picture as a JPEG: upright, and of a kind that every browser shows."""
        image = self._of(key).image
        return self._done(lambda: jpeg(image))

    def look(self, key: str, model: int) -> dict[str, Any]:
        """What the model sees in the image."""
        return self._seen(key, model).told()

    def rows(self, key: str, model: int, cells: Sequence[tuple[int, int]]) -> bytes:
        """What each attention block of the model sees from its cell (y, x)."""
        seen = self._seen(key, model)
        try:
            return self._done(lambda: seen.rows(cells))
        except ValueError as error:
            raise Refused(400, str(error)) from None

    def close(self) -> None:
        """Ends the thread; what waits for it is dropped."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _of(self, key: str) -> _Held:
        with self._lock:
            if key not in self._held:
                raise Refused(410, "this image is not kept any more: choose it again")
            self._held.move_to_end(key)
            return self._held[key]

    def _seen(self, key: str, model: int) -> Look:
        held = self._of(key)
        if model >= len(self._networks):
            raise Refused(404, f"there is no model {model} here")

        def see() -> Look:
            if model not in held.seen:
                held.seen[model] = self._networks[model].see(held.image)
            return held.seen[model]

        try:
            return held.seen.get(model) or self._done(see)
        except NotFinite as error:
            raise Refused(422, f"{self._networks[model].name}: {error}") from None

    def _done(self, work: Callable[[], T]) -> T:
        return self._worker.submit(work).result()


def _decoded(data: bytes) -> Image.Image:
    from attneck.data.readers.decode import REPLACE, ImageTooLarge, UnreadableImage, decode_small

    try:
        image = decode_small(io.BytesIO(data), "page", SEEN_PIXELS, MAX_PIXELS)[0]
    except ImageTooLarge:
        raise Refused(413, f"the image has over {MAX_PIXELS:,} pixels: choose a smaller one") from None
    except UnreadableImage as error:
        reason = str(error).removeprefix("page: ").removesuffix(f": {REPLACE}")
        raise Refused(415, f"{reason}: choose an image") from None
    if max(image.size) > LONGEST:
        raise Refused(413, f"the image has a side of over {LONGEST:,} pixels: choose a shorter one")
    return image


def jpeg(image: Image.Image) -> bytes:
    """The image's file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
