"""What goes wrong with the frames of one connection: frames in, what is sent instead out.

    (ts_ms, stream, text), ... --> Faults.passed --> Out, ...

A fault is a `Behaviour` whose `endpoint` is the kind of stream (aggTrade, trade, kline, depth, depth_top, bookTicker),
whose `symbol` is the symbol and whose `conn` is the connection's name; empty ones match all. With `start_ms` or
`end_ms` only frames sent in that time count.
"""

from __future__ import annotations

import heapq
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import orjson

from adapters.exchanges.behaviours import Active
from adapters.exchanges.sim_feed import StreamName, stream_name
from adapters.exchanges.sim_stage import Stage
from adapters.exchanges.sources import Source

Event = dict[str, Any]

_TIMES = ("E", "T", "t")  # of an event or of its candle
_ID = re.compile(r'"[tau]":([0-9]+)')
_SHARED = ("extra_fields", "microseconds", "cut_json")  # with REST: meant for frames when they name a stream


@dataclass(frozen=True)
class Out:
    """A frame as it is sent: the bare event, and in how many pieces."""

    stream: str
    text: str
    fragments: int = 1


class Cut(Exception):
    """This connection ends: without a word (code 0) or closed, with a serverShutdown `after_s` before or without."""

    def __init__(self, code: int, *, farewell: bool = False, after_s: float = 0.0) -> None:
        super().__init__(f"cut with code {code}")
        self.code, self.farewell, self.after_s = code, farewell, after_s


