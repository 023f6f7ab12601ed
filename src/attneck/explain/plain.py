"""Names in a picture as they are: matplotlib takes some letters of them for signs of its own."""


def plain(text: str) -> str:
    """`text` for a label, which a legend leaves out if it begins with _, and which has formulas between $."""
    return (" " * text.startswith("_") + text).replace("$", r"\$")
