"""Records to and from tables."""

import pytest

from moecap.records import RoutingRecord
from moecap.schema import ROUTING, ROWS_AT_A_TIME, Rows, table_of

RECORDS = [
    RoutingRecord(
        pass_id=index, layer=0, counts=(index, 1), distinct=2, distinct_physical=2,
        token_experts=((0, 1), (1, index)) if index % 2 else None,
    )
    for index in range(ROWS_AT_A_TIME + 3)
]  # fmt: skip


def test_rows_are_the_records_that_the_table_was_made_of() -> None:
    rows = Rows(table_of(ROUTING, RECORDS), RoutingRecord)
    assert len(rows) == len(RECORDS)
    assert list(rows) == RECORDS
    assert rows[5] == RECORDS[5] and rows[-1] == RECORDS[-1]
    assert list(rows[1020:1030:3]) == RECORDS[1020:1030:3]
    with pytest.raises(IndexError):
        rows[len(RECORDS)]


def test_rows_go_into_a_table_as_they_are() -> None:
    table = table_of(ROUTING, RECORDS)
    again = table_of(ROUTING, Rows(table, RoutingRecord))
    assert again.equals(table)
    address = again["counts"].chunk(0).values.buffers()[1].address
    assert address == table["counts"].chunk(0).values.buffers()[1].address  # not copied
