"""Associative recall: the answer of every question stands in its context, and nowhere else."""

from types import SimpleNamespace

import pytest
import torch

from etude.measure.contract import number
from etude.models._recall import CHANCE, KEYS, PAIRS, SILENT, VALUES, VOCABULARY, accuracy, learn, sequences
from etude.models.planted import llama

ASKS, ANSWERS = KEYS * VALUES, KEYS * VALUES + KEYS  # the first asking and the first answering token


def looked_up(row, place):
    """The value that is stored for the key at `place` of a sequence."""
    return next(int(token) % VALUES for token in row[:place] if token < ASKS and int(token) // VALUES == int(row[place]) - ASKS)


def test_every_question_has_its_answer_among_the_pairs_before_it():
    ids_BT, labels_BT = sequences(50, torch.Generator().manual_seed(0))
    assert ids_BT.shape == labels_BT.shape == (50, 3 * PAIRS) and int(ids_BT.max()) < VOCABULARY
    for row, labels in zip(ids_BT, labels_BT, strict=True):
        assert [place % 3 for place in range(3 * PAIRS) if labels[place] != SILENT] == [2] * PAIRS
        for place in range(1, 3 * PAIRS, 3):
            assert labels[place + 1] == row[place + 1] == ANSWERS + looked_up(row, place)


def test_a_key_stands_for_another_value_in_another_sequence():
    ids_BT, _ = sequences(2000, torch.Generator().manual_seed(0))
    values = ids_BT[:, 0][ids_BT[:, 0] // VALUES == 0] % VALUES
    counts = torch.bincount(values, minlength=VALUES) / len(values)
    assert float((counts - CHANCE).abs().max()) < 0.06


class Knowing(torch.nn.Module):
    """Answers by `answer(row, place)`, as a model of transformers would."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.device = answer, torch.device("cpu")

    def forward(self, input_ids, use_cache):
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row in range(len(input_ids)):
            for place in range(1, 3 * PAIRS, 3):
                logits[row, place, self.answer(input_ids[row], place)] = 1
        return SimpleNamespace(logits=logits)


def test_one_who_looks_up_is_always_right_and_one_who_says_the_same_is_as_good_as_a_guess():
    assert number(accuracy(Knowing(lambda row, place: ANSWERS + looked_up(row, place)))) == 1.0
    assert number(accuracy(Knowing(lambda row, place: ANSWERS))) == pytest.approx(CHANCE, abs=0.03)


def test_attention_learns_it():
    torch.manual_seed(0)
    model = llama(VOCABULARY, 60_000)
    untrained = number(accuracy(model))
    losses = learn(model, 100_000, seed=1)
    found = accuracy(model)
    assert len(losses) == 130 and untrained < 2 * CHANCE and number(found) > 0.7 and not model.training
    assert found.bottom == (PAIRS,) * len(found.ids)
