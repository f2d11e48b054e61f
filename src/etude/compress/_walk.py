r"""Calibration block by block: each block sees what the blocks before it make of the calibration draw, one block's statistics at a time.

For every linear layer the second moment of its input is kept, \(H = \frac{1}{n} \sum_t x_t x_t^\top\); layers that read the same tensor
(query, key, value; gate, up) share one H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from etude.data.contract import Batch
from etude.nn.surgery import evaluating, find_blocks, is_linear

# Dimensions: B batch, T tokens, D model width, I inputs of a layer.
Moments = Mapping[str, Tensor]  # layer name -> H (I, I); layers with the same input hold the same tensor
Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a block, without the hidden state


class _Enough(Exception):
    """Stops a forward pass once all that is wanted was seen."""


@torch.no_grad()
def by_block(model: PreTrainedModel, batches: Iterable[Batch], change: Callable[[Moments], None], through_changed: bool = True) -> None:
    """Call `change` with the moments of each block's layers, first block first.

    Args:
        model: a model with one stack of blocks.
        batches: the calibration draw.
        change: gets {layer name: H}, may change the block's layers.
        through_changed: the next block sees the output of the changed block, else that of the original one (one pass less).

    Raises:
        ValueError: the draw holds no tokens.
    """
    name, blocks = find_blocks(model)
    draw = [{key: value.to(model.device) for key, value in batch.items()} for batch in batches]
    if not sum(int(batch["attention_mask"].sum()) for batch in draw):
        raise ValueError("the calibration draw holds no tokens: bring at least one window of text")
    with evaluating(model):
        alike = _alike(model, blocks, draw[0])
        starts = [_start(model, blocks, batch, alike) for batch in draw]
        hidden = [state for state, _ in starts]
        for l, block in enumerate(blocks):
            watch = _Watch(f"{name}.{l}", block)
            after = [
                watch.run(state, arguments[alike[l]], batch["attention_mask"])
                for state, (_, arguments), batch in zip(hidden, starts, draw, strict=True)
            ]
            moments = watch.stop()
            change(moments)
            if through_changed and l + 1 < len(blocks):
                after = [_output(block, state, arguments[alike[l]]) for state, (_, arguments) in zip(hidden, starts, strict=True)]
            hidden = after


def _alike(model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch) -> list[int]:
    """For each block the first block that is called with the very same arguments (masks may differ between kinds of blocks)."""
    seen = _arguments(model, blocks, {key: value[:1, :8] for key, value in batch.items()}, len(blocks) - 1)[1]
    keys = [(tuple(map(id, args)), tuple((key, id(value)) for key, value in sorted(kwargs.items()))) for args, kwargs in seen.values()]
    return [keys.index(key) for key in keys]


def _start(model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch, alike: list[int]) -> tuple[Tensor, dict[int, Arguments]]:
    return _arguments(model, blocks, batch, max(alike))


def _arguments(model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch, last: int) -> tuple[Tensor, dict[int, Arguments]]:
    """What enters the first block, and the other arguments of all blocks up to `last`."""
    first, seen = list[Tensor](), dict[int, Arguments]()

    def watch(l: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state, rest = (args[0], kwargs) if args else (kwargs["hidden_states"], {k: v for k, v in kwargs.items() if k != "hidden_states"})
            if l == 0:
                first.append(state)
            seen[l] = (args[1:], rest)
            if l == last:
                raise _Enough

        return hook

    hooks = [block.register_forward_pre_hook(watch(l), with_kwargs=True) for l, block in enumerate(blocks)]
    try:
        model(**batch, use_cache=False)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return first[0], seen


def _output(block: nn.Module, state: Tensor, arguments: Arguments) -> Tensor:
    output = block(state, *arguments[0], **arguments[1])
    return output[0] if isinstance(output, tuple) else output


class _Watch:
    """Sums the second moments of a block's layers while it runs."""

    def __init__(self, name: str, block: nn.Module) -> None:
        self.block, self.tokens, self.mask_BT = block, 0, torch.empty(0)
        self.sums, self.leader, self.inputs = dict[str, Tensor](), dict[str, str](), dict[int, tuple[str, Tensor]]()
        layers = [(f"{name}.{inner}", module) for inner, module in block.named_modules() if is_linear(module)]
        self.hooks = [module.register_forward_pre_hook(self._hook(inner)) for inner, module in layers]

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            leader = self.leader.setdefault(name, self.inputs.setdefault(id(x), (name, x))[0])
            if leader == name:
                x_nI = x[self.mask_BT] if x.shape[:2] == self.mask_BT.shape else x.flatten(0, -2)
                x_nI = x_nI.float()
                if name not in self.sums:
                    self.sums[name] = x_nI.new_zeros(x_nI.shape[1], x_nI.shape[1])
                self.sums[name].addmm_(x_nI.T, x_nI)

        return hook

    def run(self, state: Tensor, arguments: Arguments, mask_BT: Tensor) -> Tensor:
        self.mask_BT = mask_BT.bool()
        self.tokens += int(mask_BT.sum())
        output = _output(self.block, state, arguments)
        self.inputs.clear()
        return output

    def stop(self) -> Moments:
        for hook in self.hooks:
            hook.remove()
        for total in self.sums.values():
            total /= self.tokens
        return {name: self.sums[leader] for name, leader in self.leader.items()}
