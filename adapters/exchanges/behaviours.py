"""What a simulated exchange can be told to show: the misbehaviour of real exchanges, one line each.

A behaviour is data (`Behaviour`), so it can be given in code, in a JSON plan and over HTTP while the exchange runs:

    [{"name": "short_page", "endpoint": "aggTrades", "skip": 3, "times": 2, "rows": 400},
     {"name": "too_many_requests", "skip": 20, "seconds": 1},
     {"name": "lacks", "endpoint": "klines", "start_ms": 1754300000000, "end_ms": 1754310000000}]

`BEHAVIOURS` lists every name with what it needs and how often it shows unless told (`times`; 0 is always).
The truth behind the exchange never changes (but for `crowded_millisecond`, which says so), so a test can compare
what a loader delivered with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson

from adapters.exchanges.sources import Rows
from app.errors import SetupRefused
from models.market import Span

ALWAYS, ONCE = 0, 1


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`name` of BEHAVIOURS; where and how often; and the numbers it needs."""

    name: str
    endpoint: str = ""  # aggTrades, klines, ...; empty: every one the behaviour makes sense for
    symbol: str = ""  # empty: every one
    skip: int = 0  # matching requests that are answered well before it starts
    times: int | None = None  # how often it shows; 0: always; None: as in BEHAVIOURS
    at: int | None = None  # trade id or open time of a row, or the time a clock is set to (ms)
    start_ms: int | None = None
    end_ms: int | None = None
    rows: int | None = None
    seconds: float | None = None
    offset_ms: int | None = None
    status: int | None = None
    weight: int | None = None
    text: str | None = None


# name: (what it shows, fields it needs, how often unless told)
BEHAVIOURS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "short_page": ("a page ends after `rows` rows though there are more", (), ONCE),
    "empty_page": ("[] in mid range", (), ONCE),
    "repeated_row": ("the row before the asked one comes first", (), ONCE),
    "split_millisecond": ("a page ends between two rows of the same millisecond", (), ONCE),
    "crowded_millisecond": ("`rows` trades from `at` on in one ms: a changed tape", ("symbol", "at", "rows"), ALWAYS),
    "clock": ("the exchange's clock is set to `at`, so the newest candle is in the making there", ("at",), ALWAYS),
    "clock_skew": ("the exchange's clock is `offset_ms` ahead of ours", ("offset_ms",), ALWAYS),
    "early_close": ("the candle that opens at `at` closes after `offset_ms`", ("at", "offset_ms"), ALWAYS),
    "unaligned": ("candles in [start_ms, end_ms) open `offset_ms` late", ("start_ms", "end_ms", "offset_ms"), ALWAYS),
    "lacks": ("rows in [start_ms, end_ms) do not exist", ("start_ms", "end_ms"), ALWAYS),
    "bad_row": ("the row with id or open time `at` has a price that is no number", ("at",), ALWAYS),
    "microseconds": ("times in microseconds", (), ALWAYS),
    "extra_fields": ("fields nobody has heard of, and the optional ones missing", (), ALWAYS),
    "too_many_requests": ("429 with Retry-After `seconds`", (), ONCE),
    "banned": ("418 with Retry-After `seconds`, and the same until it is over", (), ONCE),
    "weight_jump": ("another process of this address used `weight`", ("weight",), ONCE),
    "limits": ("request weight is limited to `weight` per `seconds`", ("weight",), ALWAYS),
    "symbol_status": ("`symbol` has the status `text`", ("symbol", "text"), ALWAYS),
    "html": ("`status` (403) with a page for people", (), ONCE),
    "empty_error": ("`status` (500) without a body", (), ONCE),
    "error_code": ("`status` (400) with the exchange's error `at` (-1007)", (), ONCE),
    "cut_json": ("200, and the body ends in the middle", (), ONCE),
    "slow": ("the answer takes `seconds`", ("seconds",), ONCE),
    "reset": ("the connection is reset", (), ONCE),
    "down": ("nothing but `status` (503; 0: the connection is closed) for `seconds`", ("seconds",), ALWAYS),
}  # fmt: skip


def checked(behaviour: Behaviour) -> Behaviour:
    """Raises SetupRefused when the name is unknown or a field it needs is missing."""
    if behaviour.name not in BEHAVIOURS:
        raise SetupRefused(f"no behaviour is called {behaviour.name!r}; known are: {', '.join(sorted(BEHAVIOURS))}")
    _, needs, _ = BEHAVIOURS[behaviour.name]
    if missing := [name for name in needs if getattr(behaviour, name) in (None, "")]:
        raise SetupRefused(f"behaviour {behaviour.name!r} needs {', '.join(missing)}")
    return behaviour


def read_plan(text: bytes, where: str) -> list[Behaviour]:
    """A JSON list of behaviours. Raises SetupRefused with the place of the first mistake."""
    try:
        return [checked(behaviour) for behaviour in msgspec.json.decode(text, type=list[Behaviour])]
    except msgspec.DecodeError as error:
        raise SetupRefused(f"{where} is not a list of behaviours: {error}") from error


