r"""Mamba: a language model without attention, whose memory of the past has a fixed size and whose cost grows linearly with the length.

Each channel of a block is a small linear system. A state \(h_t \in \mathbb{R}^N\) is carried along the sequence (arXiv 2312.00752, sections 2, 3):

$$ h_t = \bar A_t h_{t-1} + \bar B_t x_t, \qquad y_t = C_t \cdot h_t + D x_t, \qquad
\bar A_t = \exp(\Delta_t A), \quad \bar B_t = \Delta_t B_t . $$

**Selection** is what is new: the step size \(\Delta_t > 0\) and the vectors \(B_t, C_t\) are functions of the token. A large \(\Delta_t\) lets the
token in and forgets what was before, \(\Delta_t \to 0\) passes it by; with \(N = 1\), \(A = -1\) and the exact hold of the input it is the gate of a
recurrent network, \(h_t = (1 - g_t) h_{t-1} + g_t x_t\) with \(g_t = \sigma(\cdot)\) (theorem 1). Without selection (`selective=False`, S4D) the
system is time-invariant and equals a convolution with \(K_j = C \cdot \bar A^j \bar B\): it cannot decide by content what to keep.

**The block** replaces attention and MLP together: \((x, z) = W_{in} u\) widens D to E = 2 D channels, a causal depthwise convolution over 4 tokens
and SiLU act on x, low-rank projections of x give Δ, B and C, the scan runs, its output is gated by SiLU(z) and projected back: about \(6 D^2\)
parameters, two blocks cost what one transformer layer costs. The **model** is an embedding, blocks with RMSNorm before each, a last norm and a tied
head; there are no positions. At the start A is \(-(1, \dots, N)\) and \(\mathrm{softplus}(b_\Delta)\) log-uniform in [0.001, 0.1]: that bias must
survive an initialisation that zeroes all biases, else training is much worse.

**The scan** is never written out over (B, L, E, N) numbers: `etude.models.mamba.cpu` (numba) and `etude.models.mamba.cuda` (Triton) keep the state
where it is computed, save it at the boundaries of chunks and compute the rest anew in the backward pass. `etude.models.mamba.scan` holds the plain
references. In decoding each block remembers 4 inputs and N numbers a channel: \(E\,(K + N)\) numbers, however long the text is.

Use it for long sequences, for streams, and where many tokens are generated after a long context: a step costs the same after 8,000 tokens as after 8.
Not where text must be recalled word for word from far back (the state is a summary; attention, or a hybrid of the two, does better), not for short
contexts on hardware tuned for attention, and not with bfloat16 states: they stay in float32. A new large model today would take Mamba-2 or a hybrid
(Jamba, Bamba) from transformers or vLLM.

    >>> from etude.models.mamba import Mamba
    >>> model = Mamba().build(vocabulary=256, parameters=1_000_000)    # an untrained model of transformers: save_pretrained, generate
    >>> from etude.models.mamba.convert import from_hugging_face, to_hugging_face
    >>> model = from_hugging_face("folder/of/mamba-130m-hf")           # or a MambaForCausalLM
    >>> to_hugging_face(model).save_pretrained("folder")               # and back

The block also fills the mixer of other hosts: `EtudeDecoderConfig(mixer={"method": "mamba"}, channel_mixer={"method": "llama"})`.

Peers: state-spaces/mamba (CUDA only), transformers' MambaForCausalLM (its backward pass on a CPU is quadratic in the length), mambapy.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752; code state-spaces/mamba (Apache-2.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from etude.models._size import Sized, count, sized
from etude.models.mamba.block import MambaMixer
from etude.nn.decoder_config import EtudeDecoderConfig

PAPER, ROLE, CLASS = "2312.00752", "contender", "Mamba"
ENTERS = ("models",)
NEEDS = ("Text",)
TRAITS = ("recurrent",)

MULTIPLE = 8  # the vocabulary is rounded up to one of it, so that the head's matrix fits the hardware


def mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module:
    """Fills a decoder's mixer slot with the block."""
    return MambaMixer(config.hidden_size, layer, config.num_hidden_layers, **config.options("mixer", layer))


@dataclass(frozen=True)
class Mamba(Sized):
    """Options of Mamba; what is left at None follows from the size that is asked for.

    Attributes:
        layers: depth; given with `width` or not at all.
        width: D of every layer's stream; given with `layers` or not at all.
        state: numbers that each channel remembers, N.
        kernel: tokens that the short convolution sees.
        expand: channels of a block over the model's width.
        rank: of the projection that gives the step sizes; by default a sixteenth of the model's width, and what the asked size leaves.
        selective: step sizes, B and C depend on the token; without it the model is a convolution (S4D).
        rate: the peak learning rate of its training in a contest or by `etude apply`; tuned when left out.
    """

    layers: int | None = None
    width: int | None = None
    state: int = 16
    kernel: int = 4
    expand: int = 2
    rank: int | None = None
    selective: bool = True
    rate: float | None = None

    COUNTS = ("state", "kernel", "expand", "rank")

    def config(self, vocabulary: int, parameters: int) -> EtudeDecoderConfig:
        """The configuration that `build` builds."""

        def make(layers: int, width: int) -> EtudeDecoderConfig:
            return replace(self, layers=layers, width=width).shape(vocabulary)

        def stretch(config: EtudeDecoderConfig, missing: int) -> EtudeDecoderConfig:
            size, layers = count(config), config.num_hidden_layers
            width = config.hidden_size if self.width else _rounded(config.hidden_size * math.sqrt((size + missing) / size))
            config, usual = make(layers, width), math.ceil(width / 16)
            more = round((size + missing - count(config)) / (2 * self.expand * width * layers))
            return config if self.rank else replace(self, rank=min(max(usual + more, 1), 2 * usual), layers=layers, width=width).shape(vocabulary)

        return sized(make, parameters, stretch=stretch, shapes=self.shapes, blocks=2)

    def shape(self, vocabulary: int) -> EtudeDecoderConfig:
        """The configuration of these layers and this width, whatever its size."""
        if self.layers is None or self.width is None:
            raise ValueError("a shape needs layers and width")
        options = {name: getattr(self, name) for name in ("state", "kernel", "expand", "rank", "selective")}
        return EtudeDecoderConfig(
            vocab_size=-(-vocabulary // MULTIPLE) * MULTIPLE,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            mixer={"method": "mamba"} | options,
            channel_mixer=None,
            norm_eps=1e-5,
            residual_float32=True,
            max_position_embeddings=None,
            tie_word_embeddings=True,
        )


def _rounded(width: float) -> int:
    """To a multiple of a power of 2 that is at most a 64th of it: nothing else divides a Mamba's width."""
    unit = 2 ** max(0, math.floor(math.log2(width / 64)))
    return max(1, round(width / unit)) * unit
