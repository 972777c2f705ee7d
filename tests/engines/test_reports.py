"""What judges the reports of operators can find fault with them."""

from pathlib import Path

from observer import doubles

from .reports import Report, last, lives, read, told

FIRST = Report(when=1, reporter=10, task_manager=10, devices="0,1", mask="unset")


def write(folder: Path, name: str, *reports: Report, more: str = "") -> None:
    (folder / name).write_text("".join(" ".join(map(str, report)) + "\n" for report in reports) + more)


def test_device_that_two_task_managers_report_in_turn_is_in_two_hands() -> None:
    second = Report(when=2, reporter=11, task_manager=11, devices="1,2", mask="unset")
    [double] = doubles(lives([FIRST, second, FIRST._replace(when=3)], killed={10: 4}))
    assert (double.device, double.answered) == (1, 2)


def test_device_that_is_reported_by_one_after_the_other_is_not() -> None:
    second = FIRST._replace(task_manager=11)
    assert doubles(lives([FIRST._replace(when=when) for when in (1, 2)] + [second._replace(when=3)], killed={})) == []


def test_worker_that_outlives_its_task_manager_holds_nothing() -> None:
    second = FIRST._replace(when=3, task_manager=11)
    assert doubles(lives([FIRST, second, FIRST._replace(when=4)], killed={10: 2})) == []


def test_line_that_is_not_whole_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, "java-1", FIRST, FIRST._replace(when=2), more="3 10 10 0")
    assert read(tmp_path, "java") == [FIRST, FIRST._replace(when=2)]


def test_last_report_of_each_operator_of_a_kind_is_found_in_files_of_any_length(tmp_path: Path) -> None:
    for number, count in enumerate((0, 1, 2, 1000)):
        write(tmp_path, f"java-{number}", *[FIRST._replace(when=when, reporter=number) for when in range(count)])
    write(tmp_path, "stream-1", FIRST)
    assert sorted((report.reporter, report.when) for report in last(tmp_path, "java")) == [(1, 0), (2, 1), (3, 999)]


def test_what_several_operators_are_told_is_counted_once() -> None:
    assert told([FIRST, FIRST._replace(when=2, reporter=12)]) == [(10, "0,1", "unset")]
