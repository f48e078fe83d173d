"""What a simulated exchange can be told to show: the misbehaviour of real exchanges, one line each.

A behaviour is data (`Behaviour`), so it can be given in code, in a plan (YAML or JSON) and over HTTP while it runs:

    seed: 7                                             # of every `chance`; a plan may also be the bare list
    faults:
      - {name: short_page, endpoint: aggTrades, skip: 3, times: 2, rows: 400}
      - {name: too_many_requests, skip: 20, seconds: 1}
      - {name: drop, endpoint: depth, symbol: BTCUSDT, chance: 0.01, times: 0}
      - {name: cut, at: 1754400000000, seconds: 30}     # every connection, and nobody comes back for 30 s

`BEHAVIOURS` lists every name with what it needs and how often it shows unless told (`times`; 0 is always). `endpoint`
is a REST endpoint (aggTrades, klines, ...) or a kind of stream (aggTrade, trade, kline, depth, depth_top, bookTicker;
`ws` is every stream). The truth behind the exchange never changes (but for `crowded_millisecond`, which says so), so
a test can compare what a loader delivered with it. docs/simulated-exchange.md says which ones make which behaviour of
real exchanges.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import yaml

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
    value: Any = None
    speed: float | None = None
    conn: str = ""  # of a connection: c1 is the first one; empty: every one
    chance: float | None = None  # of showing itself where it is due
    seed: int = 0  # of its chance


# name: (what it shows, fields it needs, how often unless told)
BEHAVIOURS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "short_page": ("a page ends after `rows` rows though there are more", (), ONCE),
    "empty_page": ("[] in mid range", (), ONCE),
    "repeated_row": ("the row before the asked one comes first", (), ONCE),
    "split_millisecond": ("a page ends between two rows of the same millisecond", (), ONCE),
    "crowded_millisecond": ("`rows` trades from `at` on in one ms: a changed tape", ("symbol", "at", "rows"), ALWAYS),
    "clock": ("the exchange's clock is set to `at` and goes on at `speed`, as before unless given", ("at",), ALWAYS),
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
    "snapshot_shift": ("the order book of `offset_ms` later; negative: of before", ("offset_ms",), ONCE),
    "forgets": ("ids below `at` are gone: asked for one, it answers with the newest", ("at",), ALWAYS),
    "delisted": ("`symbol` is unknown, and its streams are silent", ("symbol",), ALWAYS),
    "renamed": ("`symbol` is called `text` now; the old name is unknown", ("symbol", "text"), ALWAYS),
    "archive": ("files of the archive are `text`: truncated, late, wrong_checksum, header, ...", ("text",), ALWAYS),
    # connections; with `at` at that time, without it now
    "refuse": ("no WebSocket connection is taken, `status` (503; 0: reset), for `seconds` or `times`", (), ALWAYS),
    "cut": ("a connection ends, code `status` (0: reset); for `seconds` nobody comes back", (), ONCE),
    "shutdown": ("serverShutdown, and the end of the connection `seconds` later", (), ONCE),
    "silence": ("connections that are open stay so, but carry nothing for `seconds`; times 0: new ones too", (), ONCE),
    "no_ping": ("the exchange's ping is not sent", (), ONCE),
    "socket_limit": ("the limit `text` (ping_s, pong_s, life_s, ...) is `value`", ("text", "value"), ALWAYS),
    "deflate": ("new connections compress their frames (permessage-deflate)", (), ALWAYS),
    "flat_errors": ("errors of control messages without the `error` around", (), ALWAYS),
    "late_answer": ("the answer to a control message comes `seconds` later, behind others", (), ONCE),
    # frames of streams
    "drop": ("a frame is lost", (), ONCE),
    "duplicate": ("a frame comes twice", (), ONCE),
    "reorder": ("a frame comes behind the next of its stream", (), ONCE),
    "delay": ("a frame comes `seconds` later, others overtake it", ("seconds",), ONCE),
    "field": ("the field `text` (p, k.c, ...) is `value`: null, a new enum value, a negative size", ("text",), ONCE),
    "unknown_event": ("an event nobody has heard of (`text`) comes first", (), ONCE),
    "fragments": ("a frame comes in `rows` (3) pieces", (), ONCE),
    "big_frame": ("a frame has a new field of `rows` (5,000,000) characters", (), ONCE),
    "crossed": ("a depth event puts a bid on the best ask; the next one takes it away", (), ONCE),
    "empty_side": ("a depth event comes as two, each with one side empty", (), ONCE),
    "whole_book": ("a depth event names every level there is", (), ONCE),
    "quiet": ("no depth event for `seconds`, then one with all that changed: not a gap", ("seconds",), ONCE),
    "late_close": ("a candle's closing frame comes `offset_ms` later", ("offset_ms",), ONCE),
    "no_close": ("a candle's closing frame never comes", (), ONCE),
    "empty_candles": ("a candle without trades sends its closing frame, f = L = -1", (), ALWAYS),
}  # fmt: skip

CHOICES = {  # what `text` may be
    "socket_limit": (
        "ping_s", "pong_s", "life_s", "messages_per_s", "connects", "connects_s", "streams", "real_pong_s",
    ),
    "archive": (
        "truncated", "replaced", "repeated_id", "zero_quantity", "late", "wrong_checksum", "header", "milliseconds",
    ),
}  # fmt: skip


def checked(behaviour: Behaviour) -> Behaviour:
    """Raises SetupRefused when the name is unknown or a field it needs is missing."""
    if behaviour.name not in BEHAVIOURS:
        raise SetupRefused(f"no behaviour is called {behaviour.name!r}; known are: {', '.join(sorted(BEHAVIOURS))}")
    _, needs, _ = BEHAVIOURS[behaviour.name]
    if missing := [name for name in needs if getattr(behaviour, name) in (None, "")]:
        raise SetupRefused(f"behaviour {behaviour.name!r} needs {', '.join(missing)}")
    choices = CHOICES.get(behaviour.name)
    if choices and behaviour.text not in choices:
        raise SetupRefused(f"{behaviour.name} {behaviour.text!r} is unknown; there are {', '.join(choices)}")
    return behaviour


class _Plan(msgspec.Struct, forbid_unknown_fields=True):
    faults: list[Behaviour]
    seed: int = 0


def read_plan(text: bytes, where: str) -> list[Behaviour]:
    """A fault plan, YAML or JSON: a list of behaviours, or `seed` and `faults`.

    Raises SetupRefused with the place of the first mistake.
    """
    try:
        content = yaml.safe_load(text)
        plan = _Plan(content) if isinstance(content, list) else msgspec.convert(content, _Plan)
        faults = msgspec.convert(plan.faults, list[Behaviour])
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise SetupRefused(f"{where} is not a list of behaviours: {error}") from error
    return [
        checked(msgspec.structs.replace(fault, seed=fault.seed or plan.seed * 1000 + i))
        for i, fault in enumerate(faults)
    ]


def read_plan_file(path: Path) -> list[Behaviour]:
    try:
        return read_plan(path.read_bytes(), str(path))
    except OSError as error:
        raise SetupRefused(f"the fault plan {path} cannot be read: {error.strerror}") from error


class Active:
    """A behaviour that is switched on, and how often it was due and shown."""

    def __init__(self, behaviour: Behaviour, now_ms: int) -> None:
        self.behaviour = behaviour
        self.until_ms = 0  # what it began lasts till then
        self.switched_on = time.monotonic()
        self._random = random.Random(behaviour.seed)
        self.since_ms = now_ms
        self.seen = 0
        self.shown = 0
        self._times = BEHAVIOURS[behaviour.name][2] if behaviour.times is None else behaviour.times

    @property
    def from_ms(self) -> int:
        """When it begins, on the exchange's clock."""
        return self.since_ms if self.behaviour.at is None else self.behaviour.at

    @property
    def always(self) -> bool:
        return self._times == ALWAYS

    def lasts(self, ms: int) -> bool:
        """Whether `ms` is behind its begin and before the end of its `seconds`; without them it has no end."""
        seconds = self.behaviour.seconds
        return self.from_ms <= ms and (not seconds or ms < self.from_ms + seconds * 1000)

    def due(self, name: str, endpoint: str, symbol: str) -> bool:
        """Whether this request is one it shows itself on; counts the request."""
        asked = self.behaviour
        if name != asked.name or asked.endpoint not in ("", endpoint) or asked.symbol not in ("", symbol):
            return False
        self.seen += 1
        if self.seen <= asked.skip or (self._times != ALWAYS and self.shown >= self._times):
            return False
        return asked.chance is None or self._random.random() < asked.chance


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
