"""A recipe's file, read with bounds: nothing is built from YAML before its size and shape are known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from attneck.errors import UserError, one_line

BYTES, DEPTH, NODES = 1 << 16, 8, 4000
"""Of a file at most; the longest shipped recipe has 2,300 bytes, 3 levels and 60 nodes."""

NUMBERS_OF_YAML_1_1 = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Octal and base-60 numbers: 010 would be 8, and 1:30 would be 90."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: mappings, lists, numbers and words; None where it is empty.

    Raises:
        UserError: what is no regular file, too long, too deep, or not plain YAML in UTF-8: aliases and
            anchors, tags, several documents, keys that are given twice, and numbers of a base that nobody
            expects are refused.
        OSError: a file that cannot be read.
    """
    if not path.is_file():  # a pipe or a device might never end
        raise UserError(f"{path}: wanted a regular file of YAML")
    with path.open("rb") as file:
        raw = file.read(BYTES + 1)
    try:
        if len(raw) > BYTES:
            raise ValueError(f"longer than {BYTES:,} bytes")
        text = raw.decode("utf-8")
        _check(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # dates and numbers that there are not, too
        raise UserError(f"{path}: not YAML that a recipe may have: {one_line(error, 300)}") from None


def _check(text: str) -> None:
    """ValueError for what is not bounded, or would not be what it looks like."""
    depth = nodes = documents = 0
    event: Any
    for event in yaml.parse(text, yaml.SafeLoader):  # one at a time, and nothing is built
        line = event.start_mark.line + 1
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if documents > 1:
            raise ValueError(f"line {line} begins a second document; wanted one")
        if depth > DEPTH or nodes > NODES:
            raise ValueError(f"at line {line} deeper than {DEPTH} levels, or more than {NODES:,} values")
        if getattr(event, "anchor", None) is not None:  # an alias too: a few of them stand for gigabytes
            raise ValueError(f"line {line} has an anchor or alias, {event.anchor!r}; write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"line {line} has a tag, {event.tag!r}; leave it out")
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            if NUMBERS_OF_YAML_1_1.fullmatch(event.value):
                raise ValueError(f"line {line}: YAML takes {event.value} for an octal or base-60 number")
            if event.value == "<<":
                raise ValueError(f"line {line} merges a mapping (<<); write the values out")
