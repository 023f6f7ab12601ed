"""The counts that come with the package are those of a count, and are read without torch."""

import pytest
from one_of_each import one_of_each

from attneck.commands import counted
from attneck.commands.counted import Asked, counts_of, row_of, to_be_kept
from attneck.measure.kept import kept, read_rows
from attneck.models import catalog

PUBLISHED = [
    Asked(name, {}, entry.image_size, entry.num_classes)
    for name, entry in catalog.CATALOG.items()
    if entry.task == "classification"
]


def test_kept_is_what_is_to_be_kept():
    rows = [Asked(row["model"], row["options"], row["image_size"], row["num_classes"]) for row in read_rows()]
    assert rows == to_be_kept(), "run: make counts"


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kinds", "all"])
def test_a_network_counts_as_is_kept(every):
    """But the classifiers as published, which `test_counts.py` counts."""
    rows = [(Asked(*map(row.get, Asked._fields)), row) for row in read_rows()]
    others = [(asked, row) for asked, row in rows if asked not in PUBLISHED]
    assert len(others) > 80
    kinds = one_of_each(others, lambda other: catalog.find(other[0].model, other[0].options).options)
    assert len(kinds) > 10
    for asked, row in others if every else kinds:
        assert row_of(asked, counted.counted(asked)) == row, "run: make counts"


def test_what_is_not_kept_is_counted(monkeypatch):
    """Another size, other classes, another option; and an option's default is the network itself."""
    options = catalog.find("cifar_resnet20_bam").options
    assert kept(options, 32, 100) == counts_of(Asked("cifar_resnet20_bam", {"bam_dilation": 4}, 32, 100))
    others = [
        Asked("cifar_resnet20_bam", {}, 40, 100),
        Asked("cifar_resnet20_bam", {}, 32, 10),
        Asked("cifar_resnet20_bam", {"bam_dilation": 2}, 32, 100),
    ]
    called = []
    monkeypatch.setattr(counted, "counted", lambda asked: called.append(asked) or "now")
    assert [counts_of(asked) for asked in others] == ["now"] * 3
    assert called == others
