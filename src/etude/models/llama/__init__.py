r"""LLaMA: the decoder that became the standard open backbone, and its recipe: public data, and many more tokens than a training budget asks for.

A pre-norm decoder without biases, with rotary positions on queries and keys, a last RMSNorm and a head of its own:

$$ x \leftarrow x + \mathrm{Attn}(\mathrm{RMSNorm}(x)), \qquad x \leftarrow x + \mathrm{SwiGLU}(\mathrm{RMSNorm}(x)) $$

$$ \mathrm{RMSNorm}(x) = g \odot x \,\big/ \sqrt{\tfrac{1}{D}\sum_i x_i^2 + \epsilon}, \qquad
\mathrm{SwiGLU}(x) = W_2\big(\mathrm{SiLU}(W_1 x) \odot W_3 x\big), \quad \text{hidden width} = \tfrac{2}{3} \cdot 4D $$

The claim behind it is about *inference*: for a given cost of answering, train a smaller model on far more tokens than would be optimal for training
alone; its loss still falls at a trillion.

Use it as the backbone of anything that is to be served by common engines (it is saved as a Hugging Face Llama or as GGUF), and as the yardstick of
other decoders. Not where memory at long contexts counts more than exact recall (its cache grows with the text: Mamba's does not), nor for a few
thousand tokens of data, where the block hardly matters. float16 may overflow in SwiGLU; bfloat16 does not.

Peers: transformers' `LlamaForCausalLM` (the oracle here), litgpt, torchtitan, nanochat; today's models of the kind are SmolLM2, Qwen and OLMo.

    >>> from etude.models.llama import Llama
    >>> model = Llama(context=512).build(vocabulary=256, parameters=400_000)     # untrained, an `EtudeDecoder`
    >>> from etude.models.llama.convert import from_hugging_face, to_hugging_face
    >>> model = from_hugging_face("SmolLM2-135M")                                # a folder or a LlamaForCausalLM
    >>> to_hugging_face(model).save_pretrained("llama")                          # and back

Beside it: `rope` (both layouts), `memory` (attention and checkpoints in less memory), `convert`, `gguf_file`, `tokens` (byte-fallback BPE), `recipe`
(the paper's sizes and rates), `corpus` (the pre-training data: filters and the mixture).

Source: Touvron et al., arXiv 2302.13971. Grouped queries (kv_heads) are of later models. What decays: the paper does not say; here matrices do,
embeddings included, norms do not.
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from etude.models._attention import heads_for
from etude.models._size import Sized, by_hidden, sized
from etude.models.llama.blocks import Attention, SwiGLU, hidden_width
from etude.nn.decoder_config import EtudeDecoderConfig

PAPER, ROLE, CLASS = "2302.13971", "contender", "Llama"
ENTERS = ("models",)
NEEDS = ("Text",)
TRAITS = ("attention",)

# Dimensions: D width, V vocabulary.


def mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module:
    """Fills a decoder's mixer slot: attention with rotary positions."""
    return Attention(config, layer, **config.options("mixer", layer))


def channel_mixer(config: EtudeDecoderConfig, layer: int) -> nn.Module:
    """Fills a decoder's channel-mixer slot: SwiGLU."""
    return SwiGLU(config, **config.options("channel_mixer", layer))


@dataclass(frozen=True)
class Llama(Sized):
    """Options of a Llama; what is left at None follows from the size that is asked for.

    Attributes:
        layers: depth; given with `width` or not at all.
        width: D of every layer's stream; given with `layers` or not at all.
        heads: query heads; by default as many as make them 128, 64, 32 or 16 wide, the widest that leaves four.
        kv_heads: key and value heads, a divisor of `heads`; as many when left out, as in the paper.
        hidden: SwiGLU's hidden width; by default two thirds of 4 D, and what the asked size leaves.
        context: the longest sequence.
        base: of the rotary frequencies.
        eps: under the root of the norms.
        tied: whether the head is the embedding. The paper's is not; by default it is where two tables were more than half of the model.
        attention: "fused" (torch's kernel) or "blocks" (by hand, no T x T matrix).
        rate: the peak learning rate of its training in a contest or by `etude apply`; tuned when left out.
    """

    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None
    context: int = 2048
    base: float = 10000.0
    eps: float = 1e-6
    tied: bool | None = None
    attention: Literal["fused", "blocks"] = "fused"
    rate: float | None = None

    COUNTS = ("heads", "kv_heads", "hidden", "context")

    def config(self, vocabulary: int, parameters: int) -> EtudeDecoderConfig:
        """The configuration that `build` builds."""

        def make(layers: int, width: int) -> EtudeDecoderConfig:
            tied = 4 * vocabulary * width > parameters if self.tied is None else self.tied
            return replace(self, tied=tied, layers=layers, width=width).shape(vocabulary)

        return sized(make, parameters, None if self.heads is None else 2 * self.heads, by_hidden(2, 4) if self.hidden is None else None, self.shapes)

    def shape(self, vocabulary: int) -> EtudeDecoderConfig:
        """The configuration of these layers and this width, whatever its size; `hidden` is rounded up to a multiple of 256, below 1,024 wide of 8."""
        if self.layers is None or self.width is None:
            raise ValueError("a shape needs layers and width")
        heads = heads_for(self.width) if self.heads is None else self.heads
        hidden = hidden_width(self.width, 256 if self.width >= 1024 else 8) if self.hidden is None else self.hidden
        mixer = {"method": "llama", "heads": heads, "kv_heads": self.kv_heads or heads, "base": self.base, "attention": self.attention}
        return EtudeDecoderConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            mixer=mixer,
            channel_mixer={"method": "llama", "hidden": hidden},
            norm_eps=self.eps,
            max_position_embeddings=self.context,
            tie_word_embeddings=bool(self.tied),
        )
