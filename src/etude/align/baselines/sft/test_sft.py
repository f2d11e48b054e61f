"""SFT on the chosen answers: its loss is theirs alone."""

import pytest
import torch

from etude.align._pairs import encode
from etude.align._score import score
from etude.align._tiny import data_of
from etude.align._train import Batch
from etude.align.baselines.sft import SFT, negative_log_likelihood
from etude.data.contract import Budget, Data, Preferences, Split
from etude.nn.tiny import tiny_llama


def batch_of(chosen, tokens):
    ones = torch.ones(len(chosen))
    empty = torch.zeros(0)
    return Batch(torch.tensor(chosen), empty, 0 * ones, 0 * ones, torch.tensor(tokens), ones, ones, ones)


def test_the_loss_is_nats_a_token():
    assert float(negative_log_likelihood(batch_of([-2.0, -6.0], [2.0, 2.0]))) == pytest.approx(2.0)


def test_chosen_answers_become_likelier_and_what_was_rejected_does_not_matter():
    data = data_of(36)
    part = data.train[Preferences]
    other = Preferences(part.dataset.map(lambda row: {"rejected": " nothing."}), part.roles)
    pairs, made = encode(data.tokenizer, part, 512).pairs, list[torch.Tensor]()
    for train in (part, other):
        policy = tiny_llama(layers=2)
        before = score(policy, pairs).chosen
        policy = SFT(rate=3e-3, epochs=2, rank=4).train(policy, Data(Split(train), data.validation, 0, data.tokenizer))
        made.append(score(policy, pairs).chosen)
        assert float((made[-1] - before).mean()) > 1.0
    assert torch.equal(*made)


def test_there_is_one_point_and_wrong_options_are_refused():
    assert SFT().points(Budget("kl", float("inf"), 1.0), tiny_llama(layers=1)) == [SFT()]
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        SFT(epochs=0)
