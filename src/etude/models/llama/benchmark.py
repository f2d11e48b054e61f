"""Our Llama against transformers' `LlamaForCausalLM` with the same weights: forward pass, training step, decode step, and memory of a training step.

    python -m etude.models.llama.benchmark [--width 256] [--layers 4] [--vocabulary 256] [--batch 4] [--length 512] [--rounds 9]

Ours and the peer run in turn, so that what else the machine does meets both; medians, and ratios (above 1: ours is faster). Run with
OMP_NUM_THREADS=1 on an idle machine. `--checkpoint smollm2` takes its weights instead of random ones.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaForCausalLM

from etude.data.assets import model_folder
from etude.models._size import made
from etude.models.llama import Llama
from etude.models.llama.convert import filled, from_hugging_face, to_hugging_face
from etude.models.llama.memory import keep_linear_outputs
from etude.nn.decoder_config import EtudeDecoderConfig


def main() -> None:
    """Print a table of medians and ratios."""
    options = arguments()
    torch.manual_seed(0)
    ours = pair(options)
    theirs = to_hugging_face(ours)
    ids = torch.randint(ours.config.vocab_size, (options.batch, options.length))
    size = sum(parameter.numel() for parameter in ours.parameters())
    print(f"{size:,} parameters, batch {options.batch}, length {options.length}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    compare("forward pass", {"ours": lambda: forward(ours, ids), "transformers": lambda: forward(theirs, ids)}, options.rounds)
    compare("training step", {"ours": lambda: train(ours, ids), "transformers": lambda: train(theirs, ids)}, options.rounds)
    compare("decode step", {"ours": decoder(ours, ids), "transformers": decoder(theirs, ids)}, 8 * options.rounds)
    blocks = {"mixer": ours.config.mixer | {"attention": "blocks"}}
    by_blocks = filled(EtudeDecoderConfig(**ours.config.to_dict() | blocks), ours.state_dict())
    compare("training step, attention by blocks", {"ours": lambda: train(by_blocks, ids), "transformers": lambda: train(theirs, ids)}, options.rounds)
    kept = {"everything kept": kept_bytes(ours, ids)}
    for name, how in {"linear outputs kept": {"context_fn": keep_linear_outputs}, "blocks recomputed": {}}.items():
        ours.activation_checkpointing_enable({"use_reentrant": False, **how})
        kept[name] = kept_bytes(ours, ids)
        compare(f"training step, {name}", {"ours": lambda: train(ours, ids), "transformers": lambda: train(theirs, ids)}, options.rounds)
        ours.activation_checkpointing_disable()
    print("bytes that a training step's forward pass leaves: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in kept.items()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 256, "layers": 4, "vocabulary": 256, "batch": 4, "length": 512, "rounds": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpoint", help="an embedded name or a folder instead of random weights")
    return parser.parse_args()


def pair(options: argparse.Namespace) -> Any:
    """Our model; the peer gets its weights."""
    if options.checkpoint:
        return from_hugging_face(LlamaForCausalLM.from_pretrained(model_folder(options.checkpoint), dtype=torch.float32))
    shape = Llama(layers=options.layers, width=options.width, context=2 * options.length).shape(options.vocabulary)
    return made(shape)


@torch.inference_mode()
def forward(model: Any, ids: torch.Tensor) -> None:
    """Logits of all tokens."""
    model.eval()
    model(input_ids=ids, use_cache=False)


def train(model: Any, ids: torch.Tensor) -> None:
    """Forward and backward; gradients are dropped."""
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def decoder(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """A step of greedy decoding, batch 1, after a prompt of `length` tokens; the cache grows as the rounds go on."""
    model.eval()
    with torch.inference_mode():
        state = {"out": model(input_ids=ids[:1], use_cache=True)}

    @torch.inference_mode()
    def step() -> None:
        out = state["out"]
        state["out"] = model(input_ids=out.logits[:, -1:].argmax(-1), cache=out.cache, use_cache=True)

    return step


def compare(title: str, runs: dict[str, Callable[[], None]], rounds: int) -> None:
    """Medians of runs that take turns, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = perf_counter()
            run()
            if turn:
                times[name].append(perf_counter() - start)
    medians = {name: statistics.median(each) for name, each in times.items()}
    words = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in medians.items())
    print(f"{title}: {words}, ratio {medians['transformers'] / medians['ours']:.2f}")


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes that a training step's forward pass allocated and has not freed: what the backward pass waits for."""
    model.train()
    with torch.profiler.profile(profile_memory=True) as profiler:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    size = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    del loss
    return size


if __name__ == "__main__":
    main()
