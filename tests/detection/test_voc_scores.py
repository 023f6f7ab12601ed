"""VOC's AP: cases worked out by hand, and the devkit's loop written out."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attneck.detection.metrics import voc_scores
from attneck.detection.precision_recall import voc_curves

Row = dict[str, Any]


def truth_of(objects: list[Row], images: int = 1, names: tuple[str, ...] = ("cat",)) -> dict[str, list[Row]]:
    return {
        "images": [{"id": i, "width": 100, "height": 100} for i in range(1, images + 1)],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1} | row for i, row in enumerate(objects, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }


def found(*boxes: list[float], scores: list[float] | None = None, **other: int) -> list[Row]:
    scores = scores or [1 - i / 10 for i in range(len(boxes))]
    common = {"image_id": 1, "category_id": 1, **other}
    return [common | {"bbox": box, "score": score} for box, score in zip(boxes, scores, strict=True)]


A, B, C, FAR = (
    [0.0, 0.0, 10.0, 10.0],
    [20.0, 0.0, 10.0, 10.0],
    [40.0, 0.0, 10.0, 10.0],
    [80.0, 80.0, 9.0, 9.0],
)
HALF = [0.0, 0.0, 5.0, 10.0]  # IoU with A is 0.5
LESS = [0.0, 0.0, 4.99, 10.0]


@pytest.mark.parametrize(
    ("detections", "eleven", "area"),
    [
        (found(A, B), 1, 1),
        ([], 0, 0),
        (found(FAR), 0, 0),
        # recall 1/2 with precision 1: levels 0 … 0.5 of eleven
        (found(A), 6 / 11, 1 / 2),
        # wrong, right, right: precision 0, 1/2, 2/3, so 2/3 at every recall
        (found(FAR, A, B), 2 / 3, 2 / 3),
        # right, wrong, right: 1 up to recall 1/2, 2/3 beyond
        (found(A, FAR, B), (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3),
        # a second detection of A is wrong, though B is still free
        (found(A, A, B), (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3),
        # half an overlap is enough, less is not
        (found(HALF, B), 1, 1),
        (found(LESS, B), 6 / 11 / 2, 1 / 4),
        # the order of the file is not the order of the scores
        (found(A, FAR, B, scores=[0.1, 0.9, 0.5]), 2 / 3, 2 / 3),
        # equal scores: as they come
        (found(A, FAR, B, scores=[0.5, 0.5, 0.5]), (6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3),
    ],
)
def test_by_hand(detections: list[Row], eleven: float, area: float) -> None:
    truth = truth_of([{"bbox": A}, {"bbox": B}])
    assert voc_scores(truth, detections)[0] == pytest.approx(eleven, abs=1e-12)
    assert voc_scores(truth, detections, "area")[0] == pytest.approx(area, abs=1e-12)


def test_curves_by_hand() -> None:
    """Right, wrong, right; of a class without objects what was found is all wrong; of one nothing is."""
    truth = truth_of([{"bbox": A}, {"bbox": B}, {"bbox": C, "difficult": 1}], names=("cat", "dog", "emu"))
    detections = found(A, C, FAR, B) + found(A, category_id=2)
    for rule in ("11-point", "area"):
        (curves,) = voc_curves(truth, detections, rule).values()
        assert {curve.name: curve.ap for curve in curves} == voc_scores(truth, detections, rule)[1]  # type: ignore[arg-type]
        assert [curve.objects for curve in curves] == [2, 0, 0]
        assert [curve.recall.tolist() for curve in curves] == [[0.5, 0.5, 1], [0], []]
        assert [curve.precision.tolist() for curve in curves] == [[1, 0.5, 2 / 3], [0], []]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule='2012': wanted one of 11-point, area"):
        voc_scores(truth_of([{"bbox": A}]), found(A), "2012")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule='2012'"):  # where there is nothing to score, too
        voc_scores(truth_of([]), [], "2012")  # type: ignore[arg-type]


def test_difficult_objects_count_neither_way() -> None:
    truth = truth_of([{"bbox": A}, {"bbox": B, "difficult": 1}])
    for rule in ("11-point", "area"):
        assert voc_scores(truth, found(B, B, A), rule)[0] == 1
        assert voc_scores(truth, found(B), rule)[0] == 0
    # What overlaps a difficult object most is not given to the next one.
    near = [12.0, 0.0, 10.0, 10.0]
    truth = truth_of([{"bbox": [10.0, 0.0, 10.0, 10.0]}, {"bbox": near, "difficult": 1}])
    assert voc_scores(truth, found(near))[0] == 0


def test_recall_is_compared_exactly() -> None:
    """3 of 10 found is a recall of 0.3, which 3 · 0.1 in floating point is not."""
    objects = [{"bbox": [10.0 * i, 0.0, 9.0, 9.0]} for i in range(10)]
    truth = truth_of(objects)
    for hits in range(11):
        detections = found(*[row["bbox"] for row in objects[:hits]])
        assert voc_scores(truth, detections)[0] == pytest.approx((hits + 1) / 11 if hits else 0, abs=1e-12)


def test_classes_without_objects_are_left_out_of_the_mean() -> None:
    truth = truth_of(
        [{"bbox": A}, {"bbox": B, "category_id": 2}, {"bbox": C, "category_id": 3, "difficult": 1}],
        names=("cat", "dog", "cow", "emu"),
    )
    detections = found(A) + found(C, category_id=3) + found(C, category_id=4)
    assert voc_scores(truth, detections) == (0.5, {"cat": 1.0, "dog": 0.0, "cow": -1.0, "emu": -1.0})
    assert voc_scores(truth_of([]), []) == (-1.0, {"cat": -1.0})


def devkit(truth: dict[str, list[Row]], detections: list[Row], category: int, eleven: bool) -> float:
    """One class as VOC's devkit does it: detection by detection, in pixels counted from 1, both ends in."""

    def corners(row: Row) -> list[float]:
        x, y, w, h = row["bbox"]
        return [x + 1, y + 1, x + w, y + h]

    objects: dict[int, list[Row]] = {}
    positives = 0
    for row in truth["annotations"]:
        if row["category_id"] == category:
            entry = {"box": corners(row), "difficult": bool(row.get("difficult")), "taken": False}
            objects.setdefault(row["image_id"], []).append(entry)
            positives += not entry["difficult"]
    if positives == 0:
        return -1.0
    ranked = sorted((d for d in detections if d["category_id"] == category), key=lambda d: -d["score"])
    right, wrong, recalls, precisions = 0, 0, [], []
    for row in ranked:
        a0, b0, a1, b1 = corners(row)
        greatest, best = -1.0, None
        for entry in objects.get(row["image_id"], []):
            c0, d0, c1, d1 = entry["box"]
            iw, ih = min(a1, c1) - max(a0, c0) + 1, min(b1, d1) - max(b0, d0) + 1
            if iw <= 0 or ih <= 0:
                continue
            union = (a1 - a0 + 1) * (b1 - b0 + 1) + (c1 - c0 + 1) * (d1 - d0 + 1) - iw * ih
            if iw * ih / union > greatest:
                greatest, best = iw * ih / union, entry
        if best is None or greatest < 0.5 or (best["taken"] and not best["difficult"]):
            wrong += 1
        elif not best["difficult"]:
            best["taken"] = True
            right += 1
        if right + wrong:
            recalls.append(right)
            precisions.append(right / (right + wrong))
    if eleven:
        total = 0.0
        for k in range(11):
            total += max(
                [p for r, p in zip(recalls, precisions, strict=True) if 10 * r >= k * positives], default=0
            )
        return total / 11
    envelope = [*precisions, 0.0]
    for i in reversed(range(len(precisions))):
        envelope[i] = max(envelope[i], envelope[i + 1])
    steps = zip([0, *recalls], recalls, envelope, strict=False)
    return sum((after - before) / positives * height for before, after, height in steps)


