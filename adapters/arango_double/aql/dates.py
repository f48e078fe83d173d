"""The functions DATE_*: a date is a number of milliseconds since 1970 or an ISO 8601 string, in UTC."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from adapters.arango_double.errors import not_implemented

if TYPE_CHECKING:
    from adapters.arango_double.aql.run import Run

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# In milliseconds, by the name of the unit.
_UNITS = {
    "w": 604_800_000, "week": 604_800_000, "d": 86_400_000, "day": 86_400_000, "h": 3_600_000, "hour": 3_600_000,
    "i": 60_000, "minute": 60_000, "s": 1000, "second": 1000, "f": 1, "millisecond": 1,
}  # fmt: skip
_DURATION = re.compile(r"P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


def milliseconds(value: Any) -> int | None:
    """Since 1970; None for what is no date."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return int(value)
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return round((found.replace(tzinfo=found.tzinfo or UTC) - _EPOCH) / timedelta(milliseconds=1))


def duration_ms(told: Any) -> float | None:
    """Of an ISO 8601 duration without years and months, whose length is not fixed."""
    match = _DURATION.fullmatch(told) if isinstance(told, str) and told not in ("P", "PT") else None
    if match is None:
        return None
    weeks, days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((weeks * 7 + days) * 24 + hours) * 3_600_000 + minutes * 60_000 + seconds * 1000


def iso(ms: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def _check_zone(zone: Any) -> None:
    if zone not in (None, "UTC", "Etc/UTC"):
        raise not_implemented("time zones other than UTC")


def _of_date(part: Callable[[int], Any]) -> Callable[..., Any]:
    def function(run: Run, value: Any, zone: Any = None) -> Any:
        _check_zone(zone)
        ms = milliseconds(value)
        if ms is None:
            run.warn(1542, "invalid date value")
            return None
        return part(ms)

    return function


def _moment(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _truncated(run: Run, value: Any, unit: Any, zone: Any = None) -> str | None:
    _check_zone(zone)
    long = {"y": "year", "years": "year", "m": "month", "months": "month"}.get(str(unit).lower(), str(unit).lower())
    if long in ("year", "month") and (known := milliseconds(value)) is not None:
        moment = _moment(known)
        return f"{moment.year:04d}-{moment.month if long == 'month' else 1:02d}-01T00:00:00.000Z"
    ms, step = milliseconds(value), _UNITS.get(str(unit).lower().rstrip("s") or "s")
    if ms is None or step is None or step > _UNITS["day"]:
        run.warn(1542, "invalid date value")
        return None
    return iso(ms - ms % step)


def _moved(sign: int) -> Callable[..., Any]:
    def function(run: Run, value: Any, amount: Any, unit: Any = None, zone: Any = None) -> str | None:
        _check_zone(zone)
        ms = milliseconds(value)
        by = duration_ms(amount) if unit is None else amount * _UNITS.get(str(unit).lower().rstrip("s") or "s", 0)
        if ms is None or not by:
            run.warn(1542, "invalid date value")
            return None
        return iso(round(ms + sign * by))

    return function


def _difference(run: Run, first: Any, second: Any, unit: Any, as_float: Any = False, zone: Any = None) -> Any:
    _check_zone(as_float if isinstance(as_float, str) else zone)
    low, high, step = milliseconds(first), milliseconds(second), _UNITS.get(str(unit).lower().rstrip("s") or "s")
    if low is None or high is None or step is None:
        run.warn(1542, "invalid date value")
        return None
    return (high - low) / step if as_float else int((high - low) / step)


FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "DATE_NOW": (0, 0, lambda run: int(run.server.now() * 1000)),
    "DATE_TIMESTAMP": (1, 2, _of_date(lambda ms: ms)),
    "DATE_ISO8601": (1, 2, _of_date(iso)),
    "DATE_YEAR": (1, 2, _of_date(lambda ms: _moment(ms).year)),
    "DATE_MONTH": (1, 2, _of_date(lambda ms: _moment(ms).month)),
    "DATE_DAY": (1, 2, _of_date(lambda ms: _moment(ms).day)),
    "DATE_HOUR": (1, 2, _of_date(lambda ms: _moment(ms).hour)),
    "DATE_MINUTE": (1, 2, _of_date(lambda ms: _moment(ms).minute)),
    "DATE_SECOND": (1, 2, _of_date(lambda ms: _moment(ms).second)),
    "DATE_MILLISECOND": (1, 2, _of_date(lambda ms: ms % 1000)),
    "DATE_DAYOFWEEK": (1, 2, _of_date(lambda ms: _moment(ms).isoweekday() % 7)),
    "DATE_TRUNC": (2, 3, _truncated),
    "DATE_ADD": (2, 4, _moved(1)),
    "DATE_SUBTRACT": (2, 4, _moved(-1)),
    "DATE_DIFF": (3, 6, _difference),
}
