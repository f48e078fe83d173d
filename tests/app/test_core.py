"""What an agent's step meets together, and what of it is put aside."""

import pytest

from app import core
from app.core import Message, deliver
from app.errors import StoreBusy


@pytest.fixture
def put_aside(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    aside: list[int] = []

    async def dead_letter(message: Message, _reason: str) -> None:
        aside.append(message.offset)

    monkeypatch.setattr(core, "dead_letter", dead_letter)
    return aside


def waiting(count: int) -> list[Message]:
    return [Message("market.trades", 0, offset, b"", b"", {}, 0.0) for offset in range(count)]


async def test_of_messages_that_wait_together_only_the_one_at_fault_is_put_aside(put_aside: list[int]) -> None:
    done: list[int] = []

    async def step(messages: list[Message]) -> None:
        if any(message.offset == 2 for message in messages):
            raise ValueError("cannot be read")
        done.extend(message.offset for message in messages)

    await deliver("step", step, waiting(5))
    assert (done, put_aside) == ([0, 1, 3, 4], [2])


async def test_an_outage_puts_nothing_aside_and_the_messages_come_again_together(put_aside: list[int]) -> None:
    tries: list[int] = []

    async def step(messages: list[Message]) -> None:
        tries.append(len(messages))
        if len(tries) < 3:
            raise StoreBusy("full", retry_after_s=0.0)

    await deliver("step", step, waiting(4))
    assert (tries, put_aside) == ([4, 4, 4], [])
