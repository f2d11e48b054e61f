"""Invariants of PsiPO on tables, its losses against TRL's, its traps; training on models of a few thousand parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.align._pairs import encode
from etude.align._score import Scores, score
from etude.align._train import Batch
from etude.align.psi_po import IPO, PsiPO, check_rows, said
from etude.align.psi_po.bandit import LOSSES, ipo_loss, train_bandit
from etude.align.psi_po.benchmark import TAU, batch_of
from etude.align.psi_po.experiment import EXPERIMENTS
from etude.align.psi_po.language import OWN, by_epoch, slope
from etude.align.psi_po.losses import psi_po_loss, target_of
from etude.align.psi_po.saturation import log_ratios, saturation
from etude.align.psi_po.tabular import bradley_terry, ipo_minimiser, kl, preference_over, psi_po, rlhf, total_variation, wins_of
from etude.data.contract import Budget, Data, Journal, Preferences, Split
from etude.nn.tiny import byte_tokenizer, tiny_gpt2, tiny_llama

EVEN = torch.full((3,), 1 / 3, dtype=torch.float64)
CYCLE = torch.tensor([[0, 1], [1, 2], [2, 0]])


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy_of(seed: int, actions: int) -> torch.Tensor:
    return torch.softmax(torch.randn(actions, generator=dice(seed), dtype=torch.float64), -1)


def preference_of(seed: int, actions: int, spread: float = 1.0) -> torch.Tensor:
    noise = torch.randn(actions, actions, generator=dice(seed), dtype=torch.float64)
    return torch.sigmoid(spread * (noise - noise.T))


def few(examples: int):
    return settings(max_examples=examples, deadline=None)


tables = st.tuples(st.integers(0, 999), st.integers(2, 6), st.floats(0.1, 3))
quick = few(25)


# ---- the optimum of the objective ----


@given(tables)
@quick
def test_the_logit_with_bradley_terry_is_rlhf(case):
    seed, actions, tau = case
    reward, reference = torch.randn(actions, generator=dice(seed), dtype=torch.float64), policy_of(seed + 1, actions)
    found = psi_po(bradley_terry(reward), reference, policy_of(seed + 2, actions), tau, "logit")
    torch.testing.assert_close(found, rlhf(reward, reference, tau), atol=1e-9, rtol=1e-9)


@given(tables)
@quick
def test_nothing_to_prefer_or_an_infinite_tau_gives_the_reference(case):
    seed, actions, tau = case
    p, reference, mu = preference_of(seed, actions), policy_of(seed + 1, actions), policy_of(seed + 2, actions)
    ties = torch.full_like(p, 0.5)
    for found in (psi_po(ties, reference, mu, tau), psi_po(p, reference, mu, tau, torch.ones_like), psi_po(p, reference, mu, math.inf)):
        torch.testing.assert_close(found, reference, atol=1e-12, rtol=1e-9)
    assert kl(psi_po(p, reference, mu, 1e6), reference) < 1e-9


@given(tables)
@quick
def test_the_solver_reaches_the_maximum_of_the_objective(case):
    seed, actions, tau = case
    p, reference, mu = preference_of(seed, actions), policy_of(seed + 1, actions), policy_of(seed + 2, actions)

    def objective(pi):
        return pi @ preference_over(p, mu) - tau * kl(pi, reference)

    best = psi_po(p, reference, mu, tau)
    assert all(objective(best) >= objective(torch.softmax(best.log() + 0.1 * noise, -1)) for noise in torch.randn(20, actions, generator=dice(seed)))


@pytest.mark.parametrize("tau", [0.1, 1.0, 100.0])
def test_no_tau_holds_the_logit_where_preferences_are_deterministic_and_the_identity_is_held(tau):
    order = torch.tensor([[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(psi_po(order, EVEN, EVEN, tau, "logit"), torch.tensor([1.0, 0, 0], dtype=torch.float64))
    ratio = (psi_po(order, EVEN, EVEN, tau) / EVEN).log()
    torch.testing.assert_close(ratio[0] - ratio[2], torch.tensor(2 / 3 / tau, dtype=torch.float64))
    tied = torch.tensor([[0.5, 0.5, 1], [0.5, 0.5, 1], [0, 0, 0.5]], dtype=torch.float64)
    skewed = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(psi_po(tied, skewed, EVEN, tau, "logit"), torch.tensor([0.75, 0.25, 0], dtype=torch.float64))


# ---- its minimiser on pairs ----


@given(tables)
@quick
def test_population_pairs_lead_to_the_optimum_of_the_objective(case):
    seed, actions, tau = case
    p, reference, mu = preference_of(seed, actions), policy_of(seed + 1, actions), policy_of(seed + 2, actions)
    wins = mu[:, None] * mu[None] * p * (1 - torch.eye(actions))
    torch.testing.assert_close(ipo_minimiser(wins, reference, tau), psi_po(p, reference, mu, tau), atol=1e-7, rtol=1e-6)


@given(tables, st.booleans())
@few(10)
def test_least_squares_is_where_gradient_descent_ends(case, apart):
    seed, actions, tau = case
    wins = torch.randint(0, 3, (actions, actions), generator=dice(seed)).double() * (1 - torch.eye(actions))
    if apart and actions > 3:  # two parts that no pair joins
        wins[:2, 2:], wins[2:, :2] = 0, 0
    reference = policy_of(seed + 1, actions)
    s = torch.zeros(actions, dtype=torch.float64)
    for _ in range(2000):
        h = s[:, None] - s[None]
        slope_of_h = 2 * wins * (h - 1 / (2 * tau))
        s -= 0.02 * (slope_of_h.sum(1) - slope_of_h.sum(0)) / max(1.0, float(wins.sum()) / 4)
    found = ipo_minimiser(wins, reference, tau)
    assert total_variation(found, torch.softmax(reference.log() + s, -1)) < 1e-4


@given(st.integers(0, 999), st.floats(0.1, 2))
@quick
def test_weights_are_copies_and_rates_are_shares(seed, tau):
    pairs = torch.randint(0, 4, (6, 2), generator=dice(seed))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    reference, copies = policy_of(seed, 4), torch.randint(1, 4, (len(pairs),), generator=dice(seed))
    weighted = wins_of(pairs, 4, weight_N=copies.double())
    repeated = wins_of(pairs.repeat_interleave(copies, 0), 4)
    torch.testing.assert_close(ipo_minimiser(weighted, reference, tau), ipo_minimiser(repeated, reference, tau))
    share = torch.full((len(pairs),), 0.75, dtype=torch.float64)
    both = wins_of(torch.cat([pairs, pairs, pairs, pairs.flip(1)]), 4)
    torch.testing.assert_close(ipo_minimiser(wins_of(pairs, 4, share), reference, tau), ipo_minimiser(both, reference, tau))


@given(st.integers(0, 999), st.floats(0.1, 2))
@quick
def test_the_loss_is_zero_only_where_every_ratio_is_its_target_and_a_cycle_gives_the_reference(seed, tau):
    reference = policy_of(seed, 3)
    chain = wins_of(torch.tensor([[0, 1], [1, 2]]), 3)
    ratio = (ipo_minimiser(chain, reference, tau) / reference).log()
    torch.testing.assert_close(ratio[:2] - ratio[1:], torch.full((2,), 1 / (2 * tau), dtype=torch.float64))
    torch.testing.assert_close(ipo_minimiser(wins_of(CYCLE, 3), reference, tau), reference)


@given(st.integers(0, 999), st.floats(-9, 9))
@quick
def test_a_constant_added_to_the_logits_changes_nothing(seed, constant):
    reference, logits = policy_of(seed, 4).log(), torch.randn(4, generator=dice(seed), dtype=torch.float64, requires_grad=True)

    def loss(shift):
        ratio = torch.log_softmax(logits + shift, -1) - reference
        return ipo_loss(ratio[[0, 1, 2]] - ratio[[1, 2, 3]], torch.tensor(0.5)).sum()

    torch.testing.assert_close(loss(0.0), loss(constant))
    (gradient,) = torch.autograd.grad(loss(constant), logits)
    assert abs(float(gradient.sum())) < 1e-9


def test_bandits_trained_to_the_end_are_where_the_closed_forms_say():
    reference, pairs = policy_of(3, 3), torch.tensor([[0, 1], [1, 0], [0, 2], [1, 2]])
    wins, taus = wins_of(pairs, 3), (0.25, 1.0)
    trained = train_bandit("ipo", wins[None], reference.float(), taus, steps=500, rate=0.03, batch=None)[0].double()
    for pi, tau in zip(trained, taus, strict=True):
        assert total_variation(pi, ipo_minimiser(wins, reference, tau)) < 1e-3
    worst = {loss: float(train_bandit(loss, wins[None], reference.float(), (1.0,), steps=600, rate=0.1)[0, 0, 2]) for loss in LOSSES}
    assert worst["dpo"] < 0.01 and worst["rlhf"] < 0.02 and worst["ipo"] > 0.1 and worst["cdpo"] > worst["dpo"]


def test_batches_are_drawn_by_the_seed_alone():
    wins, before = wins_of(CYCLE, 3)[None], torch.get_rng_state()
    first, again, other = (train_bandit("ipo", wins, EVEN.float(), (0.5,), steps=20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(before, torch.get_rng_state())


def test_tables_that_mean_nothing_are_refused():
    p, some = preference_of(0, 3), torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="tau must be positive, got 0"):
        psi_po(p, EVEN, EVEN, 0.0)
    with pytest.raises(ValueError, match="mu and pi_ref have different supports"):
        psi_po(p, EVEN, some, 1.0)
    with pytest.raises(ValueError, match="mu is no distribution"):
        psi_po(p, EVEN, 2 * EVEN, 1.0)
    with pytest.raises(ValueError, match="no preference"):
        psi_po(p + 0.1 * torch.eye(3), EVEN, EVEN, 1.0)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], got 1.5"):
        wins_of(CYCLE, 3, torch.tensor([1.0, 1.5, 0]))
    with pytest.raises(ValueError, match="pair 1 compares action 2 with itself"):
        wins_of(torch.tensor([[0, 1], [2, 2]]), 3)
    with pytest.raises(ValueError, match="there are 0 to 2"):
        wins_of(torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match="an action that pi_ref never takes"):
        ipo_minimiser(wins_of(CYCLE, 3), some, 1.0)
    with pytest.raises(ValueError, match="psi is identity or logit"):
        psi_po(p, EVEN, EVEN, 1.0, "log")
    with pytest.raises(ValueError, match="loss is one of"):
        train_bandit("ppo", p[None], EVEN.float(), (1.0,))
    with pytest.raises(ValueError, match=r"tail must lie in 1..steps \(10\), got 11"):
        train_bandit("ipo", p[None], EVEN.float(), (1.0,), steps=10, tail=11)
    with pytest.raises(ValueError, match="holds no pair"):
        train_bandit("ipo", 0 * p[None], EVEN.float(), (1.0,))


# ---- losses on replies ----


def batch(seed: int = 0, pairs: int = 4, requires_grad: bool = False, **changes) -> Batch:
    values = torch.randn(4, pairs, generator=dice(seed))
    lengths = torch.randint(1, 9, (2, pairs), generator=dice(seed)).float()
    rest = dict(weight=torch.ones(pairs), rate=torch.ones(pairs)) | changes
    return Batch(values[0].requires_grad_(requires_grad), values[1].requires_grad_(requires_grad), values[2], values[3], *lengths, **rest)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_swapping_the_replies_negates_h_and_turns_the_label_round(reduction):
    one = batch(rate=torch.full((4,), 0.8))
    swapped = Batch(
        one.rejected, one.chosen, one.reference_rejected, one.reference_chosen, one.rejected_tokens, one.chosen_tokens, one.weight, 1 - one.rate
    )
    torch.testing.assert_close(psi_po_loss(0.5, reduction)(one), psi_po_loss(0.5, reduction)(swapped))
    torch.testing.assert_close(one.ratio, -swapped.ratio)


@pytest.mark.parametrize("tau", [0.1, 0.7])
def test_at_the_reference_the_gradient_is_that_of_h_over_minus_tau(tau):
    here = batch(requires_grad=True)
    here = replace(here, reference_chosen=here.chosen.detach(), reference_rejected=here.rejected.detach())
    psi_po_loss(tau, "sum")(here).sum().backward()
    torch.testing.assert_close(here.chosen.grad, torch.full((4,), -1 / tau))
    torch.testing.assert_close(here.rejected.grad, torch.full((4,), 1 / tau))


def test_labels_rates_and_weights():
    plain = batch()
    torch.testing.assert_close(psi_po_loss(0.5, "sum")(plain), ipo_loss(plain.ratio, torch.tensor(0.5)))
    torch.testing.assert_close(target_of(torch.tensor([1.0, 0.5, 0.0]), 0.5), torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(target_of(torch.tensor([1.0, 0.5]), 0.5, smoothing=0.25), torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(target_of(torch.tensor([0.8]), 0.5, "logit"), torch.tensor([math.log(4) / 0.5]))
    twice = batch(weight=torch.tensor([2.0, 1, 1, 0]))
    torch.testing.assert_close(psi_po_loss(0.5, mean_weight=1.0)(twice).mean(), psi_po_loss(0.5)(plain)[[0, 0, 1, 2]].mean())


@given(st.integers(0, 999), st.sampled_from(["identity", "logit", lambda q: (q - 0.5) ** 3]))
@quick
def test_soft_targets_average_to_the_optimum(seed, psi):
    p, mu, tau = preference_of(seed, 4), policy_of(seed + 1, 4), 0.7
    asked = target_of(p.flatten(), tau, psi).view(4, 4) * mu  # summed over y' this is what least squares makes of s - mean(s)
    best = (psi_po(p, mu, mu, tau, psi) / mu).log()
    torch.testing.assert_close(asked.sum(1) - mu @ asked.sum(1), best - mu @ best, atol=1e-6, rtol=1e-5)


def test_targets_that_do_not_exist_are_refused():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="infinite log-ratio where all annotators agree"):
        target_of(ones, 0.5, "logit")
    with pytest.raises(ValueError, match="no loss on single pairs leads to this psi"):
        target_of(ones, 0.5, lambda q: q**2)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], got -0.5"):
        target_of(-0.5 * ones, 0.5)
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 0.5\), got 0.5"):
        psi_po_loss(0.5, smoothing=0.5)
    with pytest.raises(ValueError, match="tau means nats a token under mean"):
        psi_po_loss(0.5, "median")


# ---- training ----


def rows(count: int = 6, **columns) -> Preferences:
    table = {
        "prompt": [f"question {i}? " for i in range(count)],
        "chosen": [f"short {i}" for i in range(count)],
        "rejected": [f"a longer answer {i}" for i in range(count)],
    } | columns
    return Preferences(Dataset.from_dict(table), {name: name for name in table})


def data(part: Preferences | None = None) -> Data:
    return Data(Split(part or rows()), Split(rows(4)), 0, byte_tokenizer(), Journal())


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


def test_our_mean_form_is_trl_s_ipo_on_the_same_batch(tmp_path: Path):
    pairs = encode(byte_tokenizer(), rows(), 512).pairs
    losses, gradients = [], []
    for loss in (None, psi_po_loss(TAU)):
        trainer, given_batch = batch_of(tiny_llama(2, 32), byte_tokenizer(), pairs, loss, tmp_path)
        value = trainer.compute_loss(trainer.model, given_batch)
        value.backward()
        losses.append(float(value))
        gradients.append(torch.cat([weight.grad.flatten() for weight in trainer.model.parameters() if weight.grad is not None]))
    assert abs(losses[0] - 1 / (4 * TAU**2)) > 1e-3  # the policy has left its reference
    assert abs(losses[0] - losses[1]) < 1e-6
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({}, {}),
        ({"reduction": "sum"}, {}),
        ({}, {"rate": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]}),
        ({}, {"weight": [1.0, 2, 3, 1, 2, 3]}),
        ({"psi": "logit", "smoothing": 0.1, "lora": False}, {}),
    ],
    ids=["TRL's own", "sum", "rates", "weights", "logit, all weights"],
)
def test_every_form_lowers_its_own_loss(options, columns):
    part, policy = rows(**columns), tiny_gpt2(2, 32) if options else tiny_llama(2, 32)
    given_data, method = data(part), PsiPO(rate=5e-3, epochs=3, **options)
    pairs = encode(byte_tokenizer(), part, 512).pairs
    old = score(policy, pairs)
    made = method.train(policy, given_data)
    assert not made.training and given_data.journal.chosen.startswith("tau ")
    tau = float(given_data.journal.chosen.split()[1])

    def loss(now: Scores) -> float:
        lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]).float().T
        weight, rate = (torch.tensor([getattr(pair, name) for pair in pairs]) for name in ("weight", "rate"))
        seen = Batch(now.chosen, now.rejected, old.chosen, old.rejected, *lengths, weight, rate)
        return float(method.loss(tau, part)(seen).mean())

    assert loss(score(made, pairs)) < 0.9 * loss(old)


def test_a_rate_of_one_and_a_weight_of_one_train_as_plain_labels_do():
    ones = [1.0] * 6
    plain, soft = (PsiPO(rate=3e-3).train(tiny_llama(2, 32), data(part)) for part in (rows(), rows(rate=ones, weight=ones)))
    torch.testing.assert_close(logits(plain), logits(soft), atol=1e-4, rtol=1e-3)


def test_sums_are_float32_though_the_policy_is_not():
    seen = []

    class Watching(PsiPO):
        def loss(self, tau, part):
            form = super().loss(tau, part)
            return lambda given_batch: seen.append(given_batch) or form(given_batch)

    Watching(reduction="sum", rate=1e-3, epochs=1).train(tiny_llama(2, 32).bfloat16(), data())
    assert {value.dtype for value in (seen[0].chosen, seen[0].reference_chosen)} == {torch.float32}
    torch.testing.assert_close(seen[0].chosen, seen[0].reference_chosen, atol=0.1, rtol=0.01)  # a batch of another shape rounds otherwise in bfloat16
    assert seen[0].chosen_tokens[0] == len("short 0")


# ---- what tau means ----


def test_tau_follows_from_nats_a_token_and_is_told():
    assert IPO is PsiPO
    told = {}
    for reduction in ("mean", "sum"):
        given_data = data()
        PsiPO(reduction=reduction, rate=1e-3, epochs=1).train(tiny_llama(2, 32), given_data)
        told[reduction] = given_data.journal.chosen
    assert told["mean"].startswith("tau 0.5 asks a unanimous pair for 1 nats a token")
    assert told["sum"].startswith("tau 0.0417 asks a unanimous pair for 12 nats a reply")  # 7 and 17 tokens
    assert "more than policies usually reach, take tau 0.5 to 1" in said(0.1, "mean", 5.0)
    assert "without a bound" in said(0.1, "mean", None)


def test_points_sweep_the_target_unless_tau_is_given():
    budget = Budget("seconds", math.inf, 1.0)
    assert [point.target for point in PsiPO().points(budget, tiny_llama(1, 16))] == [1.0, 0.25]
    assert PsiPO(tau=0.3).points(budget, tiny_llama(1, 16)) == [PsiPO(tau=0.3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau": float("nan")}, "tau must be positive"),
        ({"target": 0.0}, "target must be positive"),
        ({"reduction": "median"}, "reduction is mean or sum"),
        ({"psi": "log"}, "psi is identity or logit"),
        ({"psi": "logit"}, "no tau follows from a target"),
        ({"smoothing": 0.5}, "smoothing must lie in"),
        ({"rank": 0}, "with lora=False all weights are trained"),
        ({"rate": 2.0}, "rate must lie in"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
)
def test_options_outside_their_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PsiPO(**options)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"chosen": ["a", " ", "c", "d", "e", "f"]}, "row 1 has an empty chosen reply"),
        ({"chosen": ["a longer answer 0", "b", "c", "d", "e", "f"]}, "row 0 prefers a reply to itself"),
        ({"rate": [1.0, 1, 1, 1, 1, 2]}, r"rate must lie in \[0, 1\], got 2"),
        ({"weight": [1.0, 1, 1, 1, 1, -1]}, "the least is -1"),
    ],
)
def test_rows_that_are_no_preference_are_refused(columns, words):
    with pytest.raises(ValueError, match=words):
        PsiPO(rate=1e-3).train(tiny_llama(1, 16), data(rows(**columns)))


def test_chats_are_read_by_their_messages():
    chat = [[{"role": "assistant", "content": "yes"}]]
    part = Preferences(
        Dataset.from_dict({"prompt": chat, "chosen": chat, "rejected": chat}), {name: name for name in ("prompt", "chosen", "rejected")}
    )
    with pytest.raises(ValueError, match="row 0 prefers a reply to itself"):
        check_rows(part)


# ---- the diagnosis ----


def test_saturation_tells_a_policy_that_ran_away_from_one_that_stopped():
    part, tokenizer = rows(), byte_tokenizer()
    made = PsiPO(tau=0.5, rate=2e-2, epochs=8).train(tiny_llama(2, 32), data(part))
    found = saturation(part, made, tokenizer, 0.5, prompts=3, tokens=4)
    assert found.one_order == 1 and len(found.h) == 6 and set(found.target) == {1.0}
    assert found.kl > 0 and 0 < found.median < 2 and found.largest >= abs(found.median)
    assert "100% of 6 pairs were seen in one order only" in str(found)
    assert saturation(part, made, tokenizer, 50.0, prompts=3, tokens=4).beyond == 1  # far beyond a target of 0.01
    again = saturation(part, made, tokenizer, 0.5, prompts=3, tokens=4)
    assert again == found
    free = saturation(part, made, tokenizer, reduction="sum", prompts=0)
    assert free.target == () and math.isnan(free.kl) and "no target" in str(free)


def test_an_untrained_policy_has_no_distance_and_pairs_seen_both_ways_are_counted():
    policy = tiny_llama(2, 32)
    both = rows(2, prompt=["q", "q"], chosen=["one", "two"], rejected=["two", "one"])
    found = saturation(both, policy, byte_tokenizer(), 0.5, reference=policy, prompts=2, tokens=4)
    assert found.one_order == 0 and set(found.h) == {0.0} and abs(found.kl) < 1e-6
    with pytest.raises(ValueError, match="give the reference"):
        saturation(both, policy, byte_tokenizer())


def test_a_reply_is_averaged_over_its_own_tokens_end_token_included():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "!"
    pairs = encode(tokenizer, rows(1, prompt=["ask "], chosen=["ab"], rejected=["abcd"]), 512).pairs
    new, old = Scores(torch.tensor([6.0]), torch.tensor([10.0])), Scores(torch.tensor([3.0]), torch.tensor([5.0]))
    assert float(log_ratios(new, old, pairs, "mean")) == pytest.approx(3 / 3 - 5 / 5)
    assert float(log_ratios(new, old, pairs, "sum")) == pytest.approx(3 - 5)


# ---- the étude ----


def test_growth_is_read_off_whole_epochs():
    curve = [0.0, 2, 1, 3, 2, 4, 5, 5, 5, 7, 6, 8]
    assert by_epoch(curve, 6) == [1, 2, 3, 5, 6, 7] and slope(by_epoch(curve, 6)) == pytest.approx(1)


def test_the_questions_suffice_for_the_desk():
    desk = next(experiment for experiment in EXPERIMENTS if experiment.__name__ == "Short").scales["desk"]
    lines = OWN.read_text().splitlines()
    assert len(lines) == len(set(lines)) >= desk.train + desk.validation + desk.held_out
