"""The études at their smallest: of the papers that the code at hand has changed since their record, and of a tenth that turns day by day.

`ETUDE_SMOKE=all` plays every one.
"""

import json
import os
from datetime import date

import pytest

from etude import catalogue
from etude.harness.play import play
from etude.harness.verify import fresh

PLAYABLE = sorted(e.name for e in catalogue.entries().values() if e.source == "paper" and (e.path.parent / "experiment.py").is_file())


def due(name: str) -> bool:
    if os.environ.get("ETUDE_SMOKE") == "all" or PLAYABLE.index(name) % 10 == date.today().toordinal() % 10:
        return True
    record = catalogue.find(name).path.parent / "desk.json"
    return not record.is_file() or not fresh(json.loads(record.read_text()))


@pytest.mark.parametrize("name", PLAYABLE)
def test_every_part_of_the_etude_runs(name: str) -> None:
    if not due(name):
        pytest.skip("nothing that it rests on has changed since its record, and it is not its day")
    (found,) = play([name], "smoke", jobs=1, fresh=True)
    assert found["failures"] == [] and all(experiment["runs"] for experiment in found["experiments"].values())
