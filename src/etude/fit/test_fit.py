"""The training loop resumes to the last bit, and tuning gives everyone the same number of trials."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.fit.loop import Recipe, by_shape, fit
from etude.fit.tune import climb


def small():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.LayerNorm(8), nn.Linear(8, 3))


def loss_on(model):
    def loss_of(step):
        dice = torch.Generator().manual_seed(step)
        x_BI = torch.randn(5, 6, generator=dice)
        return nn.functional.cross_entropy(model(x_BI), x_BI[:, :3].argmax(1))

    return loss_of


def trained(recipe, folder=None, loss_of=None):
    model = small()
    return model, fit(model, loss_of or loss_on(model), recipe, 3, checkpoints=folder)


def test_it_learns_and_leaves_mode_and_dice_alone():
    torch.manual_seed(5)
    before, model = torch.get_rng_state(), small().eval()
    losses = fit(model, loss_on(model), Recipe(120, 1e-2), 0)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20]) and not model.training
    assert torch.equal(before, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())


@settings(max_examples=8, deadline=None)
@given(stop=st.integers(1, 23), every=st.integers(1, 7))
def test_a_run_that_was_interrupted_ends_where_the_undisturbed_one_does(stop, every, tmp_path_factory):
    folder, recipe = tmp_path_factory.mktemp("run"), Recipe(24, 1e-2, decay=0.1, every=every)
    model, losses = trained(recipe)
    broken = small()
    good, asked = loss_on(broken), list[int]()

    def breaks(step):
        if step == stop:
            raise KeyboardInterrupt
        return good(step)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, breaks, recipe, 3, checkpoints=folder)
    again = small()

    def counted(step):
        asked.append(step)
        return loss_on(again)(step)

    assert fit(again, counted, recipe, 3, checkpoints=folder) == losses
    assert asked[0] == stop - stop % every
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_stays(tmp_path):
    model = small()

    def poisoned(step):
        return loss_on(model)(step) * (math.nan if step == 7 else 1.0)

    with pytest.raises(ValueError, match=r"the loss is nan at step 8 of 20 \(rate 0.01\)"):
        fit(model, poisoned, Recipe(20, 1e-2, every=5), 3, checkpoints=tmp_path)
    assert len(fit(model, loss_on(model), Recipe(20, 1e-2, every=5), 3, checkpoints=tmp_path)) == 20


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_fit import loss_on, small
from etude.fit.loop import Recipe, fit
model = small()
def slow(step):
    time.sleep(0.01)
    return loss_on(model)(step)
print(repr(fit(model, slow, Recipe(40, 1e-2, every=4), 3, checkpoints=Path(sys.argv[1]))[-1]))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    expected = trained(Recipe(40, 1e-2, every=4))[1][-1]
    command = [sys.executable, "-c", CHILD, str(tmp_path), os.path.dirname(__file__)]
    for wait in (0.05, 0.15):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "last").is_dir() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("hurt", ["missing", "other"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_its_path(hurt, tmp_path):
    trained(Recipe(4, 1e-2, every=2), tmp_path)
    if hurt == "missing":
        (tmp_path / "last" / "state.safetensors").write_bytes(b"torn")
    other = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=r"last"):
        fit(other, loss_on(other), Recipe(4, 1e-2), 3, checkpoints=tmp_path)


def test_the_rate_rises_and_falls():
    recipe = Recipe(100, 1.0, warmup=0.1, final=0.1)
    assert recipe.factor(0) == pytest.approx(0.1) and recipe.factor(10) == 1.0 and recipe.factor(99) == pytest.approx(0.1)
    assert Recipe(100, 1.0, schedule="constant").factor(99) == 1.0 and Recipe(1, 1.0).factor(0) == 1.0
    assert Recipe(11, 1.0, warmup=0, schedule="linear").factor(5) == pytest.approx(0.5)


def test_only_matrices_decay():
    groups = by_shape(small().parameters(), 0.1)
    assert {(p.ndim, group["weight_decay"]) for group in groups for p in group["params"]} == {(2, 0.1), (1, 0.0)}


@pytest.mark.parametrize("options", [{"steps": 0}, {"rate": 0.0}, {"rate": math.nan}, {"every": 0}])
def test_a_recipe_refuses_what_cannot_be(options):
    with pytest.raises(ValueError, match=r"at least 1|above 0"):
        Recipe(**{"steps": 1, "rate": 1.0} | options)


def test_nothing_to_train_is_refused():
    model = small().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is to be trained"):
        fit(model, loss_on(model), Recipe(1, 1e-2), 0)


@settings(max_examples=60, deadline=None)
@given(best=st.floats(-3, 3), trials=st.integers(1, 9))
def test_everyone_gets_the_same_number_of_trials_and_the_range_follows_the_optimum(best, trials):
    found = climb(1.0, lambda rate: (math.log(rate) / math.log(3.0) - best) ** 2, trials)
    assert len(found.tried) == len({rate for rate, _ in found.tried}) == trials
    assert found.rate == min(found.tried, key=lambda pair: pair[1])[0]
    if trials >= 2 + 2 * abs(best):
        assert not found.edge or trials < 3
        assert abs(math.log(found.rate) / math.log(3.0) - best) <= 0.51


def test_an_optimum_at_the_edge_is_said():
    found = climb(1e-3, lambda rate: -rate, 4)
    assert found.edge and found.rate == pytest.approx(27e-3) and "undertuned" in found.words()


def test_diverged_trials_lose_and_if_all_diverge_it_says_so():
    assert climb(1.0, lambda rate: math.nan if rate > 1 else rate, 4).rate < 1
    with pytest.raises(ValueError, match="none of 3 trials"):
        climb(1.0, lambda rate: math.nan, 3)
