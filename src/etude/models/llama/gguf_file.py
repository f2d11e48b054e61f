"""GGUF, the file of llama.cpp: a Llama written to it with its tokenizer, and read from it.

llama.cpp keeps queries and keys in Meta's layout (pairs); the rows are put in that order on the way out. A tied head is not written: its reader
takes the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from etude.models.llama.convert import config_to_llama, from_hugging_face, from_ours
from etude.models.llama.tokens import pieces
from etude.nn.decoder import EtudeDecoder

TOKEN_TYPES = {"normal": gguf.TokenType.NORMAL, "unknown": gguf.TokenType.UNKNOWN, "control": gguf.TokenType.CONTROL, "byte": gguf.TokenType.BYTE}
FILE_TYPES = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0", "Q4_1": "MOSTLY_Q4_1"}


def to_gguf(model: EtudeDecoder, path: str | Path, tokenizer: PreTrainedTokenizerFast | None = None, kind: str = "F32") -> Path:
    """Write the model, and its tokenizer where one is given, to a GGUF file that does not exist yet.

    Args:
        kind: of the matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_1; norms stay float32. The Q kinds need rows of a multiple of 32.

    Raises:
        ValueError: the file exists, the model is no Llama, has linear biases or a stretched context, or `kind` does not fit its rows.
    """
    path, config = Path(path), config_to_llama(model.config)
    if path.exists():
        raise ValueError(f"{path} exists: give another file")
    if kind not in FILE_TYPES:
        raise ValueError(f"kind is one of {', '.join(FILE_TYPES)}, got {kind!r}")
    if config.mlp_bias or config.attention_bias or config.rope_parameters["rope_type"] != "default":
        raise ValueError("GGUF's llama is written here without linear biases and with plain rotary frequencies; this model has others")
    tensors = from_ours(model.state_dict(), model.config, "gguf")
    rows = {tensor.shape[-1] for tensor in tensors.values() if tensor.ndim == 2}
    if kind.startswith("Q") and any(width % 32 for width in rows):
        raise ValueError(f"{kind} packs 32 numbers together, which rows of {', '.join(map(str, sorted(rows)))} do not allow: take F16")
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config, kind)
    if tokenizer is not None:
        _write_tokens(writer, tokenizer, config.vocab_size)
    for name, tensor in tensors.items():
        store = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().cpu().numpy(), store), raw_dtype=store)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def from_gguf(path: str | Path) -> EtudeDecoder:
    """The model in a GGUF file, its numbers unpacked to float32.

    Raises:
        ValueError: there is no such file, or it holds no Llama.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return from_hugging_face(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name))


def _describe(writer: gguf.GGUFWriter, config: Any, kind: str) -> None:
    """The shape, under the names of llama.cpp."""
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _write_tokens(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Tokens, their kinds, merges; as "llama" (SentencePiece) where unknown characters fall back to bytes, else as "gpt2" (byte level)."""
    about = json.loads(tokenizer.backend_tokenizer.to_str())
    if about["model"]["type"] != "BPE":
        raise ValueError(f"only byte-pair tokenizers are written to GGUF, this one is {about['model']['type']}")
    if len(tokenizer) > rows:
        raise ValueError(f"the tokenizer has {len(tokenizer):,} tokens and the model {rows:,} rows: use the tokenizer it was trained with")
    found = list(pieces(tokenizer)) + [(f"<unused{number}>", "control") for number in range(len(tokenizer), rows)]
    fallback, merges = bool(about["model"].get("byte_fallback")), [_pair(merge) for merge in about["model"]["merges"]]
    writer.add_tokenizer_model("llama" if fallback else "gpt2")
    if fallback:
        rank = {left + right: number for number, (left, right) in enumerate(merges)}
        writer.add_token_scores([-float(rank.get(token, len(rank) + 1)) for token, _ in found])
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_pre("smollm" if '"individual_digits":true' in json.dumps(about, separators=(",", ":")) else "gpt-2")
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list([token.replace(" ", "▁") if fallback else token for token, _ in found])
    writer.add_token_types([int(TOKEN_TYPES[sort]) for _, sort in found])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
