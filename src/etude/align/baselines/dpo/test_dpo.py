"""DPO: what is peculiar to it; that it trains as TRL does stands with the trainer."""

import pytest

from etude.align._pairs import encode
from etude.align._score import score
from etude.align._tiny import data_of
from etude.align.baselines.dpo import DPO
from etude.data.contract import Budget, Preferences
from etude.nn.tiny import tiny_llama


def test_a_stronger_hold_keeps_the_policy_nearer():
    data, moved = data_of(36), list[float]()
    pairs = encode(data.tokenizer, data.train[Preferences], 512).pairs
    for beta in (0.05, 50.0):
        policy = tiny_llama(layers=2)
        before = score(policy, pairs)
        made = DPO(beta=beta, rate=3e-3, epochs=4, rank=4).train(policy, data)
        moved.append(float(score(made, pairs).ratio(before).abs().mean()))
    assert moved[0] > 2 * moved[1]


def test_points_hold_once_three_and_ten_times():
    points = DPO(beta=0.2, rank=4).points(Budget("kl", float("inf"), 1.0), tiny_llama(layers=1))
    assert [point.beta for point in points] == pytest.approx([0.2, 0.6, 2.0]) and all(point.rank == 4 for point in points)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beta_that_holds_nothing_is_refused(beta):
    with pytest.raises(ValueError, match="beta must be above 0"):
        DPO(beta=beta)
