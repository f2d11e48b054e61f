"""The search of section 4: score single interventions on validation data, then combine the best ones greedily. Resumable by its journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from etude.compress.laser.rank import Intervention, intervened
from etude.data.contract import Data, Journal, Rows, Text
from etude.measure.contract import number
from etude.measure.quality import answer_nll, bits_per_byte, score_answers
from etude.nn.matrices import Matrix

log = logging.getLogger(__name__)
Score = Callable[[PreTrainedModel], float]
SINGLES = 0.75  # share of the trials for single interventions when they are composed afterwards
FEW = 32  # up to this many different answers are taken as labels to choose from


def candidates(found: Sequence[Matrix], rhos: Sequence[float]) -> list[Intervention]:
    """The whole grid, ordered so that every prefix spreads over depth, types and ranks alike (later layers first)."""
    by_layer: dict[int, list[Intervention]] = {}
    for matrix in found:
        by_layer.setdefault(matrix.layer, []).extend(Intervention(matrix.name, rho) for rho in rhos)
    layers = [sorted(by_layer)[-1 - place] for place in _spread(len(by_layer))]
    width = max(len(column) for column in by_layer.values())
    stride = _coprime(width)
    return [
        by_layer[layer][((turn + place) * stride) % len(by_layer[layer])]
        for turn in range(width)
        for place, layer in enumerate(layers)
        if turn < len(by_layer[layer])
    ]


def _spread(count: int) -> list[int]:
    """0..count-1 so that every prefix is spread evenly: the places in bit-reversed order."""
    bits = max(1, (count - 1).bit_length())
    reverse = [int(format(i, f"0{bits}b")[::-1], 2) for i in range(1 << bits)]
    return [place for place in reverse if place < count]


def _coprime(width: int) -> int:
    """A step that visits all residues of `width`, about the golden section of it."""
    from math import gcd

    step = max(1, round(0.618 * width))
    while gcd(step, width) != 1:
        step -= 1
    return step


def search(
    model: PreTrainedModel, grid: Sequence[Intervention], score: Score, journal: Journal, trials: int = 16, compose: bool = True
) -> list[Intervention]:
    """The interventions with the lowest score found; none where nothing beats the untouched model, which is left bit-equal. Every trial is logged.

    Args:
        grid: single interventions in the order in which they are tried.
        score: lower is better; called on the intervened model.
        journal: finished trials; those are not scored again.
        trials: how many settings are scored at most, beside the untouched model.
        compose: whether the last quarter of the trials combines the best ones, at most one rho a matrix.
    """

    def tried(chosen: Sequence[Intervention]) -> float:
        def run() -> float:
            with intervened(model, chosen):
                return score(model)

        value = journal.once({"interventions": [[each.name, each.rho] for each in chosen]}, run)
        log.info("%s: %.4f", " + ".join(f"{each.name} at rho {each.rho:g}" for each in chosen) or "untouched", value)
        return value

    best, chosen = tried(()), list[Intervention]()
    singles = grid[: max(1, round(SINGLES * trials)) if compose else trials]
    scored = sorted(((tried([each]), place) for place, each in enumerate(singles)), key=lambda pair: pair)
    if scored and scored[0][0] < best:
        best, chosen = scored[0][0], [singles[scored[0][1]]]
    left = trials - len(singles)
    for value, place in scored[1:]:
        if not compose or not chosen or left <= 0:
            break
        each = singles[place]
        if any(each.name == other.name for other in chosen):
            continue
        left -= 1
        value = tried([*chosen, each])
        if value < best:
            best, chosen = value, [*chosen, each]
    return chosen


def validation_score(data: Data, tokens: int = 1024, rows: int = 128) -> Score:
    """What the search lowers: cross-entropy of the right choice, nats of the gold answer, or bits per byte of validation text.

    Raises:
        ValueError: there is no tokenizer, or validation data holds neither rows nor text.
    """
    if data.tokenizer is None:
        raise ValueError("the search needs a tokenizer, which the model folder lacks; or give layers and rho")
    tokenizer = data.tokenizer
    if Rows in data.validation:
        part = data.validation[Rows]
        return _row_score(part.take(list(range(min(rows, len(part))))), tokenizer)
    text = data.validation[Text]
    return lambda model: number(bits_per_byte(model, tokenizer, text, tokens=tokens, window=min(512, tokens)))


def _row_score(part: Rows, tokenizer: object) -> Score:
    prompts = list(part.column("text" if "text" in part.roles else "prompt"))
    if "choices" in part.roles:
        offered, right = [list(map(str, row)) for row in part.column("choices")], [int(label) for label in part.column("label")]
        return lambda model: choice_cross_entropy(model, tokenizer, prompts, offered, right)
    answers = [str(answer) for answer in part.column("label" if "label" in part.roles else "answer")]
    names = sorted(set(answers))
    if "label" in part.roles and 1 < len(names) <= FEW:
        return lambda model: choice_cross_entropy(model, tokenizer, prompts, [names] * len(prompts), [names.index(answer) for answer in answers])
    return lambda model: number(answer_nll(model, tokenizer, prompts, answers))


def choice_cross_entropy(
    model: PreTrainedModel, tokenizer: object, prompts: Sequence[str], offered: Sequence[Sequence[str]], right: Sequence[int]
) -> float:
    """Mean nats of the right choice among those offered, by length-normalised log-likelihood: accuracy without its steps."""
    flat = [(prompt, choice) for prompt, row in zip(prompts, offered, strict=True) for choice in row]
    scored = iter(score_answers(model, tokenizer, [prompt for prompt, _ in flat], [choice for _, choice in flat]))
    nats = list[float]()
    for row, label in zip(offered, right, strict=True):
        likely = torch.tensor([-next(scored).nats / max(1, len(choice.encode())) for choice in row], dtype=torch.float64)
        nats.append(-float(likely.log_softmax(-1)[label]))
    return sum(nats) / len(nats)
