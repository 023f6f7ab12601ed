"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "summary", sorted(ROOT.glob("results/**/summary.json")), ids=lambda path: path.parent.name
)
def test_each_measured_score_is_the_one_shown(summary):
    """results/NAME/README.md and the README's tables quote the run's own figures."""
    scores = yaml.safe_load(summary.read_text())
    for key in {"val_top1", "val_box_AP", "val_mask_AP", "val_mAP"} & scores.keys():
        score = f"{scores[key]:.2f}"
        assert score in README, key
        assert score in (summary.parents[1] / "README.md").read_text(), key
