"""The optimisers that a recipe may name, and which of its fields each one has; torch-free, for refusals."""

from __future__ import annotations

from typing import Literal, NamedTuple

OptimizerName = Literal[
    "sgd",
    "adabelief",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "adanw",
    "adopt",
    "adoptw",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "mars",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "rmsproptf",
]
"""sgd is torch's; the others are what timm's factory makes by these names."""


class Knows(NamedTuple):
    """The fields beside lr and weight_decay that an optimiser has."""

    momentum: bool = False
    betas: int = 2
    """How many; 0: the field is none of its."""
    eps: bool = True


_OTHERWISE = {
    "sgd": Knows(momentum=True, betas=0, eps=False),
    "adan": Knows(betas=3),
    "adanw": Knows(betas=3),
    "lars": Knows(momentum=True, betas=0),
    "lion": Knows(eps=False),
    "rmsprop": Knows(momentum=True, betas=0),
    "rmsproptf": Knows(momentum=True, betas=0),
}


def fields_of(name: str) -> Knows:
    """What the optimiser of that name has."""
    return _OTHERWISE.get(name, Knows())
