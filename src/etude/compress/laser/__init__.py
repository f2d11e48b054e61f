r"""LASER: replace a few chosen weight matrices of a trained transformer by their best low-rank approximation.

No training, no new parameters, and on some tasks the answers get *better*. An intervention is a triplet of a matrix type \(\tau\), a layer
\(\ell\) and a kept share \(\rho\) of the largest possible rank (arXiv 2312.13558, section 4). With the singular value decomposition
\(W = U \Sigma V^\top\) of \(W \in \mathbb{R}^{m \times n}\), the matrix becomes the Eckart-Young optimum of its rank:

$$ W_r = U_{:r}\,\Sigma_{:r}\,V_{:r}^\top, \qquad r = \lfloor \rho \min(m, n) \rfloor, \qquad
\lVert W - W_r \rVert_F^2 = \sum_{i > r} \sigma_i^2 . $$

Biases, embeddings, norms and the head stay. Which triplet helps is found by search on validation data (section 4, "rank reduction across
layers"): single interventions are ranked, then applied greedily from the best on, each kept only where the score still improves. The untouched
model is a candidate too, so that the search never returns anything worse than it *on validation data*.

What the paper reports: the discarded high-order components hold answers of the right type that are wrong, or frequent function words; gains
sit in rare facts and in late MLP matrices, while early MLP matrices are destroyed. `etude.compress.laser.analysis` holds these analyses.

Use it when you have one narrow task with a few hundred labelled rows and no means to train: the search takes minutes.
Not to make a model small: over all MLP matrices it loses far more per byte than 8- or 4-bit weights or dropped blocks do, and a matrix only
shrinks where \(r (m + n) < m n\). Not for general text (it gets slightly worse), not without validation rows of the very task (improvements do
not transfer, and with hundreds of settings to choose from a few rows choose noise), and not beside quantised weights on the same grid: on them
low rank may only strip rounding noise. Be slow to credit the rank: random noise of the same norm, whose place is searched for as freely, can help
as much (the étude prints it). Fused attention projections (GPT-2, GPT-NeoX) are reduced as one matrix, type `qkv`.

    >>> from etude.compress.laser import Laser
    >>> model = Laser(module="out", layers=(27,), rho=0.01).compress(model, data)    # one intervention, in place
    >>> model = Laser().compress(model, data)                                       # searched on validation data, 16 trials at most

A reduced matrix is stored as two factors where they are smaller (load after `import etude`), dense with `dense=True` (any reader).
Source: Sharma, Ash, Misra, "The Truth is in There", arXiv 2312.13558; official code pratyushasharma/laser (MIT), which uses the randomised
SVD where this uses the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from transformers import PreTrainedModel

from etude.compress.laser.matrices import matrices
from etude.compress.laser.rank import Intervention, rank_of, reduce, stored_numbers
from etude.compress.laser.search import candidates, search, validation_score
from etude.data.contract import Budget, Data
from etude.nn.matrices import TYPES, Matrix
from etude.nn.surgery import refuse_quantised

PAPER, ROLE, CLASS = "2312.13558", "contender", "Laser"
ENTERS = ("compress",)
NEEDS = ()  # text or rows: whichever the user brings
TRAITS = ("low rank", "searches")

RHOS = (0.5, 0.05)  # kept shares that the search tries, as the sheet's desk grid


@dataclass(frozen=True)
class Laser:
    """Options of LASER.

    Attributes:
        module: which matrices: a type (q, k, v, qkv, o, in, out), a group (mlp, attn, all), or a name's end or pattern ("mlp.down_proj").
        layers: numbers of the layers, negative ones from the end, or "all"; left out, they are searched for.
        rho: share of the largest possible rank that is kept, in (0, 1]; left out, it is searched for.
        dense: store the product instead of the factors, so that plain transformers and vLLM load it; nothing shrinks.
        trials: how many settings the search may score, composed ones included.
        compose: whether the search goes on to combine the best single interventions.
        tokens: validation tokens a trial reads where there are no labelled rows.
        rows: labelled validation rows a trial reads at most.
    """

    module: str = "mlp"
    layers: tuple[int, ...] | str | None = None
    rho: float | None = None
    dense: bool = False
    trials: int = 16
    compose: bool = True
    tokens: int = 1024
    rows: int = 128

    def __post_init__(self) -> None:
        if self.rho is not None and not 0 < self.rho <= 1:
            raise ValueError(f"rho must lie in (0, 1], got {self.rho}: it is the share of the largest possible rank that is kept")
        if isinstance(self.layers, str) and self.layers != "all":
            raise ValueError(f'layers are numbers or "all", got {self.layers!r}')
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name at least one, or leave it out to search")
        for name in ("trials", "tokens", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.module:
            raise ValueError(f"module is empty: name a type or group ({', '.join(TYPES)}, mlp, attn, all) or a layer's name")

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Intervene in `model`, in place, and return it.

        Args:
            model: any model of transformers with one stack of blocks.
            data: its validation part is used, and its journal, only where `layers` or `rho` is left to the search.

        Raises:
            ValueError: no matrix matches, a layer is out of range, a weight is shared or not finite, the model is quantised,
                or a search is asked for without validation data or tokenizer.
        """
        refuse_quantised(model)
        found = matrices(model, self.module, self.layers)
        if self.layers is not None and self.rho is not None:
            chosen = [Intervention(matrix.name, self.rho) for matrix in found]
        else:
            score = validation_score(data, self.tokens, self.rows)
            grid = candidates(found, (self.rho,) if self.rho is not None else RHOS)
            chosen = search(model, grid, score, data.journal, self.trials, self.compose)
            told = ", ".join(f"{one.name} at rho {one.rho:g}" for one in chosen)
            data.journal.chosen = told or f"nothing: of {len(data.journal.trials)} trials none was better than the untouched model on validation data"
        for intervention in chosen:
            reduce(model, intervention, self.dense)
        return model

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Operating points: the search, and two reductions of many layers at once that make the model smaller.

        With `layers` and `rho` both set there is one point. With a limit on bytes the largest rho that meets it is taken, over the later
        two thirds of the layers if that suffices, else over all; without one rho 0.5 and 0.25.
        """
        if self.layers is not None and self.rho is not None:
            return [self]
        if self.dense:
            return [self]
        depth = 1 + max(matrix.layer for matrix in matrices(subject, self.module, "all"))
        later = tuple(range(depth // 3, depth)) if self.layers is None else self.layers
        if budget.share == 1 or budget.axis != "bytes":
            return [self, *(replace(self, layers=later, rho=rho) for rho in ((0.5, 0.25) if self.rho is None else (self.rho,)))]
        fits = [self._fitting(subject, share * budget.limit + (1 - share) * size_of(subject), later) for share in (0.5, 1.0)]
        return [self, *dict.fromkeys(fits)]

    def _fitting(self, subject: PreTrainedModel, limit: float, later: tuple[int, ...] | str) -> Self:
        """The largest rho, in hundredths, with which the saved weights come below `limit` bytes: over later layers, else all, else the least."""
        spans = (later, "all") if self.layers is None else (later,)
        shares = [self.rho] if self.rho is not None else [hundredth / 100 for hundredth in range(72, 0, -1)]
        for layers in spans:
            found = matrices(subject, self.module, layers)
            for rho in shares:
                if reduced_size(subject, found, rho) <= 0.995 * limit:  # configuration and tokenizer weigh too
                    return replace(self, layers=layers, rho=rho)
        return replace(self, layers=spans[-1], rho=shares[-1])


def size_of(model: PreTrainedModel) -> int:
    """Bytes of the parameters, shared ones counted once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


@torch.no_grad()
def reduced_size(model: PreTrainedModel, found: list[Matrix], rho: float) -> int:
    """Bytes of the parameters after these matrices are reduced to `rho` and stored the smaller way."""
    saved = 0
    for matrix in found:
        rows, columns = matrix.shape
        saved += (rows * columns - stored_numbers(rows, columns, rank_of(rho, rows, columns))) * matrix.module.weight.element_size()
    return size_of(model) - saved
