"""Verdicts: rules, intervals, pairing, corrections."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from etude.harness import intervals
from etude.harness.contract import Claim, Rule
from etude.harness.intervals import benjamini_hochberg, bootstrap, holm, interval_items, interval_t, paired_difference
from etude.harness.verdict import (
    above,
    all_of,
    beats,
    below,
    contains,
    exact,
    judge,
    log_ratio,
    seeds_to_add,
    within,
)
from etude.measure.contract import Items, Metrics

FIRM, NOT, OPEN = "reproduced", "not reproduced", "inconclusive"


def gain(m: Mapping[str, Metrics]) -> float:
    return m["b"].loss - m["a"].loss


def runs_of(values: list[float]) -> dict[tuple[str, int], Metrics]:
    return {(arm, seed): Metrics(loss=value if arm == "b" else 0.0) for seed, value in enumerate(values) for arm in "ab"}


def blocks(dice: random.Random, n: int, mean: float, spread: float = 0.1) -> Items:
    return Items.of(range(n), [dice.gauss(mean, spread) for _ in range(n)])


@pytest.mark.parametrize(
    ("rule", "interval", "status"),
    [
        (above(0), (0.1, 0.2, 0.3), FIRM),
        (above(0), (-0.1, 0.2, 0.3), OPEN),
        (above(0), (-0.3, -0.2, -0.1), NOT),
        (above(0, effect=0.25), (0.1, 0.2, 0.3), OPEN),
        (above(0, effect=0.25), (0.1, 0.2, 0.24), NOT),
        (above(0, effect=0.25), (0.1, 0.26, 0.4), FIRM),
        (below(2), (1.0, 1.5, 1.9), FIRM),
        (below(2, effect=1), (1.0, 1.5, 1.9), OPEN),
        (below(2, effect=1), (1.2, 1.5, 1.9), NOT),
        (below(2), (2.1, 2.5, 2.9), NOT),
        (within(-1, 1), (-0.5, 0, 0.5), FIRM),
        (within(-1, 1), (-1.5, 0, 0.5), OPEN),
        (within(-1, 1), (1.1, 1.2, 1.3), NOT),
        (contains(0.5), (0.4, 0.45, 0.6), FIRM),
        (contains(0.5), (0.51, 0.55, 0.6), NOT),
        (exact(3, 1e-5), (3, 3, 3), FIRM),
        (exact(3, 1e-5), (3, 3.1, 3.2), OPEN),
        (exact(3, 1e-5), (3.1, 3.1, 3.1), NOT),
        (all_of(contains(0.5), below(0.6)), (0.4, 0.5, 0.55), FIRM),
        (all_of(contains(0.5), below(0.6)), (0.4, 0.5, 0.65), OPEN),
        (all_of(contains(0.5), below(0.6)), (0.51, 0.6, 0.65), NOT),
    ],
)
def test_rules(rule: Rule, interval: tuple[float, float, float], status: str) -> None:
    assert rule(*interval) == status


def test_rules_read_well() -> None:
    assert str(all_of(above(0, effect=0.1), within(-1, 1))) == "above 0, estimate at least 0.1 and interval inside -1 to 1"
    assert above(0.5) == above(0.5) and hash(above(0.5)) == hash(above(0.5))


def test_student_below_ten_seeds() -> None:
    values = [0.3, 0.5, 0.1]
    verdict = judge(Claim("t", gain, above(0)), runs_of(values))
    low, high = stats.t.interval(0.95, 2, loc=0.3, scale=stats.sem(values))
    assert (verdict.low, verdict.high) == pytest.approx((low, high))
    assert verdict.status == OPEN and verdict.seeds == 3 and verdict.half_width == pytest.approx(high - 0.3)
    need = verdict.needed
    assert need is not None and need > 3
    sd = stats.tstd(values)
    assert stats.t.ppf(0.975, need - 1) * sd / math.sqrt(need) <= 0.3 < stats.t.ppf(0.975, need - 2) * sd / math.sqrt(need - 1)


def test_p_is_students() -> None:
    values = [0.3, 0.35, 0.26, 0.31]
    verdict = judge(Claim("t", gain, above(0)), runs_of(values))
    assert verdict.status == FIRM and verdict.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-4)
    assert judge(Claim("t", gain, below(0)), runs_of(values)).p == 1.0


def test_bootstrap_from_ten_agrees_with_student_on_normal_data() -> None:
    dice, widths, covered = random.Random(0), [], 0
    for _ in range(120):
        values = [dice.gauss(0, 1) for _ in range(10)]
        low, high = bootstrap(values)
        widths.append((high - low) / (interval_t(values)[1] - interval_t(values)[0]))
        covered += low <= 0 <= high
    assert 0.9 < sum(widths) / len(widths) < 1.1
    assert covered >= 0.89 * 120


def test_overlapping_splits_widen() -> None:
    values = [0.3, 0.35, 0.26, 0.31]
    plain, corrected = (judge(Claim("t", gain, above(0), overlap=o), runs_of(values)) for o in (0.0, 0.25))
    assert (corrected.high - corrected.low) / (plain.high - plain.low) == pytest.approx(math.sqrt((1 / 4 + 0.25) / (1 / 4)))


def test_zero_width_counts_only_for_exact() -> None:
    same = runs_of([0.5, 0.5, 0.5])
    open_, firm = judge(Claim("t", gain, above(0)), same), judge(Claim("t", gain, exact(0.5, 1e-9)), same)
    assert open_.status == OPEN and "zero width" in open_.reason
    assert firm.status == FIRM
    assert judge(Claim("t", gain, exact(0.5, 1e-9)), runs_of([0.5])).status == FIRM
    none = judge(Claim("t", gain, above(0), over="none"), same)
    assert none.status == OPEN and "exact" in none.reason
    assert judge(Claim("t", gain, all_of(exact(0.5, 1e-9), exact(0.4, 0.2)), over="none"), same).status == FIRM


def test_one_seed_has_no_interval() -> None:
    verdict = judge(Claim("t", gain, contains(0.5)), runs_of([0.5]))
    assert verdict.status == OPEN and "three" in verdict.reason and verdict.to_json()["low"] is None


def test_items_are_paired_by_id_across_arms() -> None:
    dice = random.Random(1)
    hard = [dice.gauss(5, 2) for _ in range(40)]
    a = Items.of(range(40), hard)
    b = Items.of(range(40), [x + 0.1 + dice.gauss(0, 0.01) for x in hard])
    shuffled = b.at(dice.sample(range(40), 40))
    claim = Claim("t", gain, above(0.05), over="blocks")
    one, two = (judge(claim, {("a", 0): Metrics(loss=a), ("b", 0): Metrics(loss=x)}) for x in (b, shuffled))
    assert one.status == FIRM and one.high - one.low < 0.02 and one.units == 40
    assert (one.low, one.high) == pytest.approx((two.low, two.high))
    assert one.low < paired_difference([b], [a]).low + 0.003


def test_partly_shared_items_are_refused() -> None:
    a, b = Items.of("abc", [1.0, 2.0, 3.0]), Items.of("bcd", [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="different items"):
        judge(Claim("t", gain, above(0), over="items"), {("a", 0): Metrics(loss=a), ("b", 0): Metrics(loss=b)})


def test_an_item_twice_is_refused_and_metrics_that_the_claim_does_not_read_do_not_matter() -> None:
    dice = random.Random(9)
    claim = Claim("t", gain, above(-1), over="items")
    runs = {(arm, 0): Metrics(loss=blocks(dice, 30, 1.0), other=Items.of(["all"], [dice.random()])) for arm in "ab"}
    assert judge(claim, runs).status == FIRM and judge(claim, runs).units == 30
    runs["a", 0]["loss"] = Items.of("aab", [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="an item twice"):
        judge(claim, runs)


def test_seeds_that_disagree_widen_an_interval_over_items() -> None:
    dice = random.Random(2)
    base = blocks(dice, 50, 1.0)
    lifted = {seed: Items.of(range(50), [x + shift for x in base.top]) for seed, shift in enumerate((0.1, 0.3, 0.5))}
    runs = {(arm, seed): Metrics(loss=lifted[seed] if arm == "b" else base) for seed in range(3) for arm in "ab"}
    verdict = judge(Claim("t", gain, above(0), over="items"), runs)
    assert verdict.status == OPEN and verdict.high - verdict.estimate == pytest.approx(interval_t([0.1, 0.3, 0.5])[1] - 0.3, rel=1e-6)


def test_missing_arms_and_undefined_numbers() -> None:
    runs = runs_of([0.3, 0.35, 0.26, 0.31])
    del runs["b", 3]
    assert judge(Claim("t", gain, above(0)), runs).seeds == 3
    gone = judge(Claim("t", gain, above(0)), {("a", 0): Metrics(loss=1.0)})
    assert gone.status == OPEN and "missing: b" in gone.reason
    undefined = judge(Claim("t", lambda m: log_ratio(m["a"].loss, m["b"].loss), above(0)), runs_of([1.0, 2.0, 3.0]))
    assert undefined.status == OPEN and "not defined" in undefined.reason
    assert json.loads(json.dumps(undefined.to_json(), allow_nan=False))["estimate"] is None


def test_beats() -> None:
    runs = runs_of([0.3, 0.35, 0.26])
    assert judge(beats("a", "b", "loss", 0.25), runs).status == FIRM
    assert judge(beats("a", "b", "loss", 0.5), runs).status == NOT
    assert judge(beats("b", "a", "loss", better="higher"), runs).status == FIRM
    assert judge(beats("b", "a", "loss", by=-0.6), runs).status == FIRM
    assert "loses less than 0.6" in beats("b", "a", "loss", by=-0.6).title


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_log_ratio(a: float, b: float) -> None:
    assert log_ratio(a, b) == pytest.approx(-log_ratio(b, a)) and log_ratio(a, a) == 0
    with pytest.raises(ValueError, match="positive"):
        log_ratio(a, 0.0)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_and_benjamini_hochberg(ps: list[float]) -> None:
    assert benjamini_hochberg(ps) == pytest.approx(list(stats.false_discovery_control(ps)))
    assert all(p - 1e-12 <= q <= h + 1e-12 for p, q, h in zip(ps, benjamini_hochberg(ps), holm(ps), strict=True))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_paired_difference_of_deterministic_arms_is_students_over_blocks() -> None:
    dice = random.Random(3)
    a, b = blocks(dice, 30, 1.05), blocks(dice, 30, 1.0)
    found, peer = paired_difference([a], [b]), stats.ttest_rel(a.top, b.top)
    ci = peer.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((ci.low, ci.high, peer.pvalue), rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 30))
def test_paired_difference_is_antisymmetric_and_p_matches_the_interval(seed: int, n: int, size: int) -> None:
    dice = random.Random(seed)
    a, b = ([blocks(dice, size, mean) for _ in range(n)] for mean in (1.0, 1.02))
    one, two = paired_difference(a, b), paired_difference(b, a)
    assert (one.difference, one.low, one.high, one.p) == pytest.approx((-two.difference, -two.high, -two.low, two.p))
    assert (one.p < 0.05) == (one.low > 0 or one.high < 0)


def test_a_deterministic_contender_pairs_with_every_seed() -> None:
    dice = random.Random(4)
    still, seeds = blocks(dice, 20, 1.0), [blocks(dice, 20, 1.2) for _ in range(4)]
    assert paired_difference(seeds, [still]) == paired_difference(seeds, [still] * 4)


def test_false_winners_between_identical_stochastic_contenders_are_few() -> None:
    """Whatever the share of the error between seeds and between blocks."""
    dice = random.Random(5)
    for seeds, between in ((2, 0.1), (3, 0.0), (3, 0.03), (5, 0.3)):
        wins = 0
        for _ in range(150):
            hard = [dice.gauss(0, 1) for _ in range(24)]
            a, b = ([_noisy(hard, dice, between) for _ in range(seeds)] for _ in "ab")
            wins += paired_difference(a, b).p < 0.05
        assert wins <= 0.09 * 150, (seeds, between, wins)


def _noisy(hard: list[float], dice: random.Random, between: float) -> Items:
    shift = dice.gauss(0, between)
    return Items.of(range(len(hard)), [x + shift + dice.gauss(0, 0.1) for x in hard])


def test_relative_pairs_and_more_data() -> None:
    dice = random.Random(6)
    ref = blocks(dice, 40, 2.0)
    worse = Items.of(range(40), [x * 1.03 for x in ref.top])
    found = intervals.pair([worse], [ref], relative=True)
    assert found.difference == pytest.approx(0.03) and found.block_error == pytest.approx(0, abs=1e-9)
    near = intervals.pair([blocks(dice, 40, 2.01)], [ref])
    assert near.p() > 0.05 and "test blocks (now 40)" in near.more()
    enough = int(near.more().split()[1])
    assert near.half_width(blocks=enough) < abs(near.difference)
    with pytest.raises(ValueError, match="not zero"):
        intervals.pair([ref], [Items.of(range(40), [0.0] * 40)], relative=True)
    with pytest.raises(ValueError, match="different items"):
        intervals.pair([ref], [Items.of(range(39), [1.0] * 39)])


def test_interval_of_one_contender() -> None:
    items = blocks(random.Random(7), 30, 1.0)
    assert interval_items([items]) == pytest.approx(interval_t(items.top))


def test_seeds_are_added_once_by_a_fixed_rule() -> None:
    unsure = judge(Claim("t", gain, above(0)), runs_of([0.3, 0.5, -0.1]))
    sure = judge(Claim("t", gain, above(0)), runs_of([0.3, 0.31, 0.32]))
    assert seeds_to_add([sure], 3, 1e6, 1) == 0
    assert seeds_to_add([sure, unsure], 3, 1e6, 1) == 7
    assert seeds_to_add([unsure], 3, 10, 4) == 2
    assert seeds_to_add([unsure], 3, -5, 4) == 0


def test_a_verdict_is_recomputed_to_the_last_digit() -> None:
    dice = random.Random(8)
    runs = {(arm, 0): Metrics(loss=blocks(dice, 30, 1.0)) for arm in "ab"}
    again = {key: Metrics.from_json(json.loads(json.dumps(m.to_json()))) for key, m in runs.items()}
    claim = Claim("t", gain, above(0), over="blocks")
    assert judge(claim, runs) == judge(claim, again)


def test_metrics_from_json_takes_integers_and_words() -> None:
    found = Metrics.from_json({"bytes": 12, "loss": {"ids": ["a", "b"], "top": [1, "nan"]}, "curve": [1, 2.5], "bad": "inf"})
    assert found.bytes == 12.0 and math.isnan(found.loss) and found["curve"] == [1.0, 2.5] and found.bad == math.inf
