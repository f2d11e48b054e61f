"""The power law recovers itself; its intervals hold it."""

import numpy as np
import pytest

from etude.study._synthetic import isoflop_table
from etude.study.baselines.power_law import PowerLaw


def test_a_power_law_is_recovered():
    table = isoflop_table(budgets=5, sizes=5)
    table["loss"] = 30 * table["parameters"] ** -0.07 * table["tokens"] ** -0.05
    law = PowerLaw(bootstrap=30).fit(table)
    assert law.parameters == pytest.approx({"K": 30, "p": 0.07, "q": 0.05}, rel=1e-6)
    np.testing.assert_allclose(law.predict(table["parameters"], table["tokens"]), table["loss"], rtol=1e-9)


def test_an_outlier_moves_it_little():
    table = isoflop_table(budgets=5, sizes=5)
    table["loss"] = 30 * table["parameters"] ** -0.07 * table["tokens"] ** -0.05
    table["loss"][7] *= 3
    assert PowerLaw(bootstrap=0).fit(table).parameters["p"] == pytest.approx(0.07, rel=1e-3)


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"bootstrap": -1}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PowerLaw(**options)
