"""What a decoder remembers between calls: named tensors a layer, behind transformers' cache interface.

A tensor that grows with the text (keys and values) is appended to along its time axis; one of fixed size (a recurrent state, the last inputs of a
convolution) is replaced. The first kind can be cut back, so that speculative decoding works; the second cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

TIME = -2  # the axis along which keys and values (B, heads, T, width) grow


class LayerState(CacheLayerMixin):
    """One layer's memory: tensors by name, the batch first.

        state["conv"] = conv_BDK                       # of fixed size: replaced
        keys_BHSK = state.append("keys", keys_BHTK)    # growing: what came before, then the new

    `update(keys, values)` is transformers' name for appending both.
    """

    is_compileable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}  # of the growing ones

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.tensors[name] = value

    def append(self, name: str, new: Tensor, axis: int = TIME) -> Tensor:
        """The tensor `name` with `new` after it along `axis`, which is remembered and returned."""
        self.axes[name] = axis
        self.tensors[name] = torch.cat([self.tensors[name], new], axis) if name in self.tensors else new
        return self.tensors[name]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, width), the new ones last."""
        return self.append("keys", key_states), self.append("values", value_states)

    @property
    def is_croppable(self) -> bool:
        """Whether everything here grows with the text, so that its end can be cut off."""
        return bool(self.tensors) and self.tensors.keys() == self.axes.keys()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; `tokens_to_remove` is negative or 0, as transformers counts.

        Raises:
            ValueError: there is a state of fixed size, or the count is positive.
        """
        if tokens_to_remove == 0 or not self.tensors:
            return
        if tokens_to_remove > 0:
            raise ValueError(f"crop counts tokens to remove as a negative number, got {tokens_to_remove}")
        if not self.is_croppable:
            fixed = ", ".join(self.tensors.keys() - self.axes.keys())
            raise ValueError(f"{fixed} cannot be cut back to an earlier token: run the text again without this cache")
        self._each(lambda name, tensor: tensor.narrow(self.axes[name], 0, tensor.shape[self.axes[name]] + tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda name, tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda name, tensor: tensor.repeat_interleave(repeats, 0))

    def offload(self) -> None:
        self._each(lambda name, tensor: tensor.to("cpu", non_blocking=True))

    def reset(self) -> None:
        self.tensors, self.axes = {}, {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: tensors are made when they are first written."""

    def get_seq_length(self) -> int:
        return int(self.tensors["keys"].shape[TIME]) if "keys" in self.tensors else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> None:
        self.tensors = {name: change(name, tensor) for name, tensor in self.tensors.items()}


class DecoderCache(Cache):
    """The memory of all layers, and how many tokens it has seen (padding included).

    Args:
        layers: how many layers the decoder has.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[LayerState() for _ in range(layers)])
        self.seen = 0

    def advance(self, tokens: int) -> None:
        """The decoder calls it at the end of each forward pass."""
        self.seen += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.seen = max(0, self.seen + tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.seen = 0
