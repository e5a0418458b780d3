"""Tables of operator facts."""

from __future__ import annotations

import pytest

from converter.ops.table import Entry, Table


def test_finds_by_domain_operator_and_opset() -> None:
    table = Table(
        "t", [Entry("Relu", "old", until=12), Entry("Relu", "new", since=13), Entry("A", "x", "d")]
    )
    assert table.find("", "Relu", 12) == "old"
    assert table.find("", "Relu", 13) == "new"
    assert table.find("d", "A", 1) == "x"
    assert len(table) == 3


def test_both_names_of_the_default_domain_are_one() -> None:
    table = Table("t", [Entry("Relu", 1)])
    assert table.find("ai.onnx", "Relu", 17) == table.find("", "Relu", 17) == 1


def test_unknown_operators_have_no_row() -> None:
    table = Table("t", [Entry("Relu", 1, since=6)])
    assert table.find("", "Tanh", 17) is None
    assert table.find("com.other", "Relu", 17) is None
    assert table.find("", "Relu", 5) is None


def test_overlapping_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows"):
        Table("t", [Entry("Relu", 1, until=9), Entry("Relu", 2, since=9)])


def test_iterates_in_a_fixed_order() -> None:
    entries = [Entry("B", 1, since=5), Entry("A", 2), Entry("B", 3, until=4)]
    assert [e.row for e in Table("t", entries)] == [2, 3, 1]
