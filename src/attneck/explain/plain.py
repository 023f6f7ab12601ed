"""Names in a picture as they are: matplotlib takes some letters of them for signs of its own. And numbers."""


def printable(text: str) -> str:
    """`text` with what is no text of a file's name escaped, which no font has."""
    return text.encode(errors="backslashreplace").decode()


def plain(text: str) -> str:
    """`text` for a label, which a legend leaves out if it begins with _, and which has formulas between $."""
    return (" " * text.startswith("_") + printable(text)).replace("$", r"\$")


def significant(value: float) -> str:
    """Three significant digits: 77.4, 1.17, 0.0312."""
    return f"{value:#.3g}".rstrip(".")


def short(count: int) -> str:
    """25.6 M, 4.09 G, 928."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:  # what rounds to 1000 of the unit below is 1 of this
            return f"{significant(count / size)} {unit}"
    return str(count)
