"""Do the Chinchilla fit's 95 % intervals hold what they promise? 50 synthetic tables of 72 runs with 1 % noise, 200 bootstrap draws each.

    python scripts/coverage_chinchilla.py [--tables 50] [--draws 200] [--noise 0.01]

Exits with 1 unless the intervals of alpha and of beta cover the truth in at least 86 % of the tables (43 of 50).
"""

from __future__ import annotations

import argparse
import sys

from etude.study._synthetic import CONSTANTS, isoflop_table
from etude.study.chinchilla import Chinchilla


def main() -> int:
    """Print how often each constant was covered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=50)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.01)
    options = parser.parse_args()
    truth = {**CONSTANTS, "a": CONSTANTS["beta"] / (CONSTANTS["alpha"] + CONSTANTS["beta"])}
    covered = dict.fromkeys(truth, 0)
    for seed in range(options.tables):
        law = Chinchilla(bootstrap=options.draws, seed=seed).fit(isoflop_table(noise=options.noise, seed=seed))
        spans = {**law.interval(), "a": law.exponents()["a"][1:]}
        for name, (low, high) in spans.items():
            covered[name] += low <= truth[name] <= high
    for name, count in covered.items():
        print(f"{name:5} = {truth[name]:<8.4g} covered in {count} of {options.tables} tables")
    return 0 if min(covered["alpha"], covered["beta"]) >= 0.86 * options.tables else 1


if __name__ == "__main__":
    sys.exit(main())
