r"""Is a page like good text? Perplexity under an n-gram model of reference text (CCNet), and a classifier of reference against random pages.

The n-gram model is interpolated Kneser-Ney over words: with discount \(d\), counts \(c\), and \(N(h)\) the number of different words after \(h\)

$$ p(w \mid h) = \frac{\max(c(hw) - d, 0)}{c(h)} + \frac{d\,N(h)}{c(h)}\,p(w \mid h') $$

where \(h'\) is \(h\) without its first word and lower orders count in how many contexts a word was seen, not how often.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from etude.models.llama.corpus.documents import Stage, only

START, END = "<s>", "</s>"
Gram = tuple[str, ...]


class NgramModel:
    """Interpolated Kneser-Ney over lower-case words.

    Args:
        texts: the reference, Wikipedia in the paper.
        order: words of a run (CCNet takes 5).
        discount: taken off every count.

    Raises:
        ValueError: the texts hold no word, or order and discount are out of range.
    """

    def __init__(self, texts: Iterable[str], order: int = 3, discount: float = 0.75) -> None:
        if order < 1 or not 0 < discount < 1:
            raise ValueError(f"order is at least 1 and the discount in (0, 1), got {order} and {discount}")
        self.order, self.discount = order, discount
        highest: Counter[Gram] = Counter()
        for text in texts:
            words = [START] * (order - 1) + words_of(text) + [END]
            highest.update(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
        if highest.total() < 2 or set(highest) == {(START,) * (order - 1) + (END,)}:
            raise ValueError("the reference holds no word: an n-gram model needs text")
        self.counts = [highest]  # from the highest order down
        for _ in range(order - 1):
            self.counts.append(Counter(gram[1:] for gram in self.counts[-1]))
        self.totals, self.kinds = [defaultdict[Gram, int](int) for _ in self.counts], [defaultdict[Gram, int](int) for _ in self.counts]
        for level, grams in enumerate(self.counts):
            for gram, count in grams.items():
                self.totals[level][gram[:-1]] += count
                self.kinds[level][gram[:-1]] += 1
        self.vocabulary = len(self.counts[-1]) + 1  # and the unknown word

    def probability(self, gram: Gram) -> float:
        """p(last word | the words before it)."""
        below = 1 / self.vocabulary
        for level in range(self.order - 1, -1, -1):
            part = gram[len(gram) - (self.order - level) :]
            total = self.totals[level].get(part[:-1], 0)
            if total:
                taken = max(self.counts[level].get(part, 0) - self.discount, 0.0)
                below = taken / total + self.discount * self.kinds[level][part[:-1]] / total * below
        return below

    def perplexity(self, text: str) -> float:
        """exp of the mean negative log-probability of a text's words and its end; infinite for a text without a word."""
        words = words_of(text)
        if not words:
            return math.inf
        row = [START] * (self.order - 1) + words + [END]
        nats = -sum(math.log(self.probability(tuple(row[start : start + self.order]))) for start in range(len(row) - self.order + 1))
        return math.exp(nats / (len(words) + 1))


def words_of(text: str) -> list[str]:
    """Lower-case words, digits as 0, and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", re.sub(r"\d", "0", text.lower()))


def threshold(model: NgramModel, texts: Sequence[str], share: float = 1 / 3) -> float:
    """The perplexity below which this share of the texts lies: CCNet's "head" is a third of a language's pages.

    Raises:
        ValueError: there are no texts, or the share is not in (0, 1].
    """
    if not texts or not 0 < share <= 1:
        raise ValueError(f"a threshold needs texts and a share in (0, 1], got {len(texts)} texts and {share}")
    found = sorted(map(model.perplexity, texts))
    return found[math.ceil(share * len(found)) - 1]


def reads_like(model: NgramModel, most: float) -> Stage:
    """Keeps documents of at most this perplexity."""

    def below_perplexity(text: str) -> bool:
        return model.perplexity(text) <= most

    return only(below_perplexity)


def reference_classifier(reference: Sequence[str], random: Sequence[str], features: int = 1 << 18) -> Callable[[str], float]:
    """A linear classifier of pages that a reference (Wikipedia) cites against random ones: text -> probability of the former.

    Args:
        features: places into which words and pairs of words are hashed.

    Raises:
        ValueError: a side is empty.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    if not reference or not random:
        raise ValueError(f"the classifier needs pages of both kinds, got {len(reference)} reference and {len(random)} random ones")
    hashed = HashingVectorizer(n_features=features, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    model = LogisticRegression(max_iter=1000, C=10.0, class_weight="balanced")
    model.fit(hashed.transform([*reference, *random]), [1] * len(reference) + [0] * len(random))
    return lambda text: float(model.predict_proba(hashed.transform([text]))[0, 1])


def cited_like(probability: Callable[[str], float], least: float = 0.5) -> Stage:
    """Keeps documents that the classifier takes for reference pages."""

    def like_reference(text: str) -> bool:
        return probability(text) >= least

    return only(like_reference)
