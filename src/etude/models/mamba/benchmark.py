"""A training step, a forward pass and decoding: ours against transformers' reference path and against mambapy, plain and as transformers calls it.

    python -m etude.models.mamba.benchmark [--length 512] [--rounds 5] [--reference-rounds 1] [--threads N]

The contenders take turns, all with the same sizes (batch 4, width 256, 2 layers, vocabulary 256) and, but for plain mambapy, with the same weights;
seconds are medians of the rounds after one that warms up. transformers' reference step takes about two minutes at length 512, since the backward pass
of each time step fills a whole sequence's gradient: it runs `--reference-rounds` times, unwarmed. mambapy is an environment's own affair
(`pip install mambapy`); without it its lines are left out. Decoding is timed after really reading 256 and 8,192 tokens.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import MambaConfig, MambaForCausalLM
from transformers.utils import logging

from etude.models.mamba.arms import prefilled
from etude.models.mamba.convert import from_hugging_face

BATCH, WIDTH, LAYERS, VOCABULARY = 4, 256, 2, 256
REFERENCE, OURS = "transformers, reference path", "ours"
CONTEXTS, STEPS = (256, 8192), 64


def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reference-rounds", type=int, default=1, help="0 leaves transformers' reference step out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    ids_BL = torch.randint(VOCABULARY, (BATCH, options.length), generator=torch.Generator().manual_seed(0))
    models = contenders()
    print(f"batch {BATCH}, length {options.length}, width {WIDTH}, {LAYERS} layers, vocabulary {VOCABULARY}, {options.threads} threads")
    rounds = {name: options.reference_rounds if name == REFERENCE else options.rounds for name in models}
    report("training step", in_turn({name: lambda model=model: step(model, ids_BL) for name, model in models.items()}, rounds))
    with torch.no_grad():
        actions = {name: lambda model=model: logits(model, ids_BL) for name, model in models.items()}
        report("forward pass", in_turn(actions, dict.fromkeys(models, options.rounds)))
        short, long = decode(models[OURS])
    print(f"decoding, batch 1: {1e3 * short:.2f} ms a token after {CONTEXTS[0]} tokens, {1e3 * long:.2f} ms after {CONTEXTS[1]}: ", end="")
    print(f"{long / short - 1:+.1%}")


def contenders() -> dict[str, nn.Module]:
    """The models by name; ours has the weights of transformers'."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS)
    theirs = MambaForCausalLM(MambaConfig(**sizes))
    models: dict[str, nn.Module] = {OURS: from_hugging_face(theirs), REFERENCE: theirs}
    if find_spec("mambapy"):
        scanned = MambaForCausalLM(MambaConfig(**sizes, use_mambapy=True))
        scanned.load_state_dict(theirs.state_dict())
        models |= {"transformers, use_mambapy": scanned, "mambapy": plain_mambapy()}
    return models


def plain_mambapy() -> nn.Module:
    """mambapy's stack of blocks between an embedding and a head."""
    from mambapy.mamba import Mamba, MambaConfig

    return nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH), Mamba(MambaConfig(d_model=WIDTH, n_layers=LAYERS)), nn.Linear(WIDTH, VOCABULARY, bias=False)
    )


def logits(model: nn.Module, ids_BL: Tensor) -> Tensor:
    """(B, L, V) of any of the models."""
    return model(ids_BL) if isinstance(model, nn.Sequential) else model(input_ids=ids_BL, use_cache=False).logits


def step(model: nn.Module, ids_BL: Tensor) -> None:
    """Forward and backward of the next-token loss."""
    model.train()
    model.zero_grad()
    cross_entropy(logits(model, ids_BL)[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten()).backward()
    model.eval()


def in_turn(actions: dict[str, Callable[[], Any]], rounds: dict[str, int]) -> dict[str, float]:
    """Median seconds of each action, one of each a round; whoever has more than one round warms up first."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for name, action in actions.items():
        if rounds[name] > 1:
            action()
    for turn in range(max(rounds.values())):
        for name, action in actions.items():
            if turn < rounds[name]:
                with clock(found[name]):
                    action()
    return {name: statistics.median(times) for name, times in found.items() if times}


@contextmanager
def clock(times: list[float]) -> Iterator[None]:
    """Append the block's seconds."""
    start = perf_counter()
    yield
    times.append(perf_counter() - start)


def report(title: str, seconds: dict[str, float]) -> None:
    """Seconds of each, and how many times ours is faster."""
    for name, value in seconds.items():
        print(f"{title}, {name}: {value:.4g} s" + ("" if name == OURS else f", ours is {value / seconds[OURS]:.1f} times faster"))


def decode(model: Any) -> tuple[float, float]:
    """Median seconds of a decode step after the shorter and after the longer prompt, in turn."""
    caches, found = [prefilled(model, length) for length in CONTEXTS], ([], [])
    for token in range(STEPS):
        ids = torch.tensor([[token]])
        for cache, times in zip(caches, found, strict=True):
            with clock(times):
                model(input_ids=ids, cache=cache, use_cache=True)
    short, long = (statistics.median(times[2:]) for times in found)
    return short, long


if __name__ == "__main__":
    main()
