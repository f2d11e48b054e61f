"""Which language a text is in: naive Bayes over characters and their neighbours, learned from samples of each language.

The paper takes fastText's model; anything that answers (language, probability) stands in for this one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from etude.models.llama.corpus.documents import Document, Stage

WIKIPEDIA = ("bg", "ca", "cs", "da", "de", "en", "es", "fr", "hr", "hu", "it", "nl", "pl", "pt", "ro", "ru", "sl", "sr", "sv", "uk")  # the paper's 20
SIZES, READ = (1, 2, 3), 2000  # lengths of the pieces; characters that are read


class LanguageId:
    """Learned from samples: language -> texts.

    Raises:
        ValueError: there are less than two languages, or one has no letters.
    """

    def __init__(self, samples: Mapping[str, Iterable[str]]) -> None:
        if len(samples) < 2:
            raise ValueError(f"telling languages apart needs samples of two or more, got {', '.join(samples) or 'none'}")
        counts = {language: Counter(piece for text in texts for piece in pieces(text)) for language, texts in samples.items()}
        for language, found in counts.items():
            if not found:
                raise ValueError(f"the sample of {language} holds no letters")
        known = len(set().union(*counts.values()))
        self.tables = {
            language: (
                {piece: math.log((count + 0.5) / (found.total() + 0.5 * known)) for piece, count in found.items()},
                math.log(0.5 / (found.total() + 0.5 * known)),
            )
            for language, found in counts.items()
        }

    def __call__(self, text: str) -> tuple[str, float]:
        """The likeliest language and its probability; ("", 0) for a text without letters."""
        found = list(pieces(text[:READ]))
        if not found:
            return "", 0.0
        scores = {language: sum(table.get(piece, unseen) for piece in found) for language, (table, unseen) in self.tables.items()}
        best = max(scores, key=scores.__getitem__)
        return best, 1 / sum(math.exp(score - scores[best]) for score in scores.values())


def pieces(text: str) -> Iterator[str]:
    """Runs of one to three characters inside words, their edges marked by a space."""
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        padded = f" {word} "
        for size in SIZES:
            yield from (padded[start : start + size] for start in range(len(padded) - size + 1) if size > 1 or padded[start] != " ")


def in_language(identify: Callable[[str], tuple[str, float]], wanted: Iterable[str], least: float = 0.5) -> Stage:
    """Keeps documents in these languages that are recognised with this probability."""
    names = frozenset(wanted)

    def in_wanted_language(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            language, probability = identify(document.text)
            if language in names and probability >= least:
                yield document

    return in_wanted_language
