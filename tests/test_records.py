"""A record behaves as a frozen, slotted dataclass does."""

import pickle

import pytest

from externalresource.records import record, replace


@record
class Point:
    x: int
    y: int = 0

    @property
    def both(self) -> tuple[int, int]:
        return self.x, self.y


@record
class Pixel:
    x: int
    y: int = 0


def test_values_come_by_place_by_name_or_by_default() -> None:
    assert Point(1, 2).both == Point(x=1, y=2).both == (1, 2)
    assert Point(1).both == (1, 0)


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1}), ((), {"y": 1})]
)
def test_wrong_values_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*values, **named)


def test_records_are_equal_if_kind_and_values_are() -> None:
    assert Point(1) == Point(1, 0)
    assert hash(Point(1)) == hash(Point(1, 0))
    assert Point(1) != Point(2)
    pixel: object = Pixel(1)
    assert Point(1) != pixel


def test_record_stays_as_it_is() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        Point(1).x = 2  # type: ignore[misc] # the type checker knows it as well
    with pytest.raises(AttributeError, match="frozen"):
        del Point(1).x
    assert not hasattr(Point(1), "__dict__")


def test_record_is_shown_and_pickled_and_changed_into_another() -> None:
    assert repr(Point(1)) == "Point(x=1, y=0)"
    assert pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2)
    assert replace(Point(1, 2), y=3) == Point(1, 3)


def test_record_can_be_matched_by_place() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)
