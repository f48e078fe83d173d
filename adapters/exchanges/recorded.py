"""A folder of recorded market data in the exchange's own file formats, as a source of the simulated exchange.

Reads what the public archive and its copies look like: one CSV per symbol and kind, as `.csv`, `.csv.gz` or inside
`.zip`, named `SYMBOL-<interval|aggTrades>-...`, with or without a header line, times in ms or us, klines with 12
columns, aggTrades with 7 or 8. Numbers keep the file's own decimal text. Files of 6 columns lack half of a candle:
they are listed as left out, never completed.

Promise: spot and futures (a folder called `um` in the path) are never mixed: spot is served when the folder has any
usable spot file, else `um`. Files of one stream are merged by key; where two say different things about the same
key, reading stops and names both. A stream is read when it is first asked for.
"""

from __future__ import annotations

import gzip
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from adapters.exchanges.sim_feed import Frame
from adapters.exchanges.sources import NO_ROWS, CatalogEntry, Rows
from adapters.exchanges.tape import Ints
from app.errors import SetupRefused
from models.market import INTERVAL_MS, interval_of

_NAME = re.compile(r"(?P<symbol>[A-Z0-9]+)-(?P<kind>[A-Za-z0-9]+)-.*\.(csv|csv\.gz|zip)")
_CANDLE_COLUMNS = 12
_TRADE_COLUMNS = (7, 8)  # futures files have no "best match"
_TRADE_TIME, _CANDLE_CLOSE = 5, 6
_MICROSECONDS = 100_000_000_000_000  # times from here on are microseconds
_QUOTES = ("USDT", "USDC", "FDUSD", "BUSD", "TUSD", "BTC", "ETH", "BNB", "EUR", "TRY")


@dataclass(frozen=True)
class _Stream:
    """One symbol and channel in memory: keys and times of shape (rows,), every column as the file's text."""

    keys: Ints  # trade id or open time, ms; rising
    ts_ms: Ints
    columns: list[pa.Array]

    def __len__(self) -> int:
        return len(self.keys)


