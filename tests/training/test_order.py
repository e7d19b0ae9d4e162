"""The order of training: every sentence once a pass, whatever the number of groups, and exactly."""

from __future__ import annotations

import numpy as np
import pytest

from ris.training.order import Lists, Order

WIDE = np.random.default_rng(0).random(103) < 0.7


def order(groups=2, group=4, seed=0, wide=WIDE):
    return Order(Lists((len(wide),), (1.0,), seed), wide, groups, group)


def drawn(made, steps, groups=2):
    return [made.group(step, number) for step in range(steps) for number in range(groups)]


def test_every_sentence_comes_once_a_pass():
    lists = Lists((50,), (1.0,), 0)
    passes = [lists.one_pass(number) for number in range(3)]
    for one in passes:
        assert sorted(one) == list(range(50))
    assert not np.array_equal(passes[0], passes[1])


def test_sentences_are_dealt_to_the_groups_in_turn_without_end():
    """With 103 sentences and 2 groups the second pass begins with the other group."""
    lists = Lists((103,), (1.0,), 0)
    endless = np.concatenate([lists.one_pass(number) for number in range(4)])
    made = order(group=1, wide=np.ones(103, bool))
    for number in range(2):
        own = [int(made.group(step, number)[0]) for step in range(200)]
        assert own == endless[number::2][:200].tolist()


def test_a_group_has_one_orientation_and_nothing_is_lost():
    counts = np.zeros(103, int)
    for batch in drawn(order(), 130):
        assert len(batch) == 4
        assert len(set(WIDE[batch])) == 1
        counts[batch] += 1
    # 1040 draws are ten passes; what waits for the next one has come once less
    assert counts.min() >= 9
    assert counts.max() <= 11


def test_any_step_is_found_without_those_before_it():
    ahead = drawn(order(), 120)
    for step in (119, 3, 60):
        for number in range(2):
            fresh = order().group(step, number)
            np.testing.assert_array_equal(fresh, ahead[2 * step + number])
    made = order()
    made.group(119, 0)
    np.testing.assert_array_equal(made.group(3, 0), ahead[6])


def test_another_seed_is_another_order():
    assert not np.array_equal(drawn(order(), 3), drawn(order(seed=1), 3))


@pytest.mark.parametrize(
    ("weights", "share"), [((2, 1), 2 / 3), ((1, 1), 1 / 2), ((0.1, 3), 1 / 31)]
)
def test_weights_are_shares_of_the_samples(weights, share):
    lists = Lists((40, 13), weights, 0)
    passes = [lists.one_pass(number) for number in range(50)]
    everything = np.concatenate(passes)
    first, second = everything[everything < 40], everything[everything >= 40] - 40
    assert len(first) / len(everything) == pytest.approx(share, abs=0.001)
    assert all(len(one) == 53 for one in passes)
    for own, size in ((first, 40), (second, 13)):
        counts = np.bincount(own, minlength=size)
        assert counts.max() - counts.min() <= 1, "every sentence of a set as often as the others"


def test_a_mixed_pass_is_mixed_from_end_to_end():
    one = Lists((100, 100), (1, 1), 0).one_pass(0)
    assert 20 < (one[:100] < 100).sum() < 80
