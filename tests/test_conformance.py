"""The conformance suite over whatever the catalogue finds."""

import pytest

from etude import catalogue
from etude.harness.check import conformance

COMPETING = [(entry, family) for entry in catalogue.entries().values() for family in entry.enters if family in catalogue.with_contests()]


@pytest.mark.parametrize(("entry", "family"), COMPETING, ids=lambda value: getattr(value, "name", value))
def test_conformance(entry, family):
    assert conformance(entry, catalogue.contest(family)) == []


def test_every_folder_is_one_of_the_100_papers():
    papers = {paper.name: paper for paper in catalogue.papers()}
    for entry in catalogue.entries().values():
        if entry.source == "paper":
            assert entry.paper == papers[entry.name].id and entry.family == papers[entry.name].family