class RecordedSource:
    kind = "recorded"
    seed: int | None = None

    def __init__(self, folder: Path) -> None:
        """Looks at names and first lines only. Raises SetupRefused when there is nothing to serve."""
        if not folder.is_dir():
            raise SetupRefused(f"{folder} is not a folder; give one with recorded files, e.g. BTCUSDT-5m-2025-08.zip")
        self._left_out: dict[str, str] = {}
        self._streams: dict[tuple[str, str], _Stream] = {}
        by_market: dict[str, dict[tuple[str, str], list[Path]]] = {"spot": {}, "um": {}}
        for path in sorted(folder.resolve().rglob("*.*")):
            if not path.is_file() or not path.name.endswith((".csv", ".csv.gz", ".zip")):
                continue
            channel = self._channel(path, _columns(path))
            if channel is not None:
                by_market[_market(path)].setdefault((path.name.split("-")[0], channel), []).append(path)
        self.market = "spot" if by_market["spot"] else "um"
        self._files = by_market[self.market]
        if self.market == "spot":
            for path in (path for paths in by_market["um"].values() for path in paths):
                self._left_out[str(path)] = "futures; this folder has spot files and the two are never mixed"
        if not self._files:
            raise SetupRefused(
                f"{folder} holds no klines with 12 columns and no aggTrades; left out: "
                + ("; ".join(f"{Path(name).name}: {why}" for name, why in self._left_out.items()) or "nothing")
            )

    def symbols(self) -> Sequence[dict[str, Any]]:
        return [recorded_symbol(name) for name in sorted({symbol for symbol, _ in self._files})]

    def catalog(self, now_ms: int) -> list[CatalogEntry]:
        """Reads every stream that was not read yet, one after the other, without keeping it."""
        entries = []
        for symbol, channel in sorted(self._files):
            stream = self._streams.get((symbol, channel)) or self._read(symbol, channel)
            tail_ms = 1 if channel == "trades" else INTERVAL_MS[interval_of(channel)]
            end_ms = int(stream.ts_ms[-1]) + tail_ms
            entries.append(CatalogEntry(symbol, channel, int(stream.ts_ms[0]), min(end_ms, now_ms), len(stream)))
        return entries

    def left_out(self) -> dict[str, str]:
        return dict(self._left_out)

    def trades_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        stream = self._stream(symbol, "trades")
        if stream is None:
            return NO_ROWS
        first = int(np.searchsorted(stream.keys, from_id))
        return _trade_rows(stream, first, min(first + limit, _behind(stream, now_ms)))

    def trades_between(self, symbol: str, start_ms: int, end_ms: int, limit: int) -> Rows:
        stream = self._stream(symbol, "trades")
        if stream is None:
            return NO_ROWS
        first = int(np.searchsorted(stream.ts_ms, start_ms))
        return _trade_rows(stream, first, min(first + limit, _behind(stream, end_ms)))

    def trades_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        stream = self._stream(symbol, "trades")
        if stream is None:
            return NO_ROWS
        end = _behind(stream, end_ms)
        return _trade_rows(stream, max(end - limit, 0), end)

    def candles_between(self, symbol: str, interval: str, start_ms: int, end_ms: int, limit: int, now_ms: int) -> Rows:
        stream = self._stream(symbol, f"candles_{interval}")
        if stream is None:
            return NO_ROWS
        first = int(np.searchsorted(stream.ts_ms, start_ms))
        return _candle_rows(stream, first, min(first + limit, _behind(stream, min(end_ms, now_ms))))

    def candles_until(self, symbol: str, interval: str, end_ms: int, limit: int, now_ms: int) -> Rows:
        stream = self._stream(symbol, f"candles_{interval}")
        if stream is None:
            return NO_ROWS
        end = _behind(stream, min(end_ms, now_ms))
        return _candle_rows(stream, max(end - limit, 0), end)

    def singles_from(self, symbol: str, from_id: int, limit: int, now_ms: int) -> Rows:
        return NO_ROWS  # the files hold aggregates

    def singles_until(self, symbol: str, end_ms: int, limit: int) -> Rows:
        return NO_ROWS

    def depth(self, symbol: str, limit: int, now_ms: int) -> str | None:
        return None

    def frames(self, stream: str, after_ms: int, until_ms: int) -> Sequence[Frame]:
        return ()

    def crowd(self, symbol: str, ts_ms: int, rows: int) -> None:
        raise SetupRefused("recorded trades are not rewritten: crowded_millisecond needs the generated source")

    def _channel(self, path: Path, columns: int) -> str | None:
        """The channel a file belongs to; None, with the reason noted, when it cannot be served."""
        name = _NAME.fullmatch(path.name)
        kind = name["kind"] if name else ""
        if kind == "aggTrades" and columns in _TRADE_COLUMNS:
            return "trades"
        if kind in INTERVAL_MS and columns == _CANDLE_COLUMNS:
            return f"candles_{kind}"
        if kind in INTERVAL_MS and columns == 6:
            why = "lacks columns (6 of 12), the rest would have to be invented"
        elif kind in INTERVAL_MS or kind == "aggTrades":
            why = f"has {columns} columns; klines have 12, aggTrades 7 or 8"
        else:
            why = "its name is not SYMBOL-<interval|aggTrades>-..."
        self._left_out[str(path)] = why
        return None

    def _stream(self, symbol: str, channel: str) -> _Stream | None:
        key = (symbol, channel)
        if key not in self._streams and key in self._files:
            self._streams[key] = self._read(symbol, channel)
        return self._streams.get(key)

    def _read(self, symbol: str, channel: str) -> _Stream:
        paths = self._files[symbol, channel]
        tables = [_table(path) for path in paths]
        width = min(table.num_columns for table in tables)  # "best match" is dropped where some files lack it
        columns = [pa.concat_arrays([c for t in tables for c in t.column(i).chunks]) for i in range(width)]
        times = (_TRADE_TIME,) if channel == "trades" else (0, _CANDLE_CLOSE)
        for i in times:
            milliseconds = _integers(columns[i], symbol, channel)
            milliseconds = np.where(milliseconds >= _MICROSECONDS, milliseconds // 1000, milliseconds)
            columns[i] = pa.array(milliseconds).cast(pa.string())
        keys = _integers(columns[0], symbol, channel)
        files = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
        order = np.argsort(keys, kind="stable")
        repeats = np.flatnonzero(np.diff(keys[order]) == 0)
        for repeat in repeats.tolist():
            one, other = int(order[repeat]), int(order[repeat + 1])
            if any(column[one] != column[other] for column in columns):
                raise SetupRefused(
                    f"{symbol} {channel}: {paths[files[one]]} and {paths[files[other]]} say different things about "
                    f"{keys[one]}; remove one of them"
                )
        kept = np.delete(order, repeats + 1)
        columns = [column.take(pa.array(kept)) for column in columns]
        ts_ms = keys[kept] if channel != "trades" else _integers(columns[_TRADE_TIME], symbol, channel)
        return _Stream(keys[kept], ts_ms, columns)


def _behind(stream: _Stream, ts_ms: int) -> int:
    """Number of rows up to and including `ts_ms`."""
    return int(np.searchsorted(stream.ts_ms, ts_ms, side="right"))


def _trade_rows(stream: _Stream, start: int, end: int) -> Rows:
    if end <= start:
        return NO_ROWS
    columns = [column.slice(start, end - start).to_pylist() for column in stream.columns]
    maker = ["true" if text.lower() == "true" else "false" for text in columns[6]]
    best = [""] * len(maker)
    if len(columns) > 7:
        best = [',"M":true' if text.lower() == "true" else ',"M":false' for text in columns[7]]
    texts = [
        f'{{"a":{a},"p":"{p}","q":"{q}","f":{f},"l":{l},"T":{t},"m":{m}{b}}}'
        for a, p, q, f, l, t, m, b in zip(*columns[:6], maker, best, strict=True)  # noqa: E741 - the exchange's letter
    ]
    return Rows(stream.keys[start:end].tolist(), stream.ts_ms[start:end].tolist(), texts)


def _candle_rows(stream: _Stream, start: int, end: int) -> Rows:
    if end <= start:
        return NO_ROWS
    columns = [column.slice(start, end - start).to_pylist() for column in stream.columns]
    texts = [
        f'[{t},"{o}","{h}","{low}","{c}","{v}",{close},"{qv}",{n},"{tb}","{tq}","{x}"]'
        for t, o, h, low, c, v, close, qv, n, tb, tq, x in zip(*columns, strict=True)
    ]
    return Rows(stream.keys[start:end].tolist(), stream.ts_ms[start:end].tolist(), texts)


def _market(path: Path) -> str:
    return "um" if "um" in path.parts else "spot"


def _opened(path: Path) -> io.BufferedIOBase | Any:
    """The CSV's bytes. Raises SetupRefused when the archive is damaged or holds no CSV."""
    try:
        if path.suffix == ".zip":
            archive = zipfile.ZipFile(path)
            names = [name for name in archive.namelist() if name.endswith(".csv")]
            if len(names) != 1:
                raise SetupRefused(f"{path} holds {len(names)} CSV files, not one; unpack it or leave it out")
            return archive.open(names[0])
        return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    except (OSError, zipfile.BadZipFile) as error:
        raise SetupRefused(f"{path} cannot be read ({error}); fetch it again or leave it out") from error


def _columns(path: Path) -> int:
    with _opened(path) as file:
        return len(file.readline().split(b","))


def _table(path: Path) -> pa.Table:
    """Every column as text; a header line is one whose first cell is no number."""
    with _opened(path) as file:
        content = file.read()
    first = content[: content.find(b"\n")].split(b",")
    has_header = not first[0].strip().isdigit()
    names = [str(i) for i in range(len(first))]
    try:
        return pa_csv.read_csv(
            io.BytesIO(content),
            read_options=pa_csv.ReadOptions(column_names=names, skip_rows=int(has_header)),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as error:
        raise SetupRefused(f"{path} is no CSV of one shape ({error}); fetch it again or leave it out") from error


def _integers(column: pa.Array, symbol: str, channel: str) -> Ints:
    try:
        return np.asarray(column.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise SetupRefused(f"{symbol} {channel}: a time or id is no whole number ({error})") from error


def recorded_symbol(name: str) -> dict[str, Any]:
    """What is known of a recorded symbol; the files say nothing about its filters."""
    quote = next((quote for quote in _QUOTES if name.endswith(quote) and name != quote), "")
    return {
        "symbol": name,
        "baseAsset": name.removesuffix(quote),
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "isSpotTradingAllowed": True,
        "filters": [],
        "permissions": [],
        "permissionSets": [["SPOT"]],
    }
