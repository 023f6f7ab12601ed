"""Not a test: of many networks one of each kind, the smallest. Those of a kind differ in sizes alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

from attneck.models.options import FamilyOptions

T = TypeVar("T")


def one_of_each(networks: Iterable[T], options_of: Callable[[T], FamilyOptions]) -> list[T]:
    """The same kind: options of one family, of which the same ones are not at their default."""
    kinds = defaultdict(list)
    for network in networks:
        options = options_of(network)
        plain = type(options)()
        changed = frozenset(
            name for name in type(options).model_fields if getattr(options, name) != getattr(plain, name)
        )
        kinds[type(options), changed].append(network)
    return [min(kind, key=lambda network: options_of(network).least_parameters()) for kind in kinds.values()]
