"""What the page's server does not do, as an HTTP status and a sentence."""

from __future__ import annotations


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An answer that is no success.

    Attributes:
        status: HTTP's.
        said: the sentence that the page shows.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said
