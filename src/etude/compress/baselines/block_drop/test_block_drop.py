"""Invariants of block dropping, on random Llama and GPT-2 models of a few thousand parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from etude.compress.baselines.block_drop import BlockDrop, block_influence, least_influential
from etude.data.contract import Budget
from etude.nn.surgery import find_blocks
from etude.nn.tiny import tiny_gpt2, tiny_llama


def tiny(architecture: str, layers: int = 6):
    return tiny_llama(layers) if architecture == "llama" else tiny_gpt2(layers)


class Draw:
    """Calibration data that is always the same few batches."""

    def __init__(self, *batches):
        self.batches = batches

    def calibration(self, tokens: int, length: int):
        return self.batches


IDS = torch.arange(40).reshape(2, 20) % 50
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "gpt2"])


@ARCHITECTURES
def test_dropped_model_reloads_and_generates_alike(architecture, tmp_path):
    model = BlockDrop(share=0.5).compress(tiny(architecture), Draw(BATCH))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert len(find_blocks(again)[1]) == 3
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    greedy = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(again.generate(IDS[:, :5], **greedy), model.generate(IDS[:, :5], **greedy))


@ARCHITECTURES
def test_a_block_that_writes_nothing_has_no_influence_and_goes_first(architecture):
    model = tiny(architecture)
    _, blocks = find_blocks(model)
    for name, weight in blocks[3].named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight", "c_proj.bias")):
            weight.data.zero_()
    influence = block_influence(model, blocks, [BATCH])
    assert influence[3] < 1e-6 and influence.argmin() == 3
    before = model(IDS).logits
    torch.testing.assert_close(BlockDrop(share=0.17).compress(model, Draw(BATCH))(IDS).logits, before)


@ARCHITECTURES
def test_influence_ignores_padding_and_dropout_and_restores_the_mode(architecture):
    model = tiny(architecture)
    _, blocks = find_blocks(model)
    plain = block_influence(model, blocks, [BATCH])
    padded = {k: torch.nn.functional.pad(v, (0, 7)) for k, v in BATCH.items()}
    torch.testing.assert_close(block_influence(model.train(), blocks, [padded]), plain)
    assert model.training


def test_operating_points_reach_the_budget_in_whole_blocks():
    model = tiny("llama")
    blocks = sum(weight.nbytes for weight in model.model.layers.parameters())
    size = float(sum(weight.nbytes for weight in model.parameters()))

    def counts(share: float) -> list[int]:
        """Blocks dropped at each point, where the blocks may keep this share of their bytes."""
        budget = Budget("bytes", size - (1 - share) * blocks, size)
        return [round(point.share * 6) for point in BlockDrop(share=0.4).points(budget, model)]

    assert counts(0.49) == [2, 4]
    assert counts(0.01) == [3, 5]  # one block always stays
    assert counts(0.8) == [1, 2]
    assert counts(1.0) == [1, 2]  # no budget: around the share


@given(count=st.integers(0, 12), protect=st.integers(0, 12), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_selection_takes_the_count_keeps_the_protected_or_refuses(count, protect, seed):
    influence = torch.rand(8, generator=torch.Generator().manual_seed(seed))
    if count > min(8 - min(protect, 8), 7):
        with pytest.raises(ValueError, match="cannot remove"):
            least_influential(influence, count, protect)
    else:
        drop = least_influential(influence, count, protect)
        assert len(drop) == count and all(l >= protect for l in drop)


@pytest.mark.parametrize("options", [dict(share=0), dict(share=1), dict(share=float("nan")), dict(protect_first=-1)])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BlockDrop(**options)


def test_what_cannot_be_done_is_refused_by_name():
    with pytest.raises(ValueError, match="no tokens"):
        BlockDrop().compress(tiny("llama"), Draw())
    with pytest.raises(ValueError, match="less than half a block"):
        BlockDrop(share=0.05).compress(tiny("llama"), Draw(BATCH))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder and a decoder"):
        BlockDrop().compress(t5, Draw(BATCH))
