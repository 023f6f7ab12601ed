"""What holds for every length, batch, world, accumulation and start."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from attneck.data import loader
from attneck.data.sampling import EvalBatches, Key, TrainBatches, spread


@st.composite
def plans(draw: Any) -> dict[str, int]:
    """The numbers of a training: each optimiser step has world · accumulate · micro images."""
    world, accumulate, micro = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    batch = world * accumulate * micro
    return {
        "length": draw(st.integers(batch, 4 * batch + 7)),
        "batch": batch,
        "world": world,
        "accumulate": accumulate,
        "seed": draw(st.integers(0, 2**63)),
        "steps": draw(st.integers(1, 12)),
    }


def of_ranks(plan: dict[str, int], start: int = 0) -> list[list[list[Key]]]:
    return [list(TrainBatches(**plan, rank=rank, start=start)) for rank in range(plan["world"])]  # type: ignore[arg-type]


@given(plans())
def test_an_epoch_has_every_index_once(plan: dict[str, int]) -> None:
    """Over all ranks and micro-batches; of the last, incomplete batch each image is in none."""
    ranks = of_ranks(plan)
    a_epoch = plan["length"] // plan["batch"]
    micro = plan["batch"] // (plan["world"] * plan["accumulate"])
    for rank in ranks:
        assert len(rank) == plan["steps"] * plan["accumulate"]
        assert {len(part) for part in rank} == {micro}
    for epoch in range(-(-plan["steps"] // a_epoch)):
        first, last = epoch * a_epoch, min((epoch + 1) * a_epoch, plan["steps"])
        parts = slice(first * plan["accumulate"], last * plan["accumulate"])
        keys = [key for rank in ranks for part in rank[parts] for key in part]
        assert {e for e, _ in keys} == {epoch}
        indices = [index for _, index in keys]
        assert len(set(indices)) == len(indices) == (last - first) * plan["batch"]
        assert set(indices) <= set(range(plan["length"]))
        if last - first == a_epoch:
            assert plan["length"] - len(indices) < plan["batch"]


@given(plans(), st.data())
def test_another_world_and_accumulation_take_the_same_steps(
    plan: dict[str, int], data: st.DataObject
) -> None:
    """The images of each step are those of one process that sees the whole batch, in any order."""
    alone = plan | {"world": 1, "accumulate": 1}
    start = data.draw(st.integers(0, plan["steps"]), label="start")
    ranks, whole = of_ranks(plan, start), of_ranks(alone)[0]
    for step in range(start, plan["steps"]):
        first = (step - start) * plan["accumulate"]
        keys = [key for rank in ranks for part in rank[first : first + plan["accumulate"]] for key in part]
        assert sorted(keys) == sorted(whole[step])


@given(plans(), st.data())
def test_resuming_at_any_step_takes_the_rest(plan: dict[str, int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, plan["steps"]), label="start")
    for rank, rest in zip(of_ranks(plan), of_ranks(plan, start), strict=True):
        assert rest == rank[start * plan["accumulate"] :]


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 9))
def test_evaluation_counts_each_image_once(length: int, batch: int, world: int) -> None:
    ranks = [EvalBatches(length, batch, rank=rank, world=world) for rank in range(world)]
    keys = [key for rank in ranks for part in rank for key in part]
    assert keys == [(0, index) for index in range(length)]
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    shares = [rank.last - rank.first for rank in ranks]
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 500), st.data())
def test_a_part_of_a_set_is_spread_over_it(count: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count), label="size")
    chosen = spread(count, size, "set").tolist()
    assert len(set(chosen)) == size
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    gaps = [later - sooner for sooner, later in zip(chosen, [*chosen[1:], count], strict=True)]
    assert max(gaps) - min(gaps) <= 1


class Keys(Dataset[Tensor]):
    """A data set whose items are their own keys."""

    def __getitems__(self, keys: list[Key]) -> Tensor:
        return torch.tensor(keys)


@settings(max_examples=5)
@given(plans(), st.integers(1, 2))
def test_workers_change_nothing(plan: dict[str, int], workers: int) -> None:
    for rank in range(min(2, plan["world"])):
        batches = TrainBatches(**plan, rank=rank)  # type: ignore[arg-type]
        seen = [[tuple(key) for key in part.tolist()] for part in loader(Keys(), batches, workers)]
        assert seen == list(batches)