class Faults:
    def __init__(self, stage: Stage, source: Source, conn: str) -> None:
        self._stage, self._source, self._conn = stage, source, conn
        self._opened, self._since_ms = time.monotonic(), stage.clock.now_ms()
        self._held: list[tuple[int, int, Out]] = []  # (ms to send it at, number, frame)
        self._number = count()
        self._behind: dict[str, Out] = {}  # stream: a frame that follows the next one
        self._quiet: dict[str, tuple[int, list[Event]]] = {}  # stream: (until ms, depth events held back)
        self._crossing: dict[str, str] = {}  # stream: price of the bid that crossed

    def passed(self, frames: Sequence[tuple[int, str, str]], now_ms: int) -> Iterator[Out]:
        """What is sent of `frames` at `now_ms`. Raises Cut where the connection ends."""
        self._end_if_due(now_ms)
        for ts_ms, stream, text in frames:
            yield from self._released(ts_ms)
            if self._stage.active or self._quiet or self._behind or self._crossing:
                yield from self._one(ts_ms, stream, text)
            else:
                yield Out(stream, text)
        yield from self._released(now_ms)

    def _end_if_due(self, now_ms: int) -> None:
        """Cuts and shutdowns of whole connections: those that are open when it begins."""
        for name in ("cut", "shutdown"):
            for on in self._stage.named(name):
                told = on.behaviour
                if told.endpoint in ("", "ws") and not told.symbol and not told.skip and self._meets(on, now_ms):
                    self._cut(on, now_ms, "ws", "")

    def _meets(self, on: Active, now_ms: int) -> bool:
        """Whether this connection was open when `on` began."""
        told = on.behaviour
        if told.conn not in ("", self._conn):
            return False
        if told.at is None:
            return self._opened < on.switched_on
        return self._since_ms < told.at <= now_ms

    def _cut(self, on: Active, now_ms: int, kind: str, symbol: str) -> None:
        told = on.behaviour
        self._stage.note(on, kind, symbol, conn=self._conn)
        if told.name == "shutdown":
            raise Cut(told.status or 1001, farewell=True, after_s=told.seconds or 0)
        on.until_ms = now_ms + int((told.seconds or 0) * 1000)
        raise Cut(told.status or 0)

    def _released(self, ms: int) -> Iterator[Out]:
        while self._held and self._held[0][0] <= ms:
            yield heapq.heappop(self._held)[2]

    def _one(self, ts_ms: int, stream: str, text: str) -> Iterator[Out]:
        name = stream_name(stream)
        if name is None or self._is_silent(ts_ms, name, text):
            return
        for ending in ("cut", "shutdown"):
            on = self._due(ending, ts_ms, name)
            if on is not None:
                self._cut(on, ts_ms, name.kind, name.symbol)
        if name.kind == "depth" and (self._quiet or any(self._stage.named("quiet"))):
            event = self._gathered(ts_ms, stream, name, text)
            if event is None:
                return
            text = _dumped(event)
        if self._shows("drop", ts_ms, name, text) or (
            '"x":true' in text and self._shows("no_close", ts_ms, name, text)
        ):
            return
        outs = [Out(stream, changed) for changed in self._changed(ts_ms, stream, name, text)]
        if self._shows("duplicate", ts_ms, name, text):
            outs += outs
        if (on := self._due("fragments", ts_ms, name)) is not None:
            self._note(on, name, text)
            outs = [replace(out, fragments=on.behaviour.rows or 3) for out in outs]
        yield from self._ordered(ts_ms, stream, name, outs)

    def _ordered(self, ts_ms: int, stream: str, name: StreamName, outs: list[Out]) -> Iterator[Out]:
        """Now, later, or behind the next frame of the stream."""
        late_ms = self._late_ms(ts_ms, name, outs)
        if late_ms:
            for out in outs:
                heapq.heappush(self._held, (ts_ms + late_ms, next(self._number), out))
            return
        behind = self._behind.pop(stream, None)
        if behind is None and outs and self._shows("reorder", ts_ms, name, outs[-1].text):
            self._behind[stream] = outs.pop()
        yield from outs
        if behind is not None:
            yield behind

    def _late_ms(self, ts_ms: int, name: StreamName, outs: Sequence[Out]) -> int:
        if not outs:
            return 0
        if (on := self._due("delay", ts_ms, name)) is not None:
            self._note(on, name, outs[0].text)
            return int((on.behaviour.seconds or 0) * 1000)
        if '"x":true' in outs[0].text and (on := self._due("late_close", ts_ms, name)) is not None:
            self._note(on, name, outs[0].text)
            return on.behaviour.offset_ms or 0
        return 0

    def _is_silent(self, ts_ms: int, name: StreamName, text: str) -> bool:
        for on in self._stage.named("silence"):
            told = on.behaviour
            meets = (
                told.endpoint in ("", "ws", name.kind)
                and told.symbol in ("", name.symbol)
                and told.conn in ("", self._conn)
                and (on.always or self._meets(on, max(ts_ms, on.from_ms)))
            )
            if meets and on.lasts(ts_ms):
                self._note(on, name, text)
                return True
        return False

    def _gathered(self, ts_ms: int, stream: str, name: StreamName, text: str) -> Event | None:
        """One event out of all that were held back; None while they are."""
        if stream not in self._quiet:
            on = self._due("quiet", ts_ms, name)
            if on is None:
                return _loaded(text)
            self._note(on, name, text)
            self._quiet[stream] = (ts_ms + int((on.behaviour.seconds or 0) * 1000), [])
        until_ms, events = self._quiet[stream]
        events.append(_loaded(text))
        if ts_ms < until_ms:
            return None
        del self._quiet[stream]
        return _joined(events)

    def _changed(self, ts_ms: int, stream: str, name: StreamName, text: str) -> list[str]:
        """The frame, or what comes in its place."""
        events = None
        if (price := self._crossing.pop(stream, None)) is not None:
            events = [_uncrossed(_loaded(text), price)]
        for change, applies in _CHANGES.items():
            on = self._due(change, ts_ms, name)
            if on is None:
                continue
            self._note(on, name, text)
            events = [new for event in events or [_loaded(text)] for new in applies(self, on, event, stream, ts_ms)]
        texts = [text] if events is None else [_dumped(event) for event in events]
        if self._shows("cut_json", ts_ms, name, text):
            texts = [cut[: len(cut) // 2] for cut in texts]
        return texts

    def _due(self, fault: str, ts_ms: int, name: StreamName) -> Active | None:
        for on in self._stage.named(fault):
            told = on.behaviour
            kind = "ws" if told.endpoint == "ws" else name.kind
            named = (fault not in _SHARED or told.endpoint != "") and (fault not in _OF_DEPTH or name.kind == "depth")
            timed = (told.start_ms or 0) <= ts_ms and (told.end_ms is None or ts_ms < told.end_ms)
            whole = fault in ("cut", "shutdown") and told.endpoint in ("", "ws") and not told.symbol and not told.skip
            if named and timed and not whole and told.conn in ("", self._conn) and on.due(fault, kind, name.symbol):
                return on
        return None

    def _shows(self, fault: str, ts_ms: int, name: StreamName, text: str) -> bool:
        on = self._due(fault, ts_ms, name)
        if on is not None:
            self._note(on, name, text)
        return on is not None

    def _note(self, on: Active, name: StreamName, text: str) -> None:
        found = _ID.search(text)
        number = int(found[1]) if found else None
        self._stage.note(on, name.kind, name.symbol, conn=self._conn, id=number)

    # -- changes of an event -----------------------------------------------------------------------------------

    def _set_field(self, on: Active, event: Event, _stream: str, _ts_ms: int) -> list[Event]:
        """A frame without the part that the field lies in stays as it is."""
        *path, last = str(on.behaviour.text).split(".")
        part: Any = event
        for step in path:
            part = part.get(step) if isinstance(part, dict) else None
        if isinstance(part, dict):
            part[last] = on.behaviour.value
        return [event]

    def _extra_fields(self, _on: Active, event: Event, _stream: str, _ts_ms: int) -> list[Event]:
        """New ones, in another order, and the optional one missing."""
        turned = {name: event[name] for name in reversed(event) if name != "M"}
        return [{"st": 1, "nq": "0.1", **turned, "new": [None, {"deep": "two"}]}]

    def _microseconds(self, _on: Active, event: Event, _stream: str, _ts_ms: int) -> list[Event]:
        return [_in_microseconds(event)]

    def _unknown_event(self, on: Active, event: Event, _stream: str, ts_ms: int) -> list[Event]:
        return [{"e": on.behaviour.text or "referencePrice", "E": ts_ms, "s": event.get("s"), "r": None}, event]

    def _big_frame(self, on: Active, event: Event, _stream: str, _ts_ms: int) -> list[Event]:
        return [{**event, "pad": "x" * (on.behaviour.rows or 5_000_000)}]

    def _crossed(self, _on: Active, event: Event, stream: str, ts_ms: int) -> list[Event]:
        price = self._levels(stream, 1, ts_ms)["asks"][0][0]
        self._crossing[stream] = price
        bids = [[price, "1.00000000"], *(level for level in event["b"] if level[0] != price)]
        return [{**event, "b": sorted(bids, key=lambda level: -float(level[0]))}]

    def _empty_side(self, _on: Active, event: Event, _stream: str, _ts_ms: int) -> list[Event]:
        middle = event["U"]  # a book must not care what the ids between are for
        return [{**event, "u": middle, "a": []}, {**event, "U": middle + 1, "b": []}]

    def _whole_book(self, _on: Active, event: Event, stream: str, ts_ms: int) -> list[Event]:
        levels = self._levels(stream, 5000, ts_ms)
        sides = {name: {**dict(event[name]), **dict(levels[whole])} for name, whole in (("b", "bids"), ("a", "asks"))}
        return [{**event, **{name: _sorted(name, side) for name, side in sides.items()}}]

    def _levels(self, stream: str, limit: int, ts_ms: int) -> Any:
        name = stream_name(stream)
        body = self._source.depth(self._stage.source_name(name.symbol if name else ""), limit, ts_ms)
        return orjson.loads(body or '{"bids":[["0","0"]],"asks":[["0","0"]]}')


_OF_DEPTH = ("crossed", "empty_side", "whole_book", "quiet")
_CHANGES: dict[str, Callable[[Faults, Active, Event, str, int], list[Event]]] = {
    "whole_book": Faults._whole_book,
    "crossed": Faults._crossed,
    "empty_side": Faults._empty_side,
    "field": Faults._set_field,
    "extra_fields": Faults._extra_fields,
    "microseconds": Faults._microseconds,
    "big_frame": Faults._big_frame,
    "unknown_event": Faults._unknown_event,
}


def _loaded(text: str) -> Event:
    event: Event = orjson.loads(text)
    return event


def _dumped(event: Event) -> str:
    """orjson knows no whole numbers above 64 bits."""
    return json.dumps(event, separators=(",", ":"))


def _joined(events: Sequence[Event]) -> Event:
    """Successive depth events as one: of each level the last quantity."""
    sides = {name: {price: size for event in events for price, size in event[name]} for name in ("b", "a")}
    return {
        **events[-1],
        **{name: events[0][name] for name in ("U", "pu") if name in events[0]},
        **{name: _sorted(name, side) for name, side in sides.items()},
    }


def _sorted(name: str, side: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(side.items(), key=lambda level: float(level[0]), reverse=name == "b")


def _uncrossed(event: Event, price: str) -> Event:
    if any(level[0] == price for level in event["b"]):
        return event
    bids = dict(event["b"]) | {price: "0.00000000"}
    return {**event, "b": _sorted("b", bids)}


def in_microseconds(text: str) -> str:
    return _dumped(_in_microseconds(_loaded(text)))


def _in_microseconds(event: Event) -> Event:
    """Times only: `t` of a trade is an id, `T` of its event a time."""
    changed = {name: value * 1000 if name in ("E", "T") else value for name, value in event.items()}
    if isinstance(candle := event.get("k"), dict):
        changed["k"] = {name: value * 1000 if name in _TIMES else value for name, value in candle.items()}
    return changed


def fragmented(payload: bytes, pieces: int) -> bytes:
    """One text message as that many unmasked WebSocket frames."""
    size = -(-len(payload) // pieces)
    parts = [payload[start : start + size] for start in range(0, len(payload), size)]
    return b"".join(_frame(part, opcode=0 if i else 1, last=i == len(parts) - 1) for i, part in enumerate(parts))


def _frame(part: bytes, *, opcode: int, last: bool) -> bytes:
    head = bytes([opcode | (0x80 if last else 0)])
    if len(part) < 126:
        return head + bytes([len(part)]) + part
    if len(part) < 1 << 16:
        return head + b"\x7e" + len(part).to_bytes(2, "big") + part
    return head + b"\x7f" + len(part).to_bytes(8, "big") + part
