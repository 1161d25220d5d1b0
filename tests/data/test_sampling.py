"""What epochs visit, counted."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musiccm.audio.windows import keyed_generator
from musiccm.data.sampling import MixedSampler, ShuffledSampler
from musiccm.errors import MusiccmError


def epochs(sampler, count):
    found = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


def test_one_corpus_is_visited_in_the_order_that_running_trainings_have():
    expected = torch.randperm(10, generator=keyed_generator(3, "order", 2)).tolist()[:8]
    sampler = ShuffledSampler(10, 4, 3)
    sampler.set_epoch(2)
    assert list(sampler) == [(2, item) for item in expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(5, 40), st.floats(0.3, 3)), min_size=1, max_size=4), st.integers(0, 5))
def test_shares_are_kept_and_every_item_comes_before_any_comes_again(groups, seed):
    sizes, weights = [size for size, _ in groups], [weight for _, weight in groups]
    sampler = MixedSampler(sizes, weights, 1, seed)
    visited = epochs(sampler, 6)
    assert visited == epochs(MixedSampler(sizes, weights, 1, seed), 6)
    owner = [group for group, size in enumerate(sizes) for _ in range(size)]
    total = sum(sizes)
    for epoch in visited:
        assert len(epoch) == total
        shares = Counter(owner[item] for _, item in epoch)
        assert all(abs(shares[g] - total * weight / sum(weights)) <= 1 for g, weight in enumerate(weights))
    flat = [step for epoch in visited for step in epoch]
    assert len(set(flat)) == len(flat), "an item came twice in one pass: the same window again"
    times = Counter(item for _, item in flat)
    for group in range(len(sizes)):
        own = [times[item] for item in range(total) if owner[item] == group]
        assert max(own) - min(own) <= 1


def test_orders_differ_between_epochs_seeds_and_are_mixed():
    first, second = epochs(MixedSampler([30, 30], [1, 2], 1, 0), 2)
    assert first != second and first != epochs(MixedSampler([30, 30], [1, 2], 1, 1), 1)[0]
    assert 5 < sum(item < 30 for _, item in first[:30]) < 15  # not one corpus after the other


@pytest.mark.parametrize("world", [1, 2, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(world):
    batches = []
    for rank in range(world):
        sampler = MixedSampler([20, 16], [1, 3], 12 // world, 5)
        sampler.rank, sampler.num_replicas, sampler.batches = rank, world, 36 // 12
        batches.append(list(sampler))
    size = 12 // world
    merged = [step for n in range(3) for own in batches for step in own[n * size : (n + 1) * size]]
    assert merged == list(MixedSampler([20, 16], [1, 3], 12, 5))


def test_a_corpus_without_a_share_is_refused():
    with pytest.raises(MusiccmError, match="without a single item"):
        MixedSampler([100, 10], [1, 0.0001], 2)
