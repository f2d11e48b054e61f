"""The same function off its quantisation grid: norms folded into the next weights, the residual stream turned by an orthogonal matrix.

With Q orthogonal, g the weight of an RMS norm and x the residual stream, norm(x) g = (norm(x Q) Qᵀ) g, because an RMS norm without weight
commutes with rotations. So every weight that reads the stream becomes W diag(g) Q, every weight that writes it Qᵀ W, the embedding E Q,
and the model with all norm weights at one answers as before. The head reads and the embedding does not, so the two are untied.
Also here: how far from a quantisation grid do weights lie?
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0
BLOCK, LEVELS = 32, 16  # of the Q4 formats: blocks of 32 weights, 16 values each
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def orthogonal(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix (size, size), uniformly distributed, in float64."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=dice, dtype=torch.float64))
    turned: Tensor = q * r.diagonal().sign()
    return turned


def rotate(source: Path, folder: Path, seed: int = SEED) -> None:
    """Write the Llama-style model of `source`, rotated, into `folder`.

    Raises:
        ValueError: the model is no Llama (RMS norms, no biases).
    """
    from safetensors.torch import load_file, save_file

    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"only a Llama without biases can be rotated, {source} holds a {config['model_type']}")
    weights = load_file(source / "model.safetensors")
    turned = rotated(weights, config["num_hidden_layers"], seed)
    save_file(turned, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2) + "\n")
    for file in source.iterdir():
        if file.name not in ("config.json", "model.safetensors") and file.is_file():
            shutil.copyfile(file, folder / file.name)


def rotated(weights: dict[str, Tensor], layers: int, seed: int) -> dict[str, Tensor]:
    """The weights of the rotated model, computed in float64 and given in their own precision."""
    embedding = weights["model.embed_tokens.weight"]
    q = orthogonal(embedding.shape[1], seed)
    head = weights.get("lm_head.weight", embedding)
    out = dict(weights)
    out["model.embed_tokens.weight"] = embedding.double() @ q
    out["lm_head.weight"] = head.double() * weights["model.norm.weight"].double() @ q
    out["model.norm.weight"] = weights["model.norm.weight"].new_ones(q.shape[0])
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for norm, readers in READERS.items():
            gain = weights[f"{at}.{norm}.weight"].double()
            for name in readers:
                out[f"{at}.{name}.weight"] = weights[f"{at}.{name}.weight"].double() * gain @ q
            out[f"{at}.{norm}.weight"] = gain.new_ones(gain.shape)
        for name in WRITERS:
            out[f"{at}.{name}.weight"] = q.T @ weights[f"{at}.{name}.weight"].double()
    return {name: weight.to(embedding.dtype).contiguous() for name, weight in out.items()}


def grid_residual(weight: Tensor, levels: int = LEVELS) -> float:
    """How far a matrix lies from the nearest grid of `levels` values a block of 32: root mean square, in steps.

    0 is on the grid; 0.289 is a uniform residual, a matrix that knows nothing of the grid.
    """
    blocks = weight.double().reshape(-1, BLOCK)
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    at = (blocks - low) / ((high - low) / (levels - 1)).clamp_min(1e-12)
    return float((at - at.round()).square().mean().sqrt())
