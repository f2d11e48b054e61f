"""Kaplan's law recovers itself; its derivatives are right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from etude.study._synthetic import isoflop_table
from etude.study.baselines.kaplan import Kaplan, bracket


def test_kaplans_own_constants_are_recovered():
    table = isoflop_table(budgets=6, sizes=6)
    table["loss"] = ((8.8e13 / table["parameters"]) ** (0.076 / 0.095) + 5.4e13 / table["tokens"]) ** 0.095
    law = Kaplan(bootstrap=0).fit(table)
    assert law.parameters["q"] == pytest.approx(0.095, rel=1e-3) and law.parameters["s"] == pytest.approx(0.8, rel=1e-3)
    np.testing.assert_allclose(law.predict(table["parameters"], table["tokens"]), table["loss"], rtol=1e-6)


@given(st.lists(st.floats(0.1, 2), min_size=4, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_derivatives_equal_finite_differences(theta, seed):
    dice = np.random.default_rng(seed)
    model, theta, psi = bracket(dice.normal(size=6), dice.normal(size=6)), np.array(theta), dice.normal(size=(1, 6))
    _, jacobian, curvature = model(theta[None])
    np.testing.assert_allclose(psi[0] @ jacobian[0], approx_fprime(theta, lambda t: float(psi[0] @ model(t[None])[0][0]), 1e-6), atol=1e-4)
    np.testing.assert_allclose(curvature(psi)[0], approx_fprime(theta, lambda t: psi[0] @ model(t[None])[1][0], 1e-6), atol=1e-4)


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"bootstrap": -1}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Kaplan(**options)
