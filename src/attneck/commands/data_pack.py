"""attneck data pack: a folder of images into tar shards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from attneck.commands.arguments import Json, call
from attneck.commands.progress import shown
from attneck.errors import UserError, user_mistakes


def pack(
    folder: Annotated[str, tyro.conf.Positional],
    shards: Annotated[Path, tyro.conf.Positional],
    /,
    shard_mib: int = 512,
    json_: Json = False,
) -> None:
    """Pack a folder of images into tar shards, webdataset's format, with an index beside them.

    A run reads them in the folder's place, by --data.root SHARDS: the same order, the same bits. The images'
    bytes are untouched.

    Args:
        folder: train/CLASS/ and val/CLASS/ with images, or CLASS/; where it is relative, also looked for
            under ATTNECK_DATA.
        shards: a new folder; it is there when all of it is written.
        shard_mib: how large a shard is, about.
        json_: print one JSON document and nothing else.
    """
    if not 1 <= shard_mib <= 1 << 20:
        raise UserError(f"--shard-mib {shard_mib}: wanted 1 to {1 << 20:,}")
    with user_mistakes():
        from attneck.data.pack import pack as packed
        from attneck.data.readers.tree import LAYOUT
        from attneck.data.root import resolve

        root = resolve(folder, "folder", LAYOUT)
        found = packed(root, shards, shard_mib << 20, partial(shown, quiet=json_))
    if json_:
        print(json.dumps({"shards": str(shards), **found}))
        return
    for split, facts in found.items():
        many = f"{facts['shards']:,} shard{'s' * (facts['shards'] > 1)}"
        print(f"{split}: {facts['images']:,} images in {many}, {facts['bytes'] / 2**20:,.1f} MiB")
    print(f"shards  {shards}")


def main(words: list[str]) -> None:
    """Parse and run."""
    call(pack, "attneck data pack", words)
