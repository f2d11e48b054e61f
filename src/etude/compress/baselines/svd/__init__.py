r"""Activation-weighted SVD: replace a layer by two thin matrices that change its output on the calibration inputs least.

Truncating W itself keeps directions that no input ever excites. SVD-LLM (arXiv 2403.07378, section 3.1) whitens first: with
\(H = \frac{1}{n} \sum_t x_t x_t^\top = S S^\top\) (Cholesky), the loss of a factorisation is the part of W S that is dropped,

$$ \mathbb{E}\,\lVert W x - A B x \rVert^2 = \lVert (W - A B)\, S \rVert_F^2, \qquad
   W S = U \Sigma V^\top, \quad A = U_r \Sigma_r^{1/2}, \quad B = \Sigma_r^{1/2} V_r^\top S^{-1} $$

and no A B of rank r does better. Every linear layer of the blocks gets the rank at which its factors hold the share `keep` of its
numbers, \(r = \mathrm{keep} \cdot \frac{O I}{O + I}\). Factors load after `import etude`.

Use it where fewer multiplications matter as well as bytes, or before a fine-tune that heals it.
Not instead of quantisation when only bytes matter: 8 bits halve them at almost no loss, which low rank never does. Weights that lie on
a quantisation grid flatter it: it strips their rounding noise.

    >>> from etude.compress.baselines.svd import SVD
    >>> model = SVD(keep=0.8).compress(model, data)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from etude.compress import _walk
from etude.compress._budget import left_for_blocks
from etude.compress._digest import digest_of_tensors
from etude.data.cache import digest_of, memo
from etude.data.contract import Batch, Budget, Data
from etude.measure.quality import context_of
from etude.nn.factored import factorize
from etude.nn.surgery import block_linears, refuse_quantised, replace_module, weight_of

PAPER, ROLE, CLASS = "2403.07378", "contender", "SVD"
ENTERS = ("compress",)
NEEDS = ("Text",)
TRAITS = ("low rank",)

# Dimensions: O outputs, I inputs, R rank.
LEAST = 0.05  # share of the numbers below which nothing of a model is left


@dataclass(frozen=True)
class SVD:
    """Options of activation-weighted SVD.

    Attributes:
        keep: share of the numbers of each layer that its two factors hold, in (0, 1).
        damping: what is added to H's diagonal, as a share of its mean.
        tokens: calibration tokens.
        length: tokens of a calibration window; at most the model's context.
    """

    keep: float = 0.8
    damping: float = 0.001
    tokens: int = 4096
    length: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"keep must lie in (0, 1), got {self.keep}: it is the share of a layer's numbers that its factors hold")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must lie in (0, 1], got {self.damping}: it is a share of the mean of H's diagonal")
        if not 0 < self.length <= self.tokens:
            raise ValueError(f"length must lie in 1..tokens ({self.tokens}), got {self.length}")

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Half of the way to the budget, and all of it; without one, `keep` and half of the way to the whole layer."""
        left = left_for_blocks(budget, subject)
        least = self.keep if left >= 1 else max(left, LEAST)
        return [replace(self, keep=round(keep, 4)) for keep in ((1 + least) / 2, least)]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Replace every linear layer of the blocks by its factors, in place, and return the model.

        Raises:
            ValueError: the model is quantised already, or the draw holds no tokens.
        """
        refuse_quantised(model)
        batches = list(data.calibration(tokens=self.tokens, length=context_of(model, self.length)))
        code = [digest_of(Path(source)) for source in (__file__, _walk.__file__)]
        inputs = digest_of_tensors(model.state_dict() | {f"{i} {k}": v for i, batch in enumerate(batches) for k, v in batch.items()})
        factors = memo(f"svd {self.damping} {inputs} {code}", lambda: all_factors(model, batches, self.damping))
        for name, layer in block_linears(model).items():
            rank = rank_at(*weight_of(layer).shape, self.keep)
            if f"{name}.A" in factors:
                replace_module(model, name, factorize(layer, factors[f"{name}.A"][:, :rank], factors[f"{name}.B"][:rank]))
        return model


def rank_at(out: int, width: int, keep: float) -> int:
    """The rank at which two factors hold the share `keep` of the numbers of an out x width matrix; at least 1."""
    return max(1, int(keep * out * width / (out + width)))


def all_factors(model: PreTrainedModel, batches: list[Batch], damping: float) -> dict[str, Tensor]:
    """A and B of every layer ("name.A", "name.B"), up to the rank where they are as large as the layer: lower ranks are their beginnings."""
    layers, factors = block_linears(model), dict[str, Tensor]()

    def change(moments: Mapping[str, Tensor]) -> None:
        roots = {id(moment): root_of(moment, damping) for moment in moments.values()}
        for name, moment in moments.items():
            weight_OI = weight_of(layers[name]).detach()
            A_OR, B_RI = factorise(weight_OI.float(), roots[id(moment)], rank_at(*weight_OI.shape, 1.0))
            factors[f"{name}.A"], factors[f"{name}.B"] = A_OR.to(weight_OI.dtype), B_RI.to(weight_OI.dtype)

    _walk.by_block(model, batches, change, through_changed=False)
    return factors


def root_of(moment_II: Float[Tensor, "I I"], damping: float) -> Float[Tensor, "I I"]:
    """S, lower triangular, with S S^T = H + damping; the damping is raised tenfold where H is not positive enough."""
    mean = moment_II.diagonal().mean().clamp(min=1e-12).double()
    for attempt in range(5):
        H_II = moment_II.double()
        H_II.diagonal().add_(damping * 10**attempt * mean)
        root_II, failed = torch.linalg.cholesky_ex(H_II)
        if not failed:
            return root_II
    raise ValueError("the calibration statistics of a layer cannot be factored: bring more varied calibration text, or raise damping")


def factorise(weight_OI: Float[Tensor, "O I"], root_II: Float[Tensor, "I I"], rank: int) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    r"""The best A B of this rank in the norm \(\lVert (W - A B) S \rVert_F\), singular values shared evenly between the two.

    The singular vectors come from the eigenvectors of the smaller of \((W S)(W S)^\top\) and \((W S)^\top (W S)\).
    """
    W_OI = weight_OI.to(root_II.dtype)
    whitened_OI = W_OI @ root_II
    if weight_OI.shape[0] <= weight_OI.shape[1]:
        values, U = torch.linalg.eigh(whitened_OI @ whitened_OI.T)
        A_OR, split_R = _largest(values, U, rank)
        return A_OR * split_R, (A_OR.T @ W_OI) / split_R[:, None]
    values, V = torch.linalg.eigh(whitened_OI.T @ whitened_OI)
    V_IR, split_R = _largest(values, V, rank)
    B_RI = torch.linalg.solve_triangular(root_II, V_IR.T, upper=False, left=False)
    return whitened_OI @ V_IR / split_R, B_RI * split_R[:, None]


def _largest(values: Tensor, vectors: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The vectors of the largest eigenvalues, and the square roots of the singular values."""
    values, vectors = values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    return vectors, values.clamp(min=1e-12 * float(values[0].clamp(min=1e-30))) ** 0.25
