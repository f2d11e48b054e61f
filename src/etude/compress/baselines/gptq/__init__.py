r"""GPTQ: round one column after the other and let the columns still to come make up for the error (arXiv 2210.17323).

Rounding a layer W changes its output on the calibration inputs by \(\mathrm{tr}(E H E^\top)\), with \(E = \hat W - W\) and
\(H = \frac{1}{n} \sum_t x_t x_t^\top + \lambda I\), where \(\lambda\) is 1 % of the mean of H's diagonal. With U the upper Cholesky
factor of \(H^{-1} = U^\top U\), column i is rounded and its error pushed into the columns after it (eq. 2 and 3, section 3.3):

$$ e = \frac{W_{:,i} - \hat W_{:,i}}{U_{ii}}, \qquad W_{:,j} \leftarrow W_{:,j} - e\, U_{ij} \quad (j > i) $$

Columns go in blocks of 128; the columns behind a block get its errors in one product. With `act_order` columns with large inputs go
first, while their errors have most columns left to go to; each group's scale is then found beforehand, so that groups stay neighbours
and the folder needs no permutation. The blocks of the model are done in order, each calibrated through those already rounded.

Use it for 4 bits, where it is better than round_to_nearest at the same bytes, and where text like the model's later input can be had.
Not at 8 bits (rounding is as good, and takes seconds), nor where the calibration text has little to do with the use.

    >>> from etude.compress.baselines.gptq import GPTQ
    >>> model = GPTQ(bits=4).compress(model, data)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from etude.compress._budget import left_for_blocks
from etude.compress._walk import by_block
from etude.data.contract import Budget, Data
from etude.measure.quality import context_of
from etude.nn.packing import Codes, Grid, find_grid, fitted_grid, install
from etude.nn.surgery import block_linears, refuse_quantised, weight_of

PAPER, ROLE, CLASS = "2210.17323", "contender", "GPTQ"
ENTERS = ("compress",)
NEEDS = ("Text",)
TRAITS = ("quantises",)

# Dimensions: O outputs, I inputs, G groups of a row.
BLOCK = 128  # columns whose errors are pushed on together


@dataclass(frozen=True)
class GPTQ:
    """Options of GPTQ.

    Attributes:
        bits: bits a weight: 2, 3, 4 or 8 (vLLM reads 4 and 8).
        group: weights that share a scale; where it does not divide the model's rows the next smaller one that does is used, and said.
        symmetric: without zero points: a little smaller, and worse at 4 bits and below.
        act_order: round the columns with the largest inputs first.
        damping: what is added to H's diagonal, as a share of its mean.
        tokens: calibration tokens.
        length: tokens of a calibration window; at most the model's context.
    """

    bits: int = 4
    group: int = 64
    symmetric: bool = False
    act_order: bool = True
    damping: float = 0.01
    tokens: int = 4096
    length: int = 512

    def __post_init__(self) -> None:
        Grid(self.bits, self.group, self.symmetric)
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must lie in (0, 1], got {self.damping}: it is a share of the mean of H's diagonal")
        if not 0 < self.length <= self.tokens:
            raise ValueError(f"length must lie in 1..tokens ({self.tokens}), got {self.length}")

    def points(self, budget: Budget, subject: PreTrainedModel) -> list[Self]:
        """Its own bits; 3 bits besides where 4 do not meet the budget."""
        fits = Grid(self.bits, self.group, self.symmetric).share_of(subject.dtype) <= left_for_blocks(budget, subject)
        return [self] if fits or self.bits <= 3 else [self, replace(self, bits=3)]

    def compress(self, model: PreTrainedModel, data: Data) -> PreTrainedModel:
        """Round every linear layer of the blocks, in place, block after block, and return the model.

        Raises:
            ValueError: the model is quantised already, no group of at least eight weights divides its rows, or the draw holds no tokens.
        """
        refuse_quantised(model)
        layers = block_linears(model)
        grid = fitted_grid(layers, Grid(self.bits, self.group, self.symmetric))

        def change(moments: Mapping[str, Tensor]) -> None:
            readers: dict[int, list[str]] = {}
            for name, moment in moments.items():
                readers.setdefault(id(moment), []).append(name)
            for names in readers.values():  # rows are independent: layers with one input are rounded as one
                group = [layers[name] for name in names]
                together = torch.cat([weight_of(layer).detach() for layer in group])
                codes = quantise(together, moments[names[0]], grid, together.dtype, self.act_order, self.damping)
                for layer, own in zip(group, split(codes, [len(weight_of(layer)) for layer in group]), strict=True):
                    install(layer, own)

        by_block(model, data.calibration(tokens=self.tokens, length=context_of(model, self.length)), change)
        return model


def split(codes: Codes, rows: list[int]) -> list[Codes]:
    """The codes of each of the layers that were stacked."""
    zeros = codes.zero_OG.split(rows) if codes.zero_OG is not None else [None] * len(rows)
    parts = zip(codes.q_OI.split(rows), codes.scale_OG.split(rows), zeros, strict=True)
    return [Codes(codes.grid, q.clone(), scale.clone(), zero if zero is None else zero.clone()) for q, scale, zero in parts]


def quantise(
    weight_OI: Float[Tensor, "O I"],
    moment_II: Float[Tensor, "I I"],
    grid: Grid,
    dtype: torch.dtype = torch.float32,
    act_order: bool = True,
    damping: float = 0.01,
) -> Codes:
    """The codes of one layer: columns in order, errors pushed on (eq. 2 and 3).

    Args:
        weight_OI: the weights.
        moment_II: H without damping.
        grid: bits and group.
        dtype: of the stored scales.
        act_order: columns with large inputs first; else in order, each group's scale found when it is reached.
        damping: share of H's mean diagonal that is added to it.
    """
    width = weight_OI.shape[1]
    order = moment_II.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(width, device=weight_OI.device)
    upper_II = inverse_factor(moment_II[order][:, order], damping)
    W_IO = weight_OI.float().T[order].contiguous()  # columns as rows, so that each step reads one stretch of memory
    scale_OG, zero_OG = find_grid(weight_OI, grid, dtype)
    scale_OG, zero_OG = scale_OG.clone(), None if zero_OG is None else zero_OG.clone()
    q_IO = torch.empty(W_IO.shape, dtype=torch.int8, device=W_IO.device)
    step = max(1, BLOCK // grid.group) * grid.group
    for start in range(0, width, step):
        end = min(start + step, width)
        error_IO = torch.empty_like(W_IO[start:end])
        for first in range(start, end, grid.group):
            if not act_order:  # the group's weights have moved: its range is taken now
                g = first // grid.group
                scale_OG[:, g : g + 1], zero = find_grid(W_IO[first : first + grid.group].T, grid, dtype)
                if zero_OG is not None:
                    zero_OG[:, g : g + 1] = zero
            groups = order[first : first + grid.group] // grid.group
            scale_IO = scale_OG.float().T[groups].contiguous()
            zero_IO = torch.zeros_like(scale_IO) if zero_OG is None else zero_OG.float().T[groups].contiguous()
            for i in range(first, min(first + grid.group, end)):
                scale, zero = scale_IO[i - first], zero_IO[i - first]
                q = torch.addcdiv(zero, W_IO[i], scale).round_().clamp_(grid.low, grid.high)
                q_IO[i] = q
                error = error_IO[i - start]
                torch.sub(W_IO[i], q.sub_(zero).mul_(scale), out=error).div_(upper_II[i, i])
                W_IO[i + 1 : end].addr_(upper_II[i, i + 1 : end], error, alpha=-1)
        W_IO[end:].addmm_(upper_II[start:end, end:].T, error_IO, alpha=-1)
    q_OI = torch.empty_like(q_IO)
    q_OI[order] = q_IO
    return Codes(grid, q_OI.T.contiguous(), scale_OG, zero_OG)


def inverse_factor(moment_II: Float[Tensor, "I I"], damping: float) -> Float[Tensor, "I I"]:
    r"""U, upper triangular, with \(U^\top U = (H + \lambda I)^{-1}\).

    H reversed is \(L L^\top\), so that H = (J L J)(J L J)^T with an upper factor J L J, whose inverse is U: one factorisation and one
    triangular inverse. Where that fails, the damping is raised tenfold.
    """
    mean = moment_II.diagonal().mean().clamp(min=1e-12)
    for attempt in range(4):
        H_II = moment_II.flip(0, 1).clone()
        H_II.diagonal().add_(damping * 10**attempt * mean)
        lower_II, failed = torch.linalg.cholesky_ex(H_II)
        if not failed:
            identity = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
            return torch.linalg.solve_triangular(lower_II, identity, upper=False).flip(0, 1).contiguous()
    raise ValueError("the calibration statistics of a layer cannot be inverted: bring more varied calibration text, or raise damping")
