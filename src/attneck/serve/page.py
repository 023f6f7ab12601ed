"""The page as one HTML file: its markup, style and program, and what it is told, in a single document."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from attneck.explain.scale import EVEN

STEPS_A_NAT = 512
"""Weights of attention are sent as -log(weight) in so many steps, 16 bits: to 1/1000, and down to e**-127."""


def document(told: dict[str, Any], *, alone: bool = False) -> tuple[str, str]:
    """The HTML, and the content security policy that lets it run: by their hashes, its own style and program.

    Args:
        told: what the program is told (JSON).
        alone: for a file without a server, which has the policy in itself and reaches nothing at all.
    """
    style, program = _part("page.css"), _part("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(program)}'",
            "img-src data: blob:" if alone else "img-src 'self' data: blob:",
            *([] if alone else ["connect-src 'self'", "media-src blob:", "frame-ancestors 'none'"]),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # "</script>" in a class's name, say, would end the element.
    every = told | {"steps_a_nat": STEPS_A_NAT, "even": EVEN}
    data = json.dumps(every, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "POLICY": f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if alone else "",
        "STYLE": f"<style>{style}</style>",
        "TOLD": f'<script type="application/json" id="told">{data}</script>',
        "PROGRAM": f"<script>{program}</script>",
    }
    html = _part("page.html")
    for name, part in parts.items():
        before, _, after = html.partition(f"<!--{name}-->")
        html = before + part + after
    return html, policy


@cache
def _part(name: str) -> str:
    return files("attneck.serve").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
