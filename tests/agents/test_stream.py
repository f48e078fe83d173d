"""A live stream's task: frames in order of id, holes first, and what cannot be had is said to lack."""

from __future__ import annotations

import pytest

from tests.streams import at, following


async def test_frames_go_on_in_messages_that_join(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(*range(1, 30))
        await case.until(lambda: len(case.ids) == 29)
        await case.say(*range(30, 50))
        await case.until(lambda: len(case.ids) == 49)
        assert case.ids == list(range(1, 50))
        assert case.ledger.stored == [(at(1) + 1, at(49))]


async def test_frames_in_another_order_and_twice_need_no_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1)
        await case.until(lambda: case.ids == [1] and case.rest.asked)
        asked = case.rest.asked
        await case.say(3, 2, 2, 3, 5, 4, 4)
        await case.until(lambda: len(case.ids) == 5)
        assert (case.ids, case.rest.asked) == ([1, 2, 3, 4, 5], asked)


async def test_a_silent_stream_is_asked_about_over_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch, stream_silent_s=20.0, connection_silent_s=1e9) as case:
        await case.say(1)
        await case.until(lambda: case.ids == [1])
        case.rest.newest = 40  # traded, and the stream does not say so
        await case.until(lambda: case.ids == list(range(1, 41)), step_s=0.5)
        assert case.ledger.stored == [(at(1) + 1, at(40))]


async def test_a_stream_says_how_it_is_at_once_when_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(monkeypatch) as case:
        await case.say(1)
        await case.until(lambda: case.said["state"] == "live")
        cut_at = case.clock.now_s
        await case.feed.cut()
        await case.until(lambda: case.said["state"] != "live")
        assert case.clock.now_s - cut_at < 3
        assert case.job.reports[-1]["now"]
