"""Digests of tensors, by which dear intermediate results are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Digest of names, dtypes, shapes and values."""
    running = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        running.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return running.hexdigest()
