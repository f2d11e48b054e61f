"""Variable projection against the paper's grid of 4500 starts, and against the PyPI package `chinchilla`: seconds and the optimum reached.

    python -m etude.study.chinchilla.benchmark [--data runs.csv] [--drop 5] [--every 1] [--peer PYTHON]

Without --data it runs on a synthetic table of the paper's size. `--peer` is the interpreter of an environment of its own that has `chinchilla`
installed (it pins other libraries); it gets a grid of 243 starts around the answer and its own log-Huber loss, whose threshold of 1 makes it least
squares: its optimum is another one, only its seconds compare. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter

from etude.study._runs import Runs, read
from etude.study._synthetic import csv_text, isoflop_table
from etude.study.chinchilla.parametric import NAMES, Fit, bootstrap, fit_grid, fit_projection, objective

PEER = """
import json, sys, tempfile, time, warnings
import pandas as pd
warnings.filterwarnings("ignore")
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
folder = tempfile.mkdtemp()
frame = pd.read_csv(sys.argv[1])
pd.DataFrame({"C": frame.compute, "N": frame.parameters, "D": frame.tokens, "loss": frame.loss}).to_csv(folder + "/df.csv", index=False)
grid = dict(E=[1.0, 1.7, 2.5], A=[50, 500, 5000], B=[50, 500, 5000], alpha=[0.2, 0.4, 0.6], beta=[0.2, 0.4, 0.6])
peer = Chinchilla(folder, param_grid=grid, seed_ranges=dict(C=(1e18, 1e19), N_to_D=(1, 100)), loss_fn=log_huber, scaling_factor=2.0, log_level=40)
start = time.perf_counter()
peer.fit(parallel=False)
print(json.dumps({"seconds": time.perf_counter() - start, **{k: float(v) for k, v in peer.get_params().items()}}))
"""


def main() -> None:
    """Print a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--drop", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="follow each n-th of the 4500 starts only")
    parser.add_argument("--peer", help="a Python that has the package chinchilla")
    options = parser.parse_args()
    runs = runs_of(options.data).without_highest_losses(options.drop)
    print(f"{len(runs)} runs")
    fast, seconds = timed(lambda: fit_projection(runs))
    show("variable projection", seconds, fast.objective, fast)
    _, spent = timed(lambda: bootstrap(runs, fast, 1000, 0))
    print(f"  1000 bootstrap draws: {spent:.2f} s")
    grid, slow = timed(lambda: fit_grid(runs, every=options.every))
    show(f"grid of {grid.starts} starts", slow, grid.objective, grid)
    print(f"  {grid.share:.0%} of its starts reached the optimum; objectives differ by {grid.objective / fast.objective - 1:.1e} of their size")
    print(f"variable projection is {slow / seconds:.0f} times faster than the grid")
    if options.peer:
        answer = peer(options.peer, runs)
        found = {name: answer[name] for name in NAMES}
        print(f"PyPI chinchilla, 243 starts: {answer['seconds']:.2f} s, objective {objective(found, runs):.9g}, {words(found)}")
        print(f"variable projection is {answer['seconds'] / seconds:.0f} times faster than the package")


def timed(make):
    """What `make` returns, and its seconds: the shorter of two calls where they are short."""
    start = perf_counter()
    value = make()
    first = perf_counter() - start
    if first > 5:
        return value, first
    start = perf_counter()
    make()
    return value, min(first, perf_counter() - start)


def runs_of(path: str | None) -> Runs:
    """The runs of a CSV file, or a synthetic table of 243."""
    if path is None:
        return read(isoflop_table(budgets=9, sizes=27))
    import pandas

    return read(pandas.read_csv(path))


def peer(python: str, runs: Runs) -> dict[str, float]:
    """Seconds and constants of the package, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "runs.csv"
        table.write_text(csv_text({name: getattr(runs, name) for name in ("parameters", "tokens", "loss", "compute")}))
        done = subprocess.run([python, "-c", PEER, str(table)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(title: str, seconds: float, value: float, fit: Fit) -> None:
    """One line of the table."""
    print(f"{title}: {seconds:.2f} s, objective {value:.9g}, {words(fit.constants)}")


def words(constants: dict[str, float]) -> str:
    """The constants in a line."""
    return ", ".join(f"{name} {constants[name]:.4g}" for name in NAMES)


if __name__ == "__main__":
    main()
