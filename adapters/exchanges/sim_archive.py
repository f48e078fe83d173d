"""The archive of a simulated exchange: daily and monthly files, zipped CSV with a checksum beside each.

    GET /data/spot/{daily,monthly}/{klines/<SYMBOL>/<interval>,aggTrades/<SYMBOL>,trades/<SYMBOL>}/<name>.zip[.CHECKSUM]

A file is there once its last day is over on the exchange's clock. Its rows are those of REST; spot times are in
microseconds from 2025 on. The behaviour `archive` changes the files (`text` says how, see ALTERED).
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from aiohttp import web

from adapters.exchanges.sim_stage import Stage
from adapters.exchanges.sources import Rows, Source
from models.market import INTERVAL_MS

_PAGE = 100_000
_MICROSECONDS_FROM_MS = 1_735_689_600_000  # 2025-01-01
_NAME = re.compile(
    r"(?P<symbol>[A-Z0-9]+)-(?P<kind>[A-Za-z0-9]+)-(?P<date>\d{4}-\d\d(-\d\d)?)\.zip(?P<checksum>\.CHECKSUM)?"
)
_HEADERS = {
    "klines": "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore",
    "aggTrades": "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker,best_match",
    "trades": "id,price,qty,quote_qty,time,is_buyer_maker,is_best_match",
}
_TIME_COLUMNS = {"klines": (0, 6), "aggTrades": (5,), "trades": (4,)}
_QUANTITY_COLUMN = {"klines": 5, "aggTrades": 2, "trades": 2}

Table = list[list[str]]


@dataclass(frozen=True)
class _File:
    symbol: str
    kind: str  # klines, aggTrades, trades
    interval: str
    start_ms: int
    end_ms: int


class Archive:
    def __init__(self, stage: Stage, source: Source) -> None:
        self.stage, self.source = stage, source

    async def handle(self, request: web.Request) -> web.Response:
        """A file or its checksum; 404 where there is none, or not yet."""
        parts = _NAME.fullmatch(request.match_info["path"].rsplit("/", 1)[-1])
        file = _file(parts, request.match_info["path"]) if parts else None
        known = file is not None and file.symbol in {symbol["symbol"] for symbol in self.source.symbols()}
        if parts is None or file is None or not known or file.end_ms > self.stage.clock.now_ms():
            raise web.HTTPNotFound
        altered = self._altered(file.symbol)
        if "late" in altered:
            raise web.HTTPNotFound
        name = parts[0].removesuffix(".CHECKSUM")
        body = self._zipped(file, name, altered)
        if not parts["checksum"]:
            return web.Response(body=body, content_type="application/zip")
        digest = hashlib.sha256(body + b"!" if "wrong_checksum" in altered else body).hexdigest()
        return web.Response(text=f"{digest}  {name}\n")

    def _altered(self, symbol: str) -> set[str]:
        due = [on for on in self.stage.named("archive") if on.due("archive", "archive", symbol)]
        for on in due:
            self.stage.note(on, "archive", symbol)
        return {str(on.behaviour.text) for on in due}

    def _zipped(self, file: _File, name: str, altered: set[str]) -> bytes:
        table = self._table(file)
        for change, applies in _ALTERATIONS.items():
            if change in altered:
                table = applies(table, file.kind)
        if file.start_ms >= _MICROSECONDS_FROM_MS and "milliseconds" not in altered:
            for row in table:
                for column in _TIME_COLUMNS[file.kind]:
                    row[column] += "999" if file.kind == "klines" and column == 6 else "000"
        header = [_HEADERS[file.kind]] if "header" in altered else []
        text = "\n".join([*header, *(",".join(row) for row in table)]) + "\n"
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            info = zipfile.ZipInfo(name.replace(".zip", ".csv"))  # a fixed date: the same file, the same checksum
            archive.writestr(info, text, zipfile.ZIP_DEFLATED)
        return packed.getvalue()

    def _table(self, file: _File) -> Table:
        now_ms, last_ms = self.stage.clock.now_ms(), file.end_ms - 1
        if file.kind == "klines":
            rows = self.source.candles_between(file.symbol, file.interval, file.start_ms, last_ms, _PAGE, now_ms)
            return [list(map(_cell, orjson.loads(text))) for text in rows.texts]
        rows = self.source.trades_between(file.symbol, file.start_ms, last_ms, 100 * _PAGE)
        if file.kind == "trades":
            rows = self._singles(file, rows, now_ms)
        return [list(map(_cell, orjson.loads(text).values())) for text in rows.texts]

    def _singles(self, file: _File, aggregates: Rows, now_ms: int) -> Rows:
        if not len(aggregates):
            return aggregates
        first = orjson.loads(aggregates.texts[0])["f"]
        last = orjson.loads(aggregates.texts[-1])["l"]
        return self.source.singles_from(file.symbol, first, last - first + 1, now_ms)


def _file(parts: re.Match[str], path: str) -> _File | None:
    kind = "klines" if "/klines/" in f"/{path}" else parts["kind"]
    interval = parts["kind"] if kind == "klines" else ""
    if (kind == "klines" and interval not in INTERVAL_MS) or kind not in _HEADERS:
        return None
    daily = parts["date"].count("-") == 2
    try:
        start = datetime.strptime(parts["date"], "%Y-%m-%d" if daily else "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        return None
    end = start + timedelta(days=1) if daily else (start + timedelta(days=32)).replace(day=1)
    return _File(parts["symbol"], kind, interval, _ms(start), _ms(end))


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else str(value)  # booleans as True and False, as in the files


def _zero_quantity(table: Table, kind: str) -> Table:
    table[len(table) // 2][_QUANTITY_COLUMN[kind]] = "0.00000000"
    return table


_ALTERATIONS: dict[str, Callable[[Table, str], Table]] = {
    "truncated": lambda table, _: table[: len(table) // 2],
    "replaced": lambda table, _: table[: len(table) // 3] + table[len(table) // 3 + 1 :],
    "repeated_id": lambda table, _: [list(table[0]), *table],
    "zero_quantity": _zero_quantity,
}
ALTERED = (*_ALTERATIONS, "late", "wrong_checksum", "header", "milliseconds")
