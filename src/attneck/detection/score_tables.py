"""Scores as the papers print them: in per cent, with one decimal."""

from __future__ import annotations

from collections.abc import Mapping

THRESHOLDS = {"AP": "", "AP50": "50", "AP75": "75"}
SIZES = {"APs": "S", "APm": "M", "APl": "L"}
KINDS = {"bbox": "bb", "segm": "mk"}


def botnet_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]], sizes: bool = False) -> str:
    """Box and mask AP by detector, as BoTNet's Table 2 has them.

    scores: what `coco_scores` returns, by detector.
    sizes: with columns for small, medium and large objects.
    """
    columns = THRESHOLDS | SIZES if sizes else THRESHOLDS
    kinds = [kind for kind in KINDS if any(kind in row for row in scores.values())]
    header = ["", *(f"AP{KINDS[kind]}{mark}" for kind in kinds for mark in columns.values())]
    rows = [
        [name, *(_percent(row.get(kind, {}).get(key, -1)) for kind in kinds for key in columns)]
        for name, row in scores.items()
    ]
    return _aligned([header, *rows])


def bam_coco_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Box AP by detector, as BAM's Table 4a has it: mAP@.5, mAP@.75, mAP@[.5,.95]."""
    columns = {"mAP@.5": "AP50", "mAP@.75": "AP75", "mAP@[.5,.95]": "AP"}
    rows = [[name, *(_percent(row["bbox"][key]) for key in columns.values())] for name, row in scores.items()]
    return _aligned([["", *columns], *rows])


def voc_table(scores: Mapping[str, tuple[float, Mapping[str, float]]], classes: bool = False) -> str:
    """mAP@.5 by detector, as BAM's Table 4b has it; with `classes`, the AP of each class as well.

    scores: what `voc_scores` returns, by detector.
    """
    table = [["", *scores], ["mAP@.5", *(_percent(mean) for mean, _ in scores.values())]]
    names = dict.fromkeys(name for _, row in scores.values() for name in row) if classes else {}
    for name in names:
        table.append([name, *(_percent(row.get(name, -1)) for _, row in scores.values())])
    return _aligned(table if classes else [list(column) for column in zip(*table, strict=True)])


def _percent(score: float) -> str:
    """With one decimal; a dash where there are no objects."""
    return f"{100 * score:.1f}" if score >= 0 else "–"


def _aligned(table: list[list[str]]) -> str:
    """Names aligned to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *figures in table:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
