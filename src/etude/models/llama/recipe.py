"""How the paper trained its four sizes.

AdamW with betas (0.9, 0.95), a decay of 0.1, gradients clipped at 1, 2,000 steps of warm-up, then a cosine to a tenth of the peak; 4 million tokens a
step in texts of 2,048.

Whether norms and embeddings decay the paper does not say: here what is a vector (norms) does not, what is a matrix (embeddings too) does.

    >>> mixture = Mixture({"web": windows(web, 2048), "books": windows(books, 2048)}, {"web": 0.9, "books": 0.1})
    >>> pretrain(model, mixture, recipe(steps=10_000, rate=3e-3), batch=8, checkpoints=folder)      # killed and called again, it goes on
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from etude.fit.loop import Recipe, fit
from etude.models.llama import Llama
from etude.models.llama.corpus.mixture import Mixture
from etude.nn.decoder_config import EtudeDecoderConfig

BATCH, CONTEXT, VOCABULARY, WARMUP = 4_000_000, 2048, 32000, 2000


@dataclass(frozen=True)
class Size:
    """A model of the paper: width, heads, layers, peak rate, tokens it was trained on, and what the first four make in parameters."""

    width: int
    heads: int
    layers: int
    rate: float
    tokens: float
    parameters: int

    def config(self, vocabulary: int = VOCABULARY) -> EtudeDecoderConfig:
        """Its configuration."""
        return Llama(layers=self.layers, width=self.width, heads=self.heads, context=CONTEXT).shape(vocabulary)

    def recipe(self, batch: int = BATCH) -> Recipe:
        """Its training."""
        return recipe(round(self.tokens / batch), self.rate)


SIZES = {
    "7B": Size(4096, 32, 32, 3e-4, 1.0e12, 6_738_415_616),
    "13B": Size(5120, 40, 40, 3e-4, 1.0e12, 13_015_864_320),
    "33B": Size(6656, 52, 60, 1.5e-4, 1.4e12, 32_528_943_616),
    "65B": Size(8192, 64, 80, 1.5e-4, 1.4e12, 65_285_660_672),
}


def recipe(steps: int, rate: float, every: int = 50) -> Recipe:
    """The paper's training for so many steps; below 20,000 steps the warm-up is a tenth of them instead of 2,000 steps.

    Args:
        rate: the peak; 3e-4 at 7 and 13 billion parameters, 1.5e-4 at 33 and 65, about 3e-3 at a million.
    """
    return Recipe(steps, rate, warmup=min(0.1, WARMUP / steps), final=0.1, decay=0.1, betas=(0.9, 0.95), clip=1.0, every=every)


def pretrain(model: PreTrainedModel, mixture: Mixture, recipe: Recipe, batch: int, seed: int = 0, checkpoints: Path | None = None) -> list[float]:
    """Train on a mixture of windows of token ids; a step takes the next `batch` draws of its stream.

    Args:
        checkpoints: a folder of this run's own; a run that was killed goes on from there and ends as the undisturbed one, to the last bit.

    Returns:
        The loss of every step, nats a token.

    Raises:
        NotFinite: the loss is no number; the step is named, the last checkpoint stays.
    """

    def loss_of(step: int) -> Tensor:
        places = (mixture.at(step * batch + row) for row in range(batch))
        ids_BT = torch.from_numpy(np.stack([mixture.sources[name][place] for name, place in places])).to(model.device)
        return model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    return fit(model, loss_of, recipe, seed, checkpoints=checkpoints)


def training_flops(parameters: int, tokens: float) -> float:
    """6 N D: forward and backward of every token."""
    return 6.0 * parameters * tokens


def inference_flops(parameters: int) -> float:
    """2 N a token."""
    return 2.0 * parameters
