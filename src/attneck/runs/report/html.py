"""Markup that can't be broken by what is put into it: every text is escaped where it comes in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = {"img", "meta"}


class Html(str):
    """Markup that is ready; any other text is escaped by `tag`."""

    __slots__ = ()


def tag(name: str, /, *inside: str | None, **attributes: str | int | None) -> Html:
    """An element. `class_` is the attribute class; an attribute or a child that is None is left out."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{join(inside)}</{name}>")


def join(parts: Iterable[str | None], between: str = "") -> Html:
    """All that is there, one after the other."""
    ready = [part if isinstance(part, Html) else escape(part) for part in parts if part is not None]
    return Html(escape(between).join(ready))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str | None = None) -> Html:
    """A table of words; the first cell of a row is its head."""
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    label = caption or ", ".join(filter(None, heads)) or "table"
    return scrolling(tag("caption", caption) if caption else None, heads, body, label)


def scrolling(
    caption: Html | None,
    heads: Sequence[str],
    rows: Iterable[Html],
    label: str,
    class_: str = "scroll",
    style: str | None = None,
) -> Html:
    """A table that scrolls by itself where the page is narrower."""
    head = tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))) if any(heads) else None
    inside = tag("table", caption, head, tag("tbody", *rows))
    return tag("div", inside, class_=class_, style=style, tabindex="0", role="region", aria_label=label)


def terms(rows: Iterable[tuple[str, str | None]]) -> Html:
    """A list of terms with what is said of each; those with nothing are left out."""
    return tag("dl", *(part for term, said in rows if said for part in (tag("dt", term), tag("dd", said))))
