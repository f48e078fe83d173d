"""Batches into ArangoDB: each document's answer read, what may pass sent again and it alone, versions never going down.

What the one-trip way cannot decide (versions, merged fields) is read first and written over the very revision it was
decided on; where another writer was faster, it is read and decided once more.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.stores import arango_rows
from adapters.stores.arango_batches import CONFLICT, EXISTS, NOT_FOUND, Answer, Patience, Sorted, sort_answers
from adapters.stores.arango_client import SLOW_S, Away, Client, Refused
from adapters.stores.arango_rows import RANK
from adapters.stores.base import BAD_VALUE, Document, WriteResult
from adapters.stores.shape import Errors, Shape
from adapters.stores.shape import Refused as RowRefused
from app.errors import StoreBusy

_RACES = 50  # times that others may be faster before a batch gives up
_RACED = frozenset({CONFLICT, NOT_FOUND, EXISTS})  # the store is not as it was when we read it


@dataclass(frozen=True)
class How:
    """A way to send documents. `final`: errors that we decide about ourselves."""

    method: str
    params: Mapping[str, Any]
    final: frozenset[int] = frozenset()


REPLACE = How("POST", {"overwriteMode": "replace", "returnOld": True})
REPLACE_LOWER = How("POST", {"overwriteMode": "replace", "versionAttribute": RANK})
CREATE = How("POST", {"overwriteMode": "conflict"})
OVER_REVISION = How("PUT", {"ignoreRevs": False}, frozenset({CONFLICT, NOT_FOUND}))


@dataclass
class Tally:
    """What became of documents, by their place."""

    created: set[int] = field(default_factory=set)
    updated: set[int] = field(default_factory=set)
    refused: dict[int, tuple[int, str]] = field(default_factory=dict)

    def result(self, rows: int) -> WriteResult:
        errors = [(place, number, message) for place, (number, message) in sorted(self.refused.items())]
        done = len(self.created), len(self.updated)
        return WriteResult(*done, rows - sum(done) - len(errors), errors)


class Writer:
    """Any thread may use it. Raises StoreBusy when patience ends, StoreError for what trying cannot mend."""

    def __init__(self, client: Client, patience: Patience, closing: threading.Event, batch_rows: int) -> None:
        self._client, self._patience, self._closing, self._batch_rows = client, patience, closing, batch_rows
        self.server_compares_versions = False

    def write(self, shape: Shape, documents: Sequence[Document], *, keep: bool) -> WriteResult:
        """One batch without a repeated key. `keep`: what is there stays."""
        if shape.spec.version is not None and not keep:
            return self._write_newer(shape, documents)
        tally = Tally()
        answers = self.send(shape, documents, CREATE if keep else REPLACE)
        for place, answer in answers.done.items():
            if "_oldRev" not in answer:
                tally.created.add(place)
            elif not arango_rows.same(shape, documents[place], answer["old"]):
                tally.updated.add(place)
        tally.refused = {at: said for at, said in answers.refused.items() if not (keep and said[0] == EXISTS)}
        return tally.result(len(documents))

    def update(self, shape: Shape, documents: Sequence[Document]) -> WriteResult:
        """Fields given replace those stored, the others stay."""
        tally, errors = Tally(), dict[int, tuple[int, str]]()
        wanted: list[tuple[int, str]] = []
        for index, document in enumerate(documents):
            try:
                wanted.append((index, shape.key_text(shape.checked_key(document))))
            except RowRefused as refused:
                errors[index] = (refused.number, str(refused))
        last = {key: index for index, key in wanted}  # a key's place is that of its last document
        waiting = list(last)
        for _ in range(_RACES):
            old = dict(zip(waiting, self.find(shape.spec.name, waiting), strict=True))
            merged, wrong = _merge(shape, documents, [(index, key) for index, key in wanted if key in old], old)
            errors |= wrong
            changes = {last[key]: (new, old[key]) for key, new in merged.items()}
            raced = self._write_over(shape, changes, tally, by_server=False)
            if not raced:
                tally.refused |= errors
                return tally.result(len(documents))
            waiting = [key for key in waiting if last[key] in raced]
        raise self._raced_without_end(shape)

    def find(self, collection: str, keys: Sequence[str]) -> list[Document | None]:
        """Documents as they are stored; None where there is none."""
        found: list[Document | None] = []
        for start in range(0, len(keys), self._batch_rows):
            part = list(keys[start : start + self._batch_rows])
            answers = self._client.persist(
                lambda part=part: self._find_part(collection, part),  # type: ignore[misc]
                self._patience,
                self._closing.wait,
            )
            found += [None if "errorNum" in answer else answer for answer in answers]
        return found

    def send(self, shape: Shape, documents: Sequence[Document], how: How) -> Sorted:
        """Every document stored or refused for good, in as many tries as our patience allows."""
        path, found = f"/_api/document/{shape.spec.name}", Sorted()
        waiting = list(range(len(documents)))
        tried, waited = 0, 0.0
        if self._client.queue_s > SLOW_S:  # the server is behind: do not add to its queue
            self._closing.wait(min(self._client.queue_s, self._patience.most_s))
        while waiting:
            before, said_s = len(waiting), 0.0
            try:
                answer = self._client.call(how.method, path, params=how.params, body=[documents[at] for at in waiting])
            except Away as away:
                why, said_s = str(away), away.retry_after_s
            except Refused as refused:
                self._take_apart(shape, documents, waiting, refused, how, found)
                return found
            else:
                part = sort_answers(waiting, answer.body, how.final)
                found.done |= part.done
                found.refused |= part.refused
                waiting = list(part.again)
                why = next((f"{message} (ArangoDB error {number})" for number, message in part.again.values()), "")
            if not waiting:
                break
            tried = 1 if len(waiting) < before else tried + 1  # it goes on, so it is worth waiting
            delay = self._patience.delay(tried, said_s)
            waited = delay if len(waiting) < before else waited + delay
            if waited > self._patience.in_all_s or self._closing.is_set():
                sentence = f"{len(waiting)} documents of {shape.spec.name!r} wait: {why}"
                raise StoreBusy(sentence, retry_after_s=self._patience.most_s)
            self._closing.wait(delay)
        return found

    def _write_newer(self, shape: Shape, documents: Sequence[Document]) -> WriteResult:
        tally, waiting = Tally(), list(range(len(documents)))
        for _ in range(_RACES):
            stored = self.find(shape.spec.name, [documents[place]["_key"] for place in waiting])
            old = dict(zip(waiting, stored, strict=True))
            newer = {p: (documents[p], there) for p, there in old.items() if documents[p][RANK] >= _rank(there)}
            waiting = self._write_over(shape, newer, tally, by_server=self.server_compares_versions)
            if not waiting:
                return tally.result(len(documents))
        raise self._raced_without_end(shape)

    def _write_over(
        self, shape: Shape, changes: Mapping[int, tuple[Document, Document | None]], tally: Tally, *, by_server: bool
    ) -> list[int]:
        """Write each (new, what it was decided on) that differ; the places where the store is another one by now.

        `by_server`: a higher version the server itself can hold against what is there; an equal one needs the revision.
        """
        plan: dict[int, list[int]] = {id(how): [] for how in _WAYS}
        for place, (new, old) in changes.items():
            if old is not None and arango_rows.same(shape, new, old):
                continue
            by_revision = CREATE if old is None else OVER_REVISION
            how = REPLACE_LOWER if by_server and new[RANK] > _rank(old) else by_revision
            plan[id(how)].append(place)
        raced: list[int] = []
        for how in _WAYS:
            places = plan[id(how)]
            documents = [_with_revision(*changes[place]) if how is OVER_REVISION else changes[place][0]
                         for place in places]  # fmt: skip
            answers = self.send(shape, documents, how) if places else Sorted()
            for at in answers.done:
                (tally.created if changes[places[at]][1] is None else tally.updated).add(places[at])
            for at, said in answers.refused.items():
                if said[0] in _RACED:
                    raced.append(places[at])
                else:
                    tally.refused[places[at]] = said
        return raced

    def _find_part(self, collection: str, keys: list[str]) -> list[Answer]:
        call = self._client.call("PUT", f"/_api/document/{collection}", params={"onlyget": True}, body=keys)
        answers: list[Answer] = call.body
        wrong = [a for a in answers if a.get("errorNum") not in (None, NOT_FOUND)]
        if wrong or len(answers) != len(keys):
            raise Away(f"{collection!r} cannot be read: {wrong[0] if wrong else 'answers lack'}")
        return answers

    def _take_apart(
        self, shape: Shape, documents: Sequence[Document], waiting: list[int], refused: Refused, how: How, found: Sorted
    ) -> None:
        """What is refused as a whole (too large, or for one document in it): in halves, down to the one at fault."""
        if refused.status not in (400, 413):
            raise self._client.fatal(refused)
        if len(waiting) == 1:
            found.refused[waiting[0]] = (refused.number or BAD_VALUE, refused.message)
            return
        middle = len(waiting) // 2
        for half in (waiting[:middle], waiting[middle:]):
            part = self.send(shape, [documents[at] for at in half], how)
            found.done |= {half[at]: answer for at, answer in part.done.items()}
            found.refused |= {half[at]: said for at, said in part.refused.items()}

    @staticmethod
    def _raced_without_end(shape: Shape) -> StoreBusy:
        return StoreBusy(f"{shape.spec.name!r}: others change the same documents without end", retry_after_s=1.0)


_WAYS = (REPLACE_LOWER, CREATE, OVER_REVISION)


def _with_revision(new: Document, old: Document | None) -> Document:
    return new if old is None else {**new, "_rev": old["_rev"]}


def _rank(document: Document | None) -> int:
    """Of a stored document; -1 where there is none."""
    return -1 if document is None else int(document.get(RANK) or 0)


def _merge(
    shape: Shape, documents: Sequence[Document], wanted: Sequence[tuple[int, str]], old: Mapping[str, Document | None]
) -> tuple[dict[str, Document], dict[int, tuple[int, str]]]:
    """Documents as they will be stored, by key; errors of what cannot be merged, by place in `documents`."""
    merged: dict[str, Document] = {}
    errors: dict[int, tuple[int, str]] = {}
    version = shape.spec.version
    for index, key in wanted:
        there = old[key]
        current = merged.get(key) or (arango_rows.decode(shape, there) if there else {})
        if _is_older(documents[index], current, version):
            continue
        both = {**current, **documents[index]}
        wrong: Errors = shape.from_documents([both])[1]
        if wrong:
            errors[index] = wrong[0][1:]
        else:
            merged[key] = both
    batch, _ = shape.from_documents(list(merged.values()))
    return dict(zip(merged, arango_rows.encode(shape, batch), strict=True)), errors


def _is_older(document: Document, current: Document, version: str | None) -> bool:
    if version is None or document.get(version) is None or current.get(version) is None:
        return False
    return bool(document[version] < current[version])
