"""Query parameters: what is read, and what is refused with which name."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import CommandRejected
from app.web.parameters import END_OF_TIME_MS, Parameters, read_interval, read_symbol

ALLOWED = ("start", "end", "limit")


def field_of(query: dict[str, str]) -> str:
    """The field a call with this query is refused for."""
    try:
        read(query)
    except CommandRejected as refused:
        return refused.field
    return "none"


def read(query: dict[str, str]) -> tuple[int, int, int]:
    parameters = Parameters(query, *ALLOWED)
    return (*parameters.range_ms(), parameters.whole("limit", 10, 1, 100))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limt": "5"}, "limt"),
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "five"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "1e2"}, "limit"),
        ({"limit": "٣"}, "limit"),
        ({"limit": "9" * 400}, "limit"),
        ({"start": "yesterday"}, "start"),
        ({"start": "-5"}, "start"),
        ({"end": "2025-13-01"}, "end"),
        ({"start": "2000", "end": "2000"}, "end"),
        ({"start": "2025-08-02", "end": "2025-08-01"}, "end"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_refused_by_its_name(query: dict[str, str], field: str) -> None:
    assert field_of(query) == field


def test_what_is_not_said_means_all_time_and_the_default() -> None:
    query = Parameters({}, *ALLOWED)
    assert query.range_ms() == (0, END_OF_TIME_MS)
    assert query.whole("limit", 7, 1, 100) == 7


@given(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)))  # noqa: DTZ001 -- hypothesis wants naive bounds
def test_a_moment_is_the_same_in_milliseconds_and_as_iso_text(moment: datetime) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
    ms = round(moment.timestamp() * 1000)
    for text in (str(ms), moment.isoformat(), moment.replace(tzinfo=None).isoformat()):
        assert Parameters({"start": text}, "start").range_ms()[0] == ms


@given(st.dictionaries(st.sampled_from(ALLOWED), st.text(max_size=30)))
def test_no_text_raises_anything_but_a_refusal(query: dict[str, str]) -> None:
    if (field := field_of(query)) == "none":
        start, end, limit = read(query)
        assert 0 <= start < end
        assert 1 <= limit <= 100
    else:
        assert field in ALLOWED


@pytest.mark.parametrize("symbol", ["btcusdt", "BTC/USDT", "", "B" * 21, "BTC USDT", "BTCUSDT\n"])
def test_what_is_no_symbol_is_refused(symbol: str) -> None:
    with pytest.raises(CommandRejected) as refused:
        read_symbol(symbol)
    assert refused.value.field == "symbol"


def test_an_unknown_interval_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CommandRejected, match="1m, 3m, 5m"):
        read_interval("7m")
