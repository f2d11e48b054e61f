"""The untouched model stays untouched."""

import torch

from etude.compress.baselines.untouched import Untouched
from etude.data.contract import Budget, Data, Split
from etude.nn.tiny import tiny_gpt2, tiny_llama


def test_nothing_changes_and_there_is_one_point():
    for model in (tiny_llama(), tiny_gpt2()):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        assert Untouched().compress(model, Data(Split(), Split())) is model
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert Untouched().points(Budget("bytes", 1.0, 100.0), model) == [Untouched()]
