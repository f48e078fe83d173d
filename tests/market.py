"""A market that a test drives: batches and books as the agents make them, left for a running worker's topics."""

from __future__ import annotations

import threading
import time

import numpy as np

from models.market import Batch, BookState, BookUpdate, encode_batch, encode_book_update, pack_columns
from tests.processes import Broker

BEAT_S = 0.2
HISTORY_MS = 3 * 3_600_000


class Market:
    """One symbol, seeded. Started, it puts trades and a book on the topics five times a second, until it is cut."""

    def __init__(self, broker: Broker, symbol: str = "ETHUSDT", venue: str = "binance") -> None:
        self._broker, self._symbol, self._venue = broker, symbol, venue
        self._random = np.random.default_rng(5)
        self._id, self._price, self._until_ms = 1_000, 4_300.0, self._now_ms()
        self._running = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def history(self, trades: int = 3_000) -> None:
        """Three hours up to now, as a load would have brought them."""
        times = np.sort(self._random.integers(self._until_ms - HISTORY_MS, self._until_ms, trades))
        for part in np.array_split(times, 10):
            self._put_trades(part, source="history")

    def start(self) -> None:
        self._thread.start()
        self.restore()

    def cut(self) -> None:
        """Nothing comes any more, as when the connection is gone; the exchange trades on."""
        self._running.clear()

    def restore(self) -> None:
        self._running.set()

    def close(self) -> None:
        self._over.set()
        self._running.set()
        self._thread.join(5)

    def trade(self, count: int = 4, source: str = "live") -> range:
        """So many trades since the last ones; gives their ids."""
        since, now = self._until_ms, self._now_ms()
        self._put_trades(np.sort(self._random.integers(since, max(now, since + 1), count)), source)
        return range(self._id - count, self._id)

    def lose(self, count: int) -> Batch:
        """Trades that do not come live; the batch that a repair would bring."""
        return self._batch(np.full(count, self._until_ms), "history")

    def put(self, batch: Batch) -> None:
        self._leave("market.trades", encode_batch(batch))

    def show_book(self, state: BookState = "live") -> None:
        steps = np.cumsum(self._random.exponential(0.03, 20)) + 0.01
        sizes = self._random.exponential(4, (2, 20)) + 0.01
        bids, asks = (
            tuple((round(price, 2), round(size, 4)) for price, size in zip(prices.tolist(), side, strict=True))
            for prices, side in zip((self._price - steps, self._price + steps), sizes.tolist(), strict=True)
        )
        features = {"microprice": self._price, "ofi": self._random.normal(0, 3)}
        update = BookUpdate(
            venue=self._venue, symbol=self._symbol, source="live", run="test", ts_receipt_ms=self._now_ms(),
            state=state, ts_ms=self._now_ms(), update_id=self._id, bids=bids if state == "live" else (),
            asks=asks if state == "live" else (),
            columns={name: np.array([value], "<f8").tobytes() for name, value in features.items()},
        )  # fmt: skip
        self._leave("market.books", encode_book_update(update))

    def _beat(self) -> None:
        while not self._over.is_set():
            self._running.wait()
            self.trade()
            self.show_book()
            self._over.wait(BEAT_S)

    def _put_trades(self, times: np.ndarray, source: str) -> None:
        self.put(self._batch(times, source))

    def _batch(self, times: np.ndarray, source: str) -> Batch:
        moves = self._random.normal(0, 0.4, len(times))
        prices = np.round(self._price + np.cumsum(moves), 2)
        sizes = np.round(self._random.exponential(0.8, len(times)) + 0.001, 4)
        columns = {
            "id": np.arange(self._id, self._id + len(times)), "ts_ms": times, "price": prices, "size": sizes,
            "quote_size": prices * sizes, "buyer_is_maker": moves < 0, "trades": np.ones(len(times), "<i8"),
        }  # fmt: skip
        covers = (min(self._until_ms, int(times[0])), int(times[-1]) + 1)
        self._id, self._price, self._until_ms = self._id + len(times), float(prices[-1]), covers[1]
        return Batch(
            venue=self._venue, symbol=self._symbol, channel="trades", source=source, run="test",
            ts_receipt_ms=self._now_ms(), covers=covers, columns=pack_columns("trades", columns),
        )  # fmt: skip

    def _leave(self, topic: str, value: bytes) -> None:
        self._broker.leave(topic, value, f"{self._venue}:{self._symbol}".encode())

    @staticmethod
    def _now_ms() -> int:
        return round(1000 * time.time())
