"""The pre-training data: each filter on texts made for it, resuming after a kill, and the mixture's frequencies."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.models.llama.corpus.documents import Document, Pipeline, each, only, process
from etude.models.llama.corpus.duplicates import DistinctBooks, DistinctLines, DistinctSpans, DistinctTexts
from etude.models.llama.corpus.heuristics import c4_page, is_code_file, is_permissive, strip_header
from etude.models.llama.corpus.language import LanguageId, in_language
from etude.models.llama.corpus.markup import clean_latex, clean_wikitext, expand, macros_of, question_page, strip_comments, strip_html
from etude.models.llama.corpus.mixture import PAPER, Mixture, epochs, windows
from etude.models.llama.corpus.quality import NgramModel, cited_like, reads_like, reference_classifier, threshold
from etude.nn.tiny import tiny_sentences

SAMPLES = {
    "en": ["The children were playing in the garden while their mother was reading a book about the history of the town."],
    "de": ["Die Kinder spielten im Garten, während ihre Mutter ein Buch über die Geschichte der Stadt las und Tee trank."],
    "fr": ["Les enfants jouaient dans le jardin pendant que leur mère lisait un livre sur l'histoire de la ville."],
}


def texts_of(stage, *texts: str) -> list[str]:
    return [document.text for document in stage(Document(text) for text in texts)]


# ---- mixture ----


@pytest.mark.parametrize("seed", range(3))
def test_sources_are_drawn_by_their_weights_within_three_sigma(seed):
    weights, count = {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}, 6000
    mixture = Mixture({name: range(7) for name in weights}, weights, seed)
    drawn = [mixture.at(i)[0] for i in range(count)]
    for name, weight in weights.items():
        assert abs(drawn.count(name) / count - weight) <= 3 * math.sqrt(weight * (1 - weight) / count)


def test_each_source_is_gone_through_before_anything_comes_twice():
    mixture, places = Mixture({"a": range(10), "b": range(3)}, {"a": 0.5, "b": 0.5}, seed=1), {"a": [], "b": []}
    for draw in range(200):
        name, place = mixture.at(draw)
        places[name].append(place)
    for name, size in (("a", 10), ("b", 3)):
        rounds = [places[name][start : start + size] for start in range(0, len(places[name]) - size + 1, size)]
        assert all(sorted(each) == list(range(size)) for each in rounds) and len({tuple(each) for each in rounds}) > 1


def test_a_stream_that_is_taken_up_again_is_the_same_stream():
    def fresh() -> Mixture:
        return Mixture({"a": "xyz", "b": "uv", "c": "w"}, {"a": 0.6, "b": 0.4, "c": 0.0}, seed=5)

    stream = fresh().stream()
    whole = [next(stream) for _ in range(9000)]
    for start in (0, 1, 4095, 4096, 8500):
        again = fresh().stream(start)
        assert [next(again) for _ in range(300)] == whole[start : start + 300]
    assert {name for name, _ in whole} == {"a", "b"}


def test_epochs_are_weight_times_budget_over_size():
    shares = {share.name: share for share in Mixture({"a": range(50), "b": range(10)}, {"a": 0.75, "b": 0.25}).report(draws=200)}
    assert shares["a"].epochs == 0.75 * 200 / 50 and shares["b"].epochs == 5.0 and shares["b"].size == 10
    tokens = {name: weight * 1.4e12 / rounds for name, (weight, rounds, _) in PAPER.items()}
    found = epochs({name: row[0] for name, row in PAPER.items()}, tokens, 1.4e12)
    assert [round(share.epochs, 2) for share in found] == [row[1] for row in PAPER.values()]


@pytest.mark.parametrize(
    ("sizes", "weights", "says"),
    [
        ({"a": 3, "b": 3}, {"a": 0.5, "b": 0.4}, "sum to 0.9 instead of 1: divide each by 0.9"),
        ({"a": 3, "b": 0}, {"a": 0.5, "b": 0.5}, "the source b is empty"),
        ({"a": 3, "b": 3}, {"a": 1.5, "b": -0.5}, "the weight of b must be a number of at least 0, got -0.5"),
        ({"a": 3, "b": 3}, {"a": 1.0}, "weights and sources differ in b"),
    ],
)
def test_what_cannot_be_mixed_is_refused(sizes, weights, says):
    with pytest.raises(ValueError, match=says):
        Mixture({name: range(size) for name, size in sizes.items()}, weights)


def test_texts_become_windows():
    assert windows([[1, 2], [3]], 2, end=9).tolist() == [[1, 2], [9, 3]]
    with pytest.raises(ValueError, match="hold 2 tokens, less than one window of 3"):
        windows([[1, 2]], 3)


# ---- stages ----


def test_a_pipeline_counts_what_each_stage_keeps():
    def long(text: str) -> bool:
        return len(text) > 2

    pipeline = Pipeline([only(long), each(str.upper)])
    assert texts_of(pipeline, "a", "abc", "abcd") == ["ABC", "ABCD"]
    assert {name: (count.documents, count.characters) for name, count in pipeline.counts.items()} == {
        "read": (3, 8),
        "1 long": (2, 7),
        "2 upper": (2, 7),
    }


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.parametrize("dies", [0, 3, 7, 11])
def test_a_killed_run_that_is_started_again_ends_as_the_undisturbed_one(dies, tmp_path):
    lines = tiny_sentences(60, seed=1)
    shards = {f"part{i}": ["".join(lines[12 * i + 3 * k : 12 * i + 3 * k + 5]) for k in range(4)] for i in range(3)}
    read = []

    def reader(texts: list[str], mortal: bool):
        def documents():
            for text in texts:
                if mortal and len(read) == dies:
                    raise Killed
                read.append(text)
                yield Document(text, "web", {"licence": "mit"})

        return documents

    def run(folder, mortal: bool) -> list[str]:
        stages = [DistinctLines(), DistinctTexts(), DistinctBooks(every=2)]
        files = process({name: reader(texts, mortal) for name, texts in shards.items()}, Pipeline(stages), folder)
        return [path.read_text() for path in files]

    with pytest.raises(Killed):
        run(tmp_path / "killed", True)
    before = len(list((tmp_path / "killed").glob("*.jsonl")))
    assert run(tmp_path / "killed", False) == run(tmp_path / "whole", False) and before == dies // 4
    kept = json.loads((tmp_path / "whole" / "part0.jsonl").read_text().splitlines()[0])
    assert kept["source"] == "web" and kept["licence"] == "mit"
    counts = [json.loads((tmp_path / name / "progress.json").read_text())["counts"] for name in ("killed", "whole")]
    assert counts[0] == counts[1] and len(list((tmp_path / "killed").glob("memory-*"))) == 1


def test_a_folder_of_other_stages_is_refused(tmp_path):
    process({"a": lambda: [Document("one two")]}, Pipeline([DistinctTexts()]), tmp_path)
    with pytest.raises(ValueError, match="begun with other stages or shards"):
        process({"a": list}, Pipeline([DistinctLines()]), tmp_path)


# ---- duplicates ----


def test_lines_seen_before_go_in_any_spelling():
    assert texts_of(DistinctLines(), "Home\nA story of 12 men.", "home!\nAnother story.\na story of 34 men", "HOME") == [
        "Home\nA story of 12 men.",
        "Another story.",
    ]


def test_equal_files_stay_once():
    assert texts_of(DistinctTexts(), "x = 1\n", "x = 1", "x = 2") == ["x = 1\n", "x = 2"]


def test_spans_of_three_sentences_stay_once():
    first, second = "One is here. Two is here. Three is here. Four is new.", "Zero was there. One is here. Two is here. Three is here. Five."
    assert texts_of(DistinctSpans(), first, second) == [first, "Zero was there. Five."]


def test_books_that_overlap_by_nine_tenths_stay_once():
    dice = random.Random(0)
    letters = [chr(97 + i) + chr(97 + j) + chr(97 + k) for i in range(26) for j in range(26) for k in range(26)]
    words, other = dice.choices(letters, k=4000), dice.choices(letters, k=2000)
    copy, half, excerpt = words[:3900] + words[:100], words[:2000] + other, words[500:2500]
    kept = texts_of(DistinctBooks(every=4), *(" ".join(each) for each in (words, copy, half, excerpt)))
    assert [len(text.split()) for text in kept] == [4000, 4000] and kept[1].endswith(other[-1])
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 0"):
        DistinctBooks(overlap=0)


def test_memories_survive_their_array():
    for stage in (DistinctLines(), DistinctBooks(every=1)):
        texts_of(stage, "some words are here for a book of nine words", "and other words for another book of ten words here")
        again = type(stage)() if isinstance(stage, DistinctLines) else DistinctBooks(every=1)
        again.restore(stage.state())
        assert np.array_equal(again.state(), stage.state()) and texts_of(again, "some words are here for a book of nine words") == []


# ---- heuristics ----

PAGE = "This is a sentence of a page. [1]\nMenu\nAnother one has more words in it!\nAnd a third one ends the page."


@pytest.mark.parametrize(
    ("page", "keeps"),
    [
        (PAGE, "This is a sentence of a page.\nAnother one has more words in it!\nAnd a third one ends the page."),
        (PAGE.replace("third", "{third}"), ""),
        (PAGE + "\nLorem ipsum dolor.", ""),
        (PAGE.replace("Another one has", "Please enable Javascript, it has"), ""),
        (
            PAGE + "\nWe uses cookies on this page, really.",
            "This is a sentence of a page.\nAnother one has more words in it!\nAnd a third one ends the page.",
        ),
        ("Too few sentences are in this page.", ""),
    ],
)
def test_what_c4_keeps_of_a_page(page, keeps):
    assert c4_page(page) == keeps
    assert c4_page(page, forbidden=["sentence", "sentences"]) == ""


def test_code_that_somebody_wrote():
    assert is_code_file("def f(x):\n    return x + 1\n")
    assert not is_code_file("x = '" + "a" * 1001 + "'") and not is_code_file("{}();\n" * 9) and not is_code_file("  \n")
    assert not is_code_file("\n".join(["y" * 150] * 4))
    assert is_permissive("MIT") and is_permissive("Apache-2.0") and not is_permissive("GPL-3.0")


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ("# Copyright 2020 Me\n# All rights reserved.\n\nx = 1\n", "x = 1\n"),
        ("/*\n * Licensed under MIT\n */\nint x;\n", "int x;\n"),
        ("# what this does\nx = 1\n", "# what this does\nx = 1\n"),
        ("x = 1  # licence\n", "x = 1  # licence\n"),
    ],
)
def test_notices_at_the_top_go(text, keeps):
    assert strip_header(text) == keeps


# ---- language, quality ----


def test_languages_are_told_apart():
    identify = LanguageId(SAMPLES)
    for text, language in (("a book about children and the garden", "en"), ("ein Buch über den Garten", "de"), ("un livre pour les enfants", "fr")):
        assert identify(text)[0] == language
    assert identify("12 34 ...") == ("", 0.0)
    assert texts_of(in_language(identify, ["de"]), "the garden of their mother", "während der Geschichte der Stadt", "99") == [
        "während der Geschichte der Stadt"
    ]
    with pytest.raises(ValueError, match="samples of two or more"):
        LanguageId({"en": ["text"]})
    with pytest.raises(ValueError, match="the sample of de holds no letters"):
        LanguageId({"en": ["text"], "de": ["12"]})


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), st.integers(1, 4), st.lists(st.sampled_from("abcdx"), max_size=3))
def test_the_next_words_probabilities_sum_to_one(words, order, history):
    model = NgramModel([" ".join(words)], order=order)
    before = ["<s>"] * order + history
    known = {gram[-1] for gram in model.counts[-1]}
    total = sum(model.probability((*before[len(before) - order + 1 :], word)) for word in known) + model.probability(
        (*before[len(before) - order + 1 :], "?")
    )
    assert total == pytest.approx(1.0)


def test_kneser_ney_by_hand():
    model = NgramModel(["a b a b", "a c"], order=2, discount=0.5)
    # after "a": b twice, c once; contexts: a after <s>, b; b after a; c after a; </s> after b, c: 6 pairs
    below = {"b": (1 - 0.5) / 6 + 0.5 * 4 / 6 / 5, "c": (1 - 0.5) / 6 + 0.5 * 4 / 6 / 5}
    assert model.probability(("a", "b")) == pytest.approx(1.5 / 3 + 0.5 * 2 / 3 * below["b"])
    assert model.probability(("a", "c")) == pytest.approx(0.5 / 3 + 0.5 * 2 / 3 * below["c"])


def test_pages_like_the_reference_have_low_perplexity():
    reference, unlike = tiny_sentences(200), ["zxq vprt 1 1 1 mmm qq", "buy now buy now buy now cheap"]
    model = NgramModel(reference)
    limit = threshold(model, tiny_sentences(30, seed=3), share=1.0)
    assert texts_of(reads_like(model, limit), *unlike, *tiny_sentences(5, seed=3)) == tiny_sentences(5, seed=3)
    assert model.perplexity("") == math.inf and threshold(model, [*unlike, *reference[:4]], 1 / 3) < limit
    for wrong in ({"order": 0}, {"discount": 1.0}):
        with pytest.raises(ValueError, match="order is at least 1"):
            NgramModel(reference, **wrong)
    with pytest.raises(ValueError, match="holds no word"):
        NgramModel([""])


def test_the_classifier_tells_reference_pages_from_random_ones():
    reference, spam = tiny_sentences(40), [f"cheap offer number {i} click here now to win" for i in range(40)]
    probability = reference_classifier(reference[:30], spam[:30], features=1 << 10)
    assert texts_of(cited_like(probability), *reference[30:], *spam[30:]) == reference[30:]
    with pytest.raises(ValueError, match="pages of both kinds, got 0"):
        reference_classifier([], spam)


# ---- markup ----

TEX = r"""\documentclass{article} % a comment
\newcommand{\R}{\mathbb{R}} \newcommand{\norm}[1]{\|#1\|} \def\half{\tfrac12}
\begin{document} Abstract of no use.
\section{Method}
% gone
We take $x \in \R^d$ with $\norm{x + \norm{y}} \le \half z$ at 5\% noise.
\begin{thebibliography}{9} \bibitem{a} A. \end{thebibliography}
\bibliography{refs}
\end{document} after"""


def test_a_paper_begins_at_its_first_section_with_macros_expanded():
    assert clean_latex(TEX) == "\\section{Method}\nWe take $x \\in \\mathbb{R}^d$ with $\\|x + \\|y\\|\\| \\le \\tfrac12 z$ at 5\\% noise."
    assert clean_latex("no section here") == ""


def test_macros_that_name_themselves_end_and_comments_know_their_escapes():
    assert len(expand(r"\a", {r"\a": (0, r"\a\a")})) < 300 and expand(r"\ab \a", {r"\a": (0, "x")}) == r"\ab x"
    assert macros_of(r"\renewcommand*\x[2]{#1{#2}}") == {r"\x": (2, "#1{#2}")} and expand(r"\x{p}{q}", {r"\x": (2, "#1{#2}")}) == "p{q}"
    assert strip_comments("5\\% of\\\\% x\n  % y\nz") == "5\\% of\\\\\nz"


def test_answers_stand_by_falling_score_without_tags():
    page = question_page(
        {"title": "Why &amp; how", "body": "<p>What is <b>x</b>?</p>"},
        [{"body": "<p>low</p>", "score": 1}, {"body": "<pre>high &lt; 3</pre>", "score": 9}],
    )
    assert page == "Why & how\n\nWhat is x?\n\nhigh < 3\n\nlow"
    assert strip_html("a<script>x()</script><br>b<p>c</p>") == "a\nb\nc"


def test_an_article_without_its_markup():
    article = (
        "{{Infobox|a={{b}}}}'''Rome''' is a [[city|town]] in [[Italy]].<ref>x</ref>\n[[File:a.jpg|thumb|A [[map]]]]\n== History ==\n"
        "{| class=x\n| cell\n|}\nSee [https://a.b site].<!-- c -->\n[[Category:Towns]]"
    )
    assert clean_wikitext(article) == "Rome is a town in Italy.\n\nHistory\nSee site."
