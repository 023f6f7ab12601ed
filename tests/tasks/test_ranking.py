"""The area under the ROC curve, against the count of all pairs."""

from hypothesis import given
from hypothesis import strategies as st

from attneck.tasks.ranking import area

images = st.lists(st.tuples(st.sampled_from([-1.5, 0.0, 0.25, 3.0]) | st.floats(-9, 9), st.integers(0, 1)))


@given(images)
def test_it_is_the_share_of_pairs_in_order(rows: list[tuple[float, int]]) -> None:
    ones = [score for score, label in rows if label]
    zeros = [score for score, label in rows if not label]
    found = area([score for score, _ in rows], [label for _, label in rows])
    if not ones or not zeros:
        assert found is None
        return
    above = sum((one > zero) + 0.5 * (one == zero) for one in ones for zero in zeros)
    assert found is not None
    assert abs(found - 100 * above / (len(ones) * len(zeros))) < 1e-9


def test_it_does_not_depend_on_a_threshold() -> None:
    assert area([5.0, 6.0, 7.0, 8.0], [0, 0, 1, 1]) == 100.0
    assert area([5.0, 6.0, 7.0, 8.0], [1, 1, 0, 0]) == 0.0
