"""Candles in the making, by `venue:symbol`; written by fold_candles only."""

from app.config import settings
from models.folding import Folding
from tables.rows import Rows

candles_by_symbol: Rows[Folding] = Rows(
    "candles_by_symbol", Folding, partitions=settings().partitions, help="Candles in the making, from trades"
)
