"""The arms of the étude of mixtures: one model, trained on draws from several sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from etude.measure.contract import Metrics
from etude.models.llama.arms import TUNING_SEED, Training, as_ids, fresh, nats, read_chosen, split, told, tuned
from etude.models.llama.corpus.mixture import Mixture
from etude.models.llama.recipe import pretrain, recipe
from etude.models.llama.sources import NAMES
from etude.nn.decoder import EtudeDecoder
from etude.nn.decoder_config import EtudeDecoderConfig

if TYPE_CHECKING:
    from etude.harness.contract import Run


def by_size(texts: Mapping[str, Tensor]) -> dict[str, float]:
    """Weights as the square root of the sizes: large sources more often, small ones in more epochs, as in the paper's table."""
    roots = {name: float(np.sqrt(len(ids))) for name, ids in texts.items()}
    return {name: root / sum(roots.values()) for name, root in roots.items()}


def trained_on(
    texts: Mapping[str, Tensor], weights: Mapping[str, float], config: EtudeDecoderConfig, training: Training, rate: float, seed: int, device: str
) -> tuple[EtudeDecoder, Mixture]:
    """A new model trained on windows of the texts, drawn by weight, and the mixture that drew them."""
    windows = {name: ids[: len(ids) // training.length * training.length].view(-1, training.length).numpy() for name, ids in texts.items()}
    mixture, model = Mixture(windows, weights, seed), fresh(config, seed, device)
    pretrain(model, mixture, recipe(training.steps, rate, every=training.steps), training.batch, seed)
    return model, mixture


def shares(texts: Mapping[str, str], config: EtudeDecoderConfig, training: Training, start: float, device: str) -> dict[str, Any]:
    """The rate of all arms, chosen on the even mixture by the mean loss over the sources."""
    parts = {name: split(as_ids(text.encode())) for name, text in texts.items()}

    def score(rate: float) -> float:
        known, even = {name: part[0] for name, part in parts.items()}, dict.fromkeys(parts, 1 / len(parts))
        model, _ = trained_on(known, even, config, training, rate, TUNING_SEED, device)
        found = [nats(model, part[1], training) for part in parts.values()]
        return sum(sum(each.top) / len(each.top) for each in found) / len(found)

    found = tuned(score, start)
    return {"rate": found.rate, "edge": float(found.edge), "tried": [list(pair) for pair in found.tried]}


def blended(name: str, config: EtudeDecoderConfig, run: Run, scale: Any) -> Metrics:
    """The weighted or the even mixture."""
    known = _parts(run, 0)
    weights = by_size(known) if name == "weighted" else dict.fromkeys(known, 1 / len(known))
    return _measured(weights, known, config, run, scale.training)


def single(name: str, config: EtudeDecoderConfig, run: Run, scale: Any) -> Metrics:
    """One source alone."""
    known = _parts(run, 0)
    return _measured({each: float(each == name) for each in known}, known, config, run, scale.training)


def _measured(weights: Mapping[str, float], known: Mapping[str, Tensor], config: EtudeDecoderConfig, run: Run, training: Training) -> Metrics:
    chosen = read_chosen(run)
    model, mixture = trained_on(known, weights, config, training, chosen["rate"], run.seed, run.device)
    found = {name: nats(model, ids, training) for name, ids in _parts(run, 2).items()}
    metrics = Metrics({f"on_{name}": items for name, items in found.items()})
    metrics["nats"] = sum(getattr(metrics, f"on_{name}") for name in found) / len(found)
    for share in mixture.report(training.steps * training.batch):
        metrics[f"epochs_{share.name}"] = share.epochs
    return Metrics(metrics | told(chosen))


def _parts(run: Run, which: int) -> dict[str, Tensor]:
    """The training (0) or held-out (2) part of each source."""
    folder = run.path("prepared")
    return {name: split(as_ids((folder / f"{name}.txt").read_bytes()))[which] for name in NAMES}
