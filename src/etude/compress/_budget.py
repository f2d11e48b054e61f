"""What a budget leaves for the weights of a model's blocks."""

from __future__ import annotations

from transformers import PreTrainedModel

from etude.data.contract import Budget
from etude.nn.surgery import block_linears, weight_of


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights as they would be saved: tied ones once."""
    return sum(weight.nbytes for weight in model.parameters())


def block_bytes(model: PreTrainedModel) -> int:
    """Bytes of the linear layers inside the blocks."""
    return sum(weight_of(layer).nbytes for layer in block_linears(model).values())


def left_for_blocks(budget: Budget, model: PreTrainedModel) -> float:
    """The share of its present bytes that the blocks' linear layers may keep, so that the folder meets a budget in bytes.

    1 where bytes are not limited; zero or less where the rest of the model alone is too large.
    """
    if budget.axis != "bytes" or budget.share == 1:
        return 1.0
    blocks = block_bytes(model)
    return min(1.0, (budget.limit - (stored_bytes(model) - blocks)) / blocks)
