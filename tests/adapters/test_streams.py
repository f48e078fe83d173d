"""Live connections against a small exchange: whatever it does, frames go on, within its limits, and nobody sleeps."""

from __future__ import annotations

import json

from tests.feed import agg_trade
from tests.streams import ETH, connected, numbers


async def test_frames_reach_who_subscribed_and_nobody_else() -> None:
    async with connected() as (feed, hub, clock):
        eth, btc = hub.subscribe(ETH), hub.subscribe("btcusdt@aggTrade")
        await clock.run_until(lambda: feed.subscribed(ETH) and hub.is_up(ETH))
        await feed.say(ETH, agg_trade(1))
        await clock.run_until(lambda: eth.frames)
        assert (numbers(eth), numbers(btc)) == ([1], [])
        assert eth.health().state == "live"
        eth.close()
        await clock.run_until(lambda: not feed.subscribed(ETH))
        assert hub.is_up("btcusdt@aggTrade")


async def test_many_streams_share_connections_within_the_limits() -> None:
    async with connected(streams_per_connection=40, streams_per_message=15) as (feed, hub, clock):
        names = [f"s{number}@aggTrade" for number in range(100)]
        for name in names:
            hub.subscribe(name)
        await clock.run_until(lambda: all(hub.is_up(name) for name in names))
        assert feed.connects == 3
        assert sorted(len(streams) for streams in feed.streams.values()) == [20, 40, 40]
        assert max(len(asked["params"]) for asked in feed.asked) <= 15
        messages_s = [seconds for seconds in clock.slept if seconds == hub.limits.message_every_s]
        assert len(messages_s) == len(feed.asked)


async def test_a_cut_is_followed_by_a_new_connection_that_says_so() -> None:
    async with connected() as (feed, hub, clock):
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: eth.joins == 1)
        await feed.cut()
        await clock.run_until(lambda: not hub.is_up(ETH))
        assert eth.health().state == "stale"
        await clock.run_until(lambda: eth.joins == 2)
        await feed.say(ETH, agg_trade(7))
        await clock.run_until(lambda: eth.frames)
        assert numbers(eth) == [7]


async def test_a_stream_that_falls_silent_among_others_is_subscribed_anew() -> None:
    async with connected(stream_silent_s=10.0, connection_silent_s=1e9) as (feed, hub, clock):
        eth, _btc = hub.subscribe(ETH), hub.subscribe("btcusdt@aggTrade")
        await clock.run_until(lambda: hub.is_up(ETH))
        for connection in feed.connections:
            feed.streams[connection].discard(ETH)  # the exchange has forgotten it
        await clock.run_until(lambda: feed.subscribed(ETH) and eth.joins == 2, step_s=1.0, most_s=60)
        assert feed.connects == 1


async def test_a_frame_of_five_megabytes_passes() -> None:
    async with connected() as (feed, hub, clock):
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: hub.is_up(ETH))
        await feed.say(ETH, {"a": 1, "text": "x" * 5_000_000})
        await clock.run_until(lambda: eth.frames)
        assert feed.connects == 1


async def test_a_stream_the_exchange_does_not_know_is_told_to_its_reader() -> None:
    async with connected() as (feed, hub, clock):
        feed.deaf = True
        eth = hub.subscribe(ETH)
        await clock.run_until(lambda: feed.asked)
        await feed.say_raw(json.dumps({"error": {"code": 2, "msg": "invalid stream"}, "id": feed.asked[0]["id"]}))
        await clock.run_until(lambda: eth.refused)
        assert "invalid stream" in eth.refused
