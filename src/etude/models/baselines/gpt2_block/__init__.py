r"""A GPT-2 block: LayerNorm, attention over learned positions, a GELU MLP four times as wide, biases everywhere, the head tied to the embedding.

$$ x \leftarrow x + W_o\,\mathrm{softmax}\big(QK^\top/\sqrt{K}\big)V, \qquad x \leftarrow x + W_2\,\mathrm{GELU}(W_1 x) $$

The decoder of 2019 (Radford et al.), before rotary positions, gated MLPs and RMSNorm: what every later block is to be measured against. The
projections that write into the residual stream start smaller by \(\sqrt{2L}\).

Use it as the yardstick. Not for texts longer than `context`: a learned position that was never trained means nothing, so `context` is as long as what
it will read, and no longer, since each position costs D parameters.

    >>> from etude.models.baselines.gpt2_block import Gpt2Block
    >>> model = Gpt2Block(context=256).build(vocabulary=256, parameters=400_000)
"""

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from etude.models._attention import attend, heads_for
from etude.models._size import Sized, by_hidden, sized
from etude.nn.decoder import Context
from etude.nn.decoder_config import EtudeDecoderConfig

ROLE, CLASS = "contender", "Gpt2Block"
ENTERS = ("models",)
NEEDS = ("Text",)
TRAITS = ("attention",)

# Dimensions: B batch, T tokens, D model width.


def mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module:
    """Fills a decoder's mixer slot: attention that knows no order by itself."""
    return Attention(config, layer, **config.options("mixer", layer))


def channel_mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module:
    """Fills a decoder's channel-mixer slot: W2 GELU(W1 x)."""
    return Mlp(config, **config.options("channel_mixer", layer))


class Attention(nn.Module):
    """Causal self-attention; `heads` divide the width, `bias` is of all four linear layers."""

    def __init__(self, config: EtudeDecoderConfig, layer: int, heads: int = 4, bias: bool = True) -> None:
        super().__init__()
        width = config.hidden_size
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}: give heads that do")
        self.layer, self.heads, self.std = layer, heads, residual_std(config)
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)

    def init_weights(self) -> None:
        """The output projection starts smaller."""
        init.normal_(self.o_proj.weight, std=self.std)

    def forward(self, x_BTD: Float[Tensor, "B T D"], context: Context) -> Float[Tensor, "B T D"]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv_proj(x_BTD).chunk(3, -1))
        return self.o_proj(attend(q, k, v, context, self.layer))


class Mlp(nn.Module):
    """W2 GELU(W1 x), GELU in its tanh form; `hidden` is four times the width when left out."""

    def __init__(self, config: EtudeDecoderConfig, hidden: int | None = None, bias: bool = True) -> None:
        super().__init__()
        hidden, self.std = 4 * config.hidden_size if hidden is None else hidden, residual_std(config)
        self.up_proj = nn.Linear(config.hidden_size, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, config.hidden_size, bias=bias)

    def init_weights(self) -> None:
        """The output projection starts smaller."""
        init.normal_(self.down_proj.weight, std=self.std)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(nn.functional.gelu(self.up_proj(x_BTD), approximate="tanh"))


def residual_std(config: EtudeDecoderConfig) -> float:
    """Standard deviation of what writes into the residual stream, 2 L times in all."""
    return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)


@dataclass(frozen=True)
class Gpt2Block(Sized):
    """Options of a GPT-2; what is left at None follows from the size that is asked for.

    Attributes:
        layers: depth; given with `width` or not at all.
        width: D of every layer's stream; given with `layers` or not at all.
        heads: by default as many as make them 128, 64, 32 or 16 wide, at least four.
        context: how many positions are learned, and the longest sequence.
        eps: under the root of the norms.
        rate: the peak learning rate of its training in a contest or by `etude apply`; tuned when left out.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    context: int = 256
    eps: float = 1e-5
    rate: float | None = None

    COUNTS = ("heads", "context")

    def config(self, vocabulary: int, parameters: int) -> EtudeDecoderConfig:
        """The configuration that `build` builds."""

        def make(layers: int, width: int) -> EtudeDecoderConfig:
            return replace(self, layers=layers, width=width).shape(vocabulary)

        return sized(make, parameters, self.heads, by_hidden(3, 5), self.shapes)

    def shape(self, vocabulary: int, hidden: int | None = None) -> EtudeDecoderConfig:
        """The configuration of these layers and this width, whatever its size."""
        if self.layers is None or self.width is None:
            raise ValueError("a shape needs layers and width")
        return EtudeDecoderConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            mixer={"method": "gpt2_block", "heads": heads_for(self.width) if self.heads is None else self.heads},
            channel_mixer={"method": "gpt2_block", "hidden": hidden or 4 * self.width},
            norm="layer",
            norm_eps=self.eps,
            bias=True,
            positions="learned",
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
        )
