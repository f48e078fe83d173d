"""From fetched records to the agents' queues, for every driver of ours: fetch -> DirectDelivery -> conductor -> agents.

Faust starts four tasks per message (50 of 76 us); here the conductor is called directly, and only a delivery that
has to wait (a full queue, a stopped flow) becomes a task, which a stop of the flow ends. Everything else is Faust's
`Consumer._drain_messages`: order per partition, gaps, the commit every so many messages, no record twice.
"""

from __future__ import annotations

import asyncio
import types
import weakref
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from faust import streams
from faust.transport.consumer import Consumer
from faust.types import TP, EventT

YIELD_EVERY = 100  # messages handed over before other tasks get the loop


class DirectDelivery(Consumer):
    """Hands messages to the conductor without a task for each."""

    _handed_over = 0

    async def _drain_messages(self, fetcher: Any) -> None:
        """The fetcher's loop: every record to the conductor, in the order of its partition."""
        stopped: tuple[type[BaseException], ...] = (asyncio.CancelledError, *self.consumer_stopped_errors)
        try:
            while not (self.should_stop or fetcher.should_stop):
                await asyncio.sleep(0)
                async for tp, message in self.getmany(timeout=1.0):
                    await self._deliver(tp, message)
        except stopped:
            if not self.app.should_stop:
                raise

    async def _deliver(self, tp: TP, message: Any) -> None:
        self._handed_over += 1
        if self._handed_over % YIELD_EVERY == 0:
            await asyncio.sleep(0)
        offset, last = message.offset, self._read_offset[tp]
        if last is not None and offset < last:
            return
        if last and offset - last > 1 and self.app.topics.acks_enabled_for(message.topic):
            await self._add_gap(tp, last + 1, offset)
        if self._commit_every is not None and self._n_acked >= self._commit_every:
            self._n_acked = 0
            await self.commit()
        if self._sought_since_fetch(tp):
            return  # the record comes again, in its place
        await self._hand_over(message)
        if not self._sought_since_fetch(tp):
            self._read_offset[tp] = offset

    def _queues_of(self, tp: TP) -> list[Any]:
        """The queues of the agents that read this partition."""
        return [channel.queue for channel in cast(Any, self.app.topics)._tp_index.get(tp, ())]

    def _sought_since_fetch(self, tp: TP) -> bool:
        """True when what was fetched lies before a seek. Kafka's thread does both in order, so it never says so."""
        return False

    async def _hand_over(self, message: Any) -> None:
        """Call the conductor; only when it has to wait as a task that a stop of the flow ends."""
        delivery = cast(Coroutine[Any, Any, None], self.callback(message))
        try:
            waits_for = delivery.send(None)
        except StopIteration:
            return
        await self.wait_first(_finish(delivery, waits_for), cast(Any, self.suspend_flow.wait()))


def room_in(queue: Any, at_most: int) -> int:
    """Records a stream's queue takes now. Above Faust's pressure mark none, until it has drained and says so.

    A delivery that waits for a slow agent holds up every other topic, so no driver fetches more than goes in at once.
    """
    if not queue.maxsize:
        return at_most
    waiting = queue.qsize()
    return 0 if waiting > queue.pressure_high_size else min(at_most, queue.maxsize - waiting)


def take_waiting(stream: Any, at_most: int) -> list[EventT[Any]]:
    """What lies in an agent's queue now, beside the event it has in hand; the agent acknowledges each.

    As Faust's stream does it for every event: one from before a rebalance is left out, each is told to the consumer.
    """
    app, queue = stream.app, stream.channel.queue
    taken: list[EventT[Any]] = []
    while len(taken) < at_most and queue.qsize() and not queue._errors:
        event = queue.get_nowait()
        message = event.message
        if not app.flow_control.is_active() or message.generation_id != app.consumer_generation_id:
            continue
        if message.topic in app.topics.acking_topics and not message.tracked:
            message.tracked = True
            app.consumer.track_message(message)
        stream._on_stream_event_in(message.tp, message.offset, stream, event)
        taken.append(event)
    return taken


@contextmanager
def in_hand(event: EventT[Any]) -> Iterator[None]:
    """Rows written inside go to the changelog partition of this event."""
    token = streams._current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        streams._current_event.reset(token)


async def _finish(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> None:
    """What is left of a coroutine that was started by hand and waits for a future."""
    await _rest(coroutine, waits_for)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, None, None]:
    while True:
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 (a cancellation above all: it is the coroutine's to answer)
            resume = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, None)
        try:
            waits_for = resume()
        except StopIteration:
            return
