"""Rows as an aligned table."""

from externalresource.cli.tables import table

ROWS = [{"index": 0, "name": "A10"}, {"index": 10, "unusable": "lost", "name": None}]


def test_columns_are_aligned_and_end_without_blanks() -> None:
    assert table(ROWS) == (["INDEX  NAME  UNUSABLE", "0      A10   -", "10     -     lost"], [])


def test_heading_is_the_key_in_words() -> None:
    assert table([{"memory.total": 1, "numa_node": 2}])[0][0] == "MEMORY TOTAL  NUMA NODE"


def test_cell_is_one_line_and_commands_no_terminal() -> None:
    assert table([{"program": "a\nb\x1b[2J\x9b\u202e"}])[0] == ["PROGRAM", "a?b?[2J??"]


def test_column_stands_as_far_to_the_left_as_in_any_row() -> None:
    assert table([{"a": 1, "b": 2, "c": 3}, {"a": 1, "z": 9}])[0][0] == "A  B  Z  C"


def test_columns_for_which_there_is_no_room_are_named() -> None:
    assert table(ROWS, room=21)[1] == []
    assert table(ROWS, room=20) == (["INDEX  NAME", "0      A10", "10     -"], ["UNUSABLE"])
    assert table(ROWS, room=1)[1] == ["NAME", "UNUSABLE"]
