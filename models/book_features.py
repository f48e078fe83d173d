"""What a book's best levels say, for each applied diff: best levels -> BookFeatures.features -> one row of numbers.

Only the book after this diff and the one before it are looked at, so no row knows what comes later. NaN: not known.
Prices in quote currency, sizes in base. With bid/ask the best prices and b/a their sizes:
spread = ask - bid; mid = (ask + bid) / 2; microprice = (ask b + bid a) / (b + a), the mid drawn to where less waits;
imbalance_k = (B - A) / (B + A) with B, A the sizes of the best k levels of each side.

ofi: order-flow imbalance after Cont, Kukanov and Stoikov, "The Price Impact of Order Book Events", Journal of
Financial Econometrics 12 (2014), the contribution e_n of one event: bid size that came to or left the best price less
the same of the asks, in base units. A sum of rows is the flow over their time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from models.market import Level
from models.order_book import DEPTH

IMBALANCE_DEPTHS = (1, 5, DEPTH)
FEATURES = (
    "bid", "bid_size", "ask", "ask_size", "spread", "mid", "microprice",
    *(f"imbalance_{depth}" for depth in IMBALANCE_DEPTHS), "ofi",
)  # fmt: skip
_NOTHING: Level = (math.nan, math.nan)

Levels = Sequence[Level]


class BookFeatures:
    """The features of one book; remembers the best prices of the diff before."""

    def __init__(self) -> None:
        self._before: tuple[Level, Level] | None = None

    def features(self, bids: Levels, asks: Levels, whole: tuple[bool, bool] = (True, True)) -> list[float]:
        """The numbers of FEATURES for the book after a diff; levels best first.

        `whole` of (bids, asks): fewer levels than DEPTH are all there are. The first row after `forget` has ofi 0.
        """
        bid, bid_size = bids[0] if bids else _NOTHING
        ask, ask_size = asks[0] if asks else _NOTHING
        both = bid_size + ask_size
        found = [bid, bid_size, ask, ask_size, ask - bid, (ask + bid) / 2, (ask * bid_size + bid * ask_size) / both]
        found += [imbalance(bids, asks, depth, whole) for depth in IMBALANCE_DEPTHS]
        now = ((bid, bid_size), (ask, ask_size))
        found.append(order_flow(*self._before, *now) if self._before else 0.0)
        self._before = now
        return found

    def forget(self) -> None:
        """What comes next does not follow on what was before: the book was out of sync."""
        self._before = None


def imbalance(bids: Levels, asks: Levels, depth: int, whole: tuple[bool, bool]) -> float:
    """-1 (only asks) to 1 (only bids) over the best `depth` levels of each side; NaN where they are not all known."""
    if (len(bids) < depth and not whole[0]) or (len(asks) < depth and not whole[1]):
        return math.nan
    wanted = sum([size for _, size in bids[:depth]])
    offered = sum([size for _, size in asks[:depth]])
    return (wanted - offered) / (wanted + offered) if wanted + offered else math.nan


def order_flow(bid_before: Level, ask_before: Level, bid: Level, ask: Level) -> float:
    """e_n: the net size that came to the best bid or left the best ask, base units; NaN next to an empty side."""
    if math.isnan(bid[0] + ask[0] + bid_before[0] + ask_before[0]):
        return math.nan
    return _came(bid_before, bid, 1) - _came(ask_before, ask, -1)


def _came(before: Level, now: Level, better: int) -> float:
    """Size that came to one side's best price (negative: left); `better`: the sign of a better price."""
    came = now[1] if better * now[0] >= better * before[0] else 0.0
    left = before[1] if better * now[0] <= better * before[0] else 0.0
    return came - left
