"""What stays quick because nothing heavy is imported for it: torch alone takes seconds."""

import subprocess
import sys
from pathlib import Path

LINES = [
    "--help",
    "--version",
    "--completion bash",
    "list",
    "list botnet50 --options",
    "train",
    "train demo --help",
    "eval --help",
    "data --help",
    "train demo --model.name cifar_resnet2",
    "train demo --modle.name x",
    "train dmeo",
    "export --help",
    "export botnte50 net.onnx",
    "export botnet50 net.onxx",
    "status no-run",
    "count maskrcnn_botnet50 --json",
    "papers",
]
"""Help, what is kept, and refusals, of which tests/faults/test_command_lines.py has more."""

FINDS = """
from attneck.models.catalog import find, list_detectors, list_models
assert list_models("botnet*")
for name, options in [("botnet5", {}), ("botnet50", {"head": 1}), ("botnet50", {"heads": 0})]:
    try:
        find(name, options)
    except ValueError:
        continue
    raise SystemExit("not refused")
"""
FINDS_DETECTORS = """
assert find("stairnet_vgg16", {"bam": "stages"}) == find("stairnet_vgg16_bam")
assert "maskrcnn_botnet50" in list_detectors("maskrcnn_*")
find("maskrcnn_botnet50", {"position": "absolute", "mask_convs": 8})
"""

PIECES = [
    ("import attneck.data.table", ["torch", "numpy"]),
    (FINDS, ["torch", "timm", "torchvision", "numpy"]),
    (FINDS_DETECTORS, ["torch", "timm", "torchvision", "attneck.detection"]),
]
"""Of Python, and the modules that may not have been imported by then."""

PROGRAM = f"""
import sys
for piece, heavy in {PIECES!r}:
    exec(piece)
    if found := sys.modules.keys() & heavy:
        sys.exit(f"{{found}} imported by {{piece}}")
from attneck.cli import main
for line in {LINES!r}:
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code
    if "torch" in sys.modules:
        sys.exit("torch imported by attneck " + line)
    if line in {LINES[-2:]!r} and code:
        sys.exit("not written by attneck " + line)
"""


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """Of all in one process, one after the other."""
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
