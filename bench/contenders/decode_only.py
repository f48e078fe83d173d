"""Many frames a message, read and decoded, nothing else: the ceiling. It writes nothing and commits nothing."""

from __future__ import annotations

from uuid import uuid4

import msgspec
from confluent_kafka import Consumer

from bench.contenders import Span, arguments


class Frame(msgspec.Struct, gc=False):
    s: str
    a: int
    T: int
    p: float
    q: float
    m: bool


decode = msgspec.json.Decoder(list[Frame], strict=False).decode  # numbers come as strings


def main() -> None:
    options, span = arguments(__doc__), Span()
    consumer = Consumer(
        {"bootstrap.servers": options.bootstrap, "group.id": f"decode-{uuid4().hex[:8]}",
         "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )  # fmt: skip
    consumer.subscribe([options.frames])
    messages = trades = 0
    while messages < options.messages:
        for message in consumer.consume(100, 0.05):
            span.first_message()
            trades += len(decode(message.value()))
            messages += 1
    span.durable()
    consumer.close()
    span.report(trades)


if __name__ == "__main__":
    main()
