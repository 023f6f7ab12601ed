"""Order and draws are functions of (seed, epoch, index), whatever the ranks, workers and start."""

import numpy as np
import pytest

from attneck.data.sampling import (
    EvalBatches,
    TrainBatches,
    hash64,
    item_seeds,
    order,
    step_seed,
    uniforms,
)


def test_order_is_a_permutation_that_seed_and_epoch_decide() -> None:
    for length in (1, 2, 1000):
        assert sorted(order(3, 5, length).tolist()) == list(range(length))
    first = order(3, 5, 1000).tolist()
    assert first == order(3, 5, 1000).tolist()
    assert first != order(3, 6, 1000).tolist()
    assert first != order(4, 5, 1000).tolist()


def test_order_is_pinned() -> None:
    assert order(0, 0, 10).tolist() == [8, 5, 7, 6, 3, 4, 9, 1, 0, 2]
    assert int(hash64(1, 2, 3)[0]) == 0x27D1DADE99DDF6A4


def test_order_puts_every_item_anywhere() -> None:
    length, epochs = 20, 2000
    places = np.zeros((length, length))
    for epoch in range(epochs):
        places[np.arange(length), order(1, epoch, length).numpy()] += 1
    expected = epochs / length
    chi_square = ((places - expected) ** 2 / expected).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_uniforms_depend_on_their_own_counter_alone() -> None:
    indices = np.array([7, 3, 10**12, 0])
    whole = uniforms(1, 2, indices, 5)
    for row, index in zip(whole, indices.tolist(), strict=True):
        np.testing.assert_array_equal(row, uniforms(1, 2, [index], 5)[0])
        np.testing.assert_array_equal(row[:2], uniforms(1, 2, [index], 2)[0])
    mixed = uniforms(1, np.array([2, 9, 2, 4]), indices, 5)
    np.testing.assert_array_equal(mixed[0], whole[0])
    np.testing.assert_array_equal(mixed[1], uniforms(1, 9, [3], 5)[0])


@pytest.mark.parametrize(
    "draws",
    [
        uniforms(0, 0, np.arange(40_000), 4),
        np.concatenate([uniforms(0, epoch, np.arange(40), 4) for epoch in range(1000)]),
        np.concatenate([uniforms(seed, 0, np.arange(40), 4) for seed in range(1000)]),
    ],
    ids=["over indices", "over epochs", "over seeds"],
)
def test_uniforms_are_uniform_and_independent(draws: np.ndarray) -> None:
    count = draws.size
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * count)
    histogram = np.bincount((draws * 256).astype(int).ravel(), minlength=256)
    chi_square = ((histogram - count / 256) ** 2 / (count / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    # Neighbours along either axis are uncorrelated, in their high bits and in their low ones.
    for values in (draws, draws * 2**20 % 1):
        centred = values - 0.5
        for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
            assert abs((a * b).mean() * 12) < 4.5 / np.sqrt(a.size)
    assert len(np.unique(draws)) == count


def test_seeds_are_distinct_and_63_bit() -> None:
    seeds = [seed for s in range(3) for e in range(10) for seed in item_seeds(s, e, np.arange(30))]
    seeds += [step_seed(s, k, r) for s in range(3) for k in range(30) for r in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert item_seeds(-1, 0, 0) != item_seeds(1, 0, 0)
    assert item_seeds(5, [1, 2], [8, 7]) == [*item_seeds(5, 1, 8), *item_seeds(5, 2, 7)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
def test_union_over_ranks_and_micro_batches_is_the_global_order(world: int, accumulate: int) -> None:
    length, batch, steps = 101, 24, 10
    ranks = [
        list(TrainBatches(length, batch, seed=9, rank=r, world=world, accumulate=accumulate, steps=steps))
        for r in range(world)
    ]
    for step in range(steps):
        epoch, k = divmod(step, length // batch)
        parts = [rank[step * accumulate + part] for part in range(accumulate) for rank in ranks]
        assert {len(part) for part in parts} == {batch // (world * accumulate)}
        keys = [key for part in parts for key in part]
        assert keys == [(epoch, i) for i in order(9, epoch, length)[k * batch : (k + 1) * batch].tolist()]


def test_all_images_of_a_step_have_one_side_whatever_the_ranks_and_micro_batches() -> None:
    sides = [24, 32, 48]
    whole = list(TrainBatches(50, 8, seed=1, steps=300, sides=sides))
    assert [[key[:2] for key in keys] for keys in whole] == list(TrainBatches(50, 8, seed=1, steps=300))
    drawn = [{key[2] for key in keys} for keys in whole]
    counts = [drawn.count({side}) for side in sides]
    assert sum(counts) == 300
    assert min(counts) > 70  # of 100; 30 fewer would be over three standard deviations
    other = list(TrainBatches(50, 8, seed=2, steps=300, sides=sides))
    assert [{key[2] for key in keys} for keys in other] != drawn
    for rank in (0, 1):
        mine = list(TrainBatches(50, 8, seed=1, rank=rank, world=2, accumulate=2, steps=300, sides=sides))
        assert [{key[2] for key in keys} for keys in mine] == [side for side in drawn for _ in (0, 1)]


@pytest.mark.parametrize("sides", [(), (24, 32)])
def test_resuming_anywhere_yields_the_rest(sides: tuple[int, ...]) -> None:
    whole = list(TrainBatches(50, 8, seed=1, accumulate=2, steps=20, sides=sides))
    for start in range(21):
        rest = TrainBatches(50, 8, seed=1, accumulate=2, start=start, steps=20, sides=sides)
        assert list(rest) == whole[2 * start :]
        assert len(rest) == len(whole) - 2 * start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 51}, "51 is larger than the data set of 50 images: choose"),
        ({"batch": 9, "world": 2}, "not divide over 2 processes with 1 micro-batches .* a multiple of 2"),
        ({"batch": 8, "world": 2, "accumulate": 3}, "choose a multiple of 6"),
        ({"batch": 8, "rank": 2, "world": 2}, "rank is 2 of 2"),
        ({"batch": 8, "start": 7}, "start is 7 of 5"),
        ({"batch": 0}, "must be 1 or more"),
    ],
)
def test_impossible_batches_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainBatches(50, seed=0, steps=5, **arguments)


@pytest.mark.parametrize(
    ("length", "batch", "world"), [(10, 3, 1), (10, 3, 4), (3, 5, 4), (0, 2, 2), (64, 8, 2)]
)
def test_evaluation_visits_every_index_once_in_order(length: int, batch: int, world: int) -> None:
    ranks = [EvalBatches(length, batch, rank=r, world=world) for r in range(world)]
    batches = [part for rank in ranks for part in rank]
    assert [key for part in batches for key in part] == [(0, i) for i in range(length)]
    assert sum(len(rank) for rank in ranks) == len(batches)
    assert all(1 <= len(part) <= batch for part in batches)
