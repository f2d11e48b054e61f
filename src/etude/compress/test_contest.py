"""What holds for every contender of the contest beyond the conformance suite."""

import pytest
import torch

from etude import catalogue
from etude.data.contract import Data, Split
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_text

CONTENDERS = [entry for entry in catalogue.entries().values() if "compress" in entry.enters]


@pytest.mark.parametrize("entry", CONTENDERS, ids=lambda entry: entry.name)
def test_a_context_shorter_than_the_calibration_windows_is_kept_to(entry):
    model, text = tiny_gpt2(layers=8, context=48), tiny_text()
    made = catalogue.make(entry, {}).compress(model, Data(Split(text), Split(text), 0, byte_tokenizer()))
    with torch.inference_mode():
        assert made(torch.arange(48)[None]).logits.isfinite().all()
