r"""Block dropping: remove the transformer blocks that change the residual stream least.

A pre-norm block writes an update into the residual stream, \(h_{l+1} = h_l + f_l(h_l)\). If the update hardly turns
the stream, the blocks after it hardly notice its absence. The *block influence* measures that turn over calibration
tokens (ShortGPT, arXiv 2403.03853, eq. 1):

$$ \mathrm{BI}_l = 1 - \mathbb{E}_{b,t}\left[ \frac{h_{l,bt} \cdot h_{l+1,bt}}{\lVert h_{l,bt}\rVert\,\lVert h_{l+1,bt}\rVert} \right] $$

The blocks with the lowest influence go; nothing is retrained.

Use it when latency and memory must fall by a fixed share at once and a recovery fine-tune will follow.
Not when every block is busy (models under about ten blocks: one dropped block costs more than 4-bit weights do), nor when
exact recall of rare facts matters: it falls first.

    >>> from etude.compress.baselines.block_drop import BlockDrop
    >>> model = BlockDrop(share=0.2).compress(model, data)      # in place: 24 of 30 blocks stay
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude.compress._budget import left_for_blocks
from etude.data.contract import Batch, Budget, Data
from etude.measure.quality import context_of
from etude.nn.surgery import evaluating, find_blocks

PAPER, ROLE, CLASS = "2403.03853", "contender", "BlockDrop"
ENTERS = ("compress",)
NEEDS = ("Text",)
TRAITS = ("structured",)

# Dimensions: B batch, T tokens, D model width, L blocks.


@dataclass(frozen=True)
class BlockDrop:
    """Options of block dropping.

    Attributes:
        share: share of the blocks to remove, in (0, 1), rounded to whole blocks.
        protect_first: how many leading blocks are never removed (they build the features all others read).
    """

    share: float = 0.2
    protect_first: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share}: it is the share of the blocks to remove")
        if self.protect_first < 0:
            raise ValueError(f"protect_first counts blocks and cannot be negative, got {self.protect_first}")

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points in whole blocks: half of the way to the budget, and all of it; without one, half of `share` and all of it."""
        total, left = len(find_blocks(subject)[1]), left_for_blocks(budget, subject)
        most = self.share * total if left >= 1 else ceil((1 - max(left, 0)) * total - 1e-6)
        most = min(max(1, round(most)), total - max(1, self.protect_first))
        return [replace(self, share=count / total) for count in sorted({(most + 1) // 2, most}) if count > 0]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Remove the least influential blocks of `model`, in place, and return it.

        Args:
            model: a decoder or encoder whose blocks are one `nn.ModuleList`.
            data: its calibration draw is used; a few thousand tokens of the target domain are enough.

        Raises:
            ValueError: the model has two stacks or none, `share` is less than half a block, too few blocks are
                unprotected, or the draw holds no tokens.
        """
        name, blocks = find_blocks(model)
        count = round(self.share * len(blocks))
        if count == 0:
            raise ValueError(f"share {self.share} of {len(blocks)} blocks is less than half a block: raise it")
        calibration = data.calibration(tokens=4096, length=context_of(model, 512))
        drop = least_influential(block_influence(model, blocks, calibration), count, self.protect_first)
        keep_blocks(model, name, [l for l in range(len(blocks)) if l not in drop])
        return model


@torch.inference_mode()
def block_influence(model: PreTrainedModel, blocks: nn.ModuleList, batches: Iterable[Batch]) -> Float[Tensor, " L"]:
    """Mean turn of the residual stream at each block (eq. 1) over unpadded tokens: 0 keeps its direction, 2 reverses it."""
    turn_L = torch.zeros(len(blocks), dtype=torch.float64, device=model.device)
    tokens, mask_BT = 0, torch.empty(0)

    def record(l: int):
        def hook(_, args, kwargs, output):
            before_BTD = args[0] if args else kwargs["hidden_states"]
            after_BTD = output[0] if isinstance(output, tuple) else output
            cosine_BT = torch.cosine_similarity(before_BTD.float(), after_BTD.float(), dim=-1)
            turn_L[l] += ((1 - cosine_BT) * mask_BT).sum().double()

        return hook

    hooks = [block.register_forward_hook(record(l), with_kwargs=True) for l, block in enumerate(blocks)]
    try:
        with evaluating(model):
            for batch in batches:
                batch = {key: value.to(model.device) for key, value in batch.items()}
                mask_BT = batch["attention_mask"]
                model(**batch, use_cache=False)
                tokens += int(mask_BT.sum())
    finally:
        for hook in hooks:
            hook.remove()
    if tokens == 0:
        raise ValueError("the calibration draw holds no tokens: bring at least one window of text")
    return (turn_L / tokens).float().cpu()


def least_influential(influence_L: Float[Tensor, " L"], count: int, protect_first: int) -> set[int]:
    """Indices of the `count` blocks with the lowest influence among those after the first `protect_first`."""
    removable = [l for l in influence_L.argsort().tolist() if l >= protect_first]
    if count > min(len(removable), len(influence_L) - 1):
        raise ValueError(f"cannot remove {count} of {len(influence_L)} blocks with the first {protect_first} protected: lower share or protect_first")
    return set(removable[:count])


def keep_blocks(model: PreTrainedModel, name: str, keep: list[int]) -> None:
    """Replace the stack `name` by its blocks `keep` and make the configuration say so, so that the saved folder reloads."""
    blocks = nn.ModuleList([model.get_submodule(name)[l] for l in keep])
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, blocks)
    for position, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):  # the key-value cache is indexed by it
                module.layer_idx = position
    model.config.num_hidden_layers = len(blocks)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[l] for l in keep]