sides = st.integers(1, 12).map(float)
corners = st.integers(0, 16).map(float)
objects_drawn = st.lists(
    st.builds(
        lambda x, y, w, h, image, category, difficult: {
            "bbox": [x, y, w, h],
            "image_id": image,
            "category_id": category,
            "difficult": int(difficult),
        },
        corners, corners, sides, sides, st.integers(1, 2), st.integers(1, 2), st.booleans(),
    ),
    max_size=8,
)  # fmt: skip
detections_drawn = st.lists(
    st.builds(
        lambda x, y, w, h, image, category, score: {
            "bbox": [x, y, w, h],
            "image_id": image,
            "category_id": category,
            "score": score / 4,
        },
        corners, corners, sides, sides, st.integers(1, 2), st.integers(1, 2), st.integers(0, 4),
    ),
    max_size=16,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(objects_drawn, detections_drawn, st.booleans())
def test_it_is_the_devkits(objects: list[Row], detections: list[Row], copy: bool) -> None:
    if copy:  # so that there are hits
        detections = [row | {"score": 0.5, "difficult": 0} for row in objects] + detections
    truth = truth_of(objects, images=2, names=("cat", "dog"))
    for rule, eleven in (("11-point", True), ("area", False)):
        mean, scores = voc_scores(truth, detections, rule)
        wanted = [devkit(truth, detections, category, eleven) for category in (1, 2)]
        np.testing.assert_allclose(list(scores.values()), wanted, rtol=0, atol=1e-12)
        there = [score for score in wanted if score >= 0]
        assert mean == pytest.approx(np.mean(there) if there else -1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"score": 0.5}, "1 objects or detections have no bbox, the first of image 1"),
        ({"score": 0.5, "bbox": None}, "bbox None: give x, y, width and height"),
        ({"score": 0.5, "bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\]: give x, y, width and height"),
    ],
)
def test_detections_without_a_box_are_refused(row: Row, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        voc_scores(truth_of([], images=1, names=("cat",)), [{"image_id": 1, "category_id": 1, **row}])