def read_plan_file(path: Path) -> list[Behaviour]:
    try:
        return read_plan(path.read_bytes(), str(path))
    except OSError as error:
        raise SetupRefused(f"the fault plan {path} cannot be read: {error.strerror}") from error


class Active:
    """A behaviour that is switched on, and how often it was due and shown."""

    def __init__(self, behaviour: Behaviour, now_ms: int) -> None:
        self.behaviour = behaviour
        self.since_ms = now_ms
        self.seen = 0
        self.shown = 0
        self._times = BEHAVIOURS[behaviour.name][2] if behaviour.times is None else behaviour.times

    def due(self, name: str, endpoint: str, symbol: str) -> bool:
        """Whether this request is one it shows itself on; counts the request."""
        asked = self.behaviour
        if name != asked.name or asked.endpoint not in ("", endpoint) or asked.symbol not in ("", symbol):
            return False
        self.seen += 1
        return self.seen > asked.skip and (self._times == ALWAYS or self.shown < self._times)


def lacked(actives: Sequence[Active], endpoint: str, symbol: str) -> list[Span]:
    """The ranges that `lacks` takes from this answer."""
    due = [active for active in actives if active.due("lacks", endpoint, symbol)]
    for active in due:
        active.shown += 1
    return [(active.behaviour.start_ms or 0, active.behaviour.end_ms or 0) for active in due]


def without(rows: Rows, spans: Sequence[Span]) -> Rows:
    if not spans:
        return rows
    return rows.take(i for i, ts in enumerate(rows.ts_ms) if not any(start <= ts < end for start, end in spans))


def shorten(rows: Rows, behaviour: Behaviour) -> Rows:
    return rows.take(range(min(behaviour.rows or len(rows) // 2, len(rows))))


def split_millisecond(rows: Rows) -> Rows | None:
    """Cut inside the last millisecond group that has more than one row; None when there is none."""
    cuts = (i for i in range(len(rows) - 1, 0, -1) if rows.ts_ms[i] == rows.ts_ms[i - 1])
    cut = next(cuts, None)
    return None if cut is None else rows.take(range(cut))


def alter(rows: Rows, behaviour: Behaviour, endpoint: str) -> Rows:
    """Rows whose content is not what the source has; the keys stay as they are."""
    change = _ALTERATIONS[behaviour.name]
    texts = list(rows.texts)
    for i in _touched(rows, behaviour):
        row = orjson.loads(texts[i])
        texts[i] = orjson.dumps(change(row, behaviour, endpoint == "klines")).decode()
    return Rows(rows.keys, rows.ts_ms, texts)


def open_late(rows: Rows, behaviour: Behaviour, last_ms: int) -> Rows:
    """Candles off the grid; what opens behind `last_ms` then is no answer any more."""
    late = alter(rows, behaviour, "klines")
    shifted, offset_ms = set(_touched(rows, behaviour)), behaviour.offset_ms or 0
    return late.take(i for i, key in enumerate(rows.keys) if i not in shifted or key + offset_ms <= last_ms)


def _touched(rows: Rows, behaviour: Behaviour) -> Sequence[int]:
    if behaviour.name in ("bad_row", "early_close"):
        return [i for i, key in enumerate(rows.keys) if key == behaviour.at]
    start_ms, end_ms = behaviour.start_ms, behaviour.end_ms
    if start_ms is None or end_ms is None:
        return range(len(rows))
    return [i for i, ts in enumerate(rows.ts_ms) if start_ms <= ts < end_ms]


def _bad_row(row: Any, _behaviour: Behaviour, candle: bool) -> Any:
    row[1 if candle else "p"] = "not a number"
    return row


def _early_close(row: Any, behaviour: Behaviour, _candle: bool) -> Any:
    return [*row[:6], row[0] + (behaviour.offset_ms or 0), *row[7:]]


def _unaligned(row: Any, behaviour: Behaviour, _candle: bool) -> Any:
    offset_ms = behaviour.offset_ms or 0
    return [row[0] + offset_ms, *row[1:6], row[6] + offset_ms, *row[7:]]


def _microseconds(row: Any, _behaviour: Behaviour, candle: bool) -> Any:
    if candle:
        return [row[0] * 1000, *row[1:6], row[6] * 1000 + 999, *row[7:]]
    return {**row, "T": row["T"] * 1000 + 417}


def _extra_fields(row: Any, _behaviour: Behaviour, candle: bool) -> Any:
    if candle:
        return [*row, "12.5", {"new": None}]
    return {"st": 1, "nq": "0.1", **{name: value for name, value in row.items() if name != "M"}, "x": [1, "two"]}


_ALTERATIONS = {
    "bad_row": _bad_row,
    "early_close": _early_close,
    "unaligned": _unaligned,
    "microseconds": _microseconds,
    "extra_fields": _extra_fields,
}
ALTERATIONS = tuple(name for name in _ALTERATIONS if name != "unaligned")
