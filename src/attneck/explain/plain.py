"""Names in a picture as they are: matplotlib takes some letters of them for signs of its own."""


def printable(text: str) -> str:
    """`text` with what is no text of a file's name escaped, which no font has."""
    return text.encode(errors="backslashreplace").decode()


def plain(text: str) -> str:
    """`text` for a label, which a legend leaves out if it begins with _, and which has formulas between $."""
    return (" " * text.startswith("_") + printable(text)).replace("$", r"\$")
