"""The one store of every contender: rows -> SQLite through apsw's executemany, so that only the framework differs.

One transaction a call, WAL, synchronous NORMAL; a row written again replaces itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw

Trade = tuple[str, int, int, float, float, int]  # symbol, id, ts, price, size, maker
Candle = tuple[
    str, str, int, float, float, float, float, float, int
]  # symbol, interval, ts, o, h, l, c, volume, trades

SCHEMA = """
CREATE TABLE IF NOT EXISTS trades(
    symbol TEXT, id INTEGER, ts INTEGER, price REAL, size REAL, maker INTEGER, PRIMARY KEY(symbol, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS candles(
    symbol TEXT, interval TEXT, ts INTEGER, open REAL, high REAL, low REAL, close REAL, volume REAL, trades INTEGER,
    PRIMARY KEY(symbol, interval, ts)
) WITHOUT ROWID;
"""


def open(path: str) -> apsw.Connection:  # noqa: A001 - read as `store.open`
    connection = apsw.Connection(path)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "normal")
    connection.execute(SCHEMA)
    return connection


def put_trades(connection: apsw.Connection, rows: Iterable[Trade]) -> None:
    with connection:
        connection.executemany("INSERT OR REPLACE INTO trades VALUES (?, ?, ?, ?, ?, ?)", rows)


def put_candles(connection: apsw.Connection, rows: Iterable[Candle]) -> None:
    with connection:
        connection.executemany("INSERT OR REPLACE INTO candles VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
