"""Recorded answers of a real ArangoDB 3.12, replayed against the double: what is asked, and how answers are compared.

A row holds a script in JavaScript that sets the scene, the requests that it sent and the responses that it showed. Of
the script only the few calls below are understood; ids, revisions and times are compared by their shape.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.arango_double.server import ROUTES, ArangoDouble

Json = dict[str, Any]

_HOST = "http://localhost:8529"
_REQUEST_OR_SHOWN = re.compile(r"(\w+) = logCurlRequest(?:Raw)?\(|log(?:Json|Raw)Response\((\w+)\)")
_CALL = re.compile(
    r"(?P<name>[\w.\[\]]+?)\.(?P<verb>_create|_createEdgeCollection|_createDatabase|_createTransaction|save|remove|"
    r"ensureIndex|loadGraph)\("
)
_STRING = re.compile(r'(\w+) = "([^"]*)"')
_LOOP = re.compile(r"for\s*\(var i ?= ?0; ?i ?< ?(\d+); ?(?:i\+\+|\+\+i)\)")
_REVISION = re.compile(r"_[A-Za-z0-9_-]{10}")
# Compared by type and shape: ids and times, and what depends on the server's plans, caches and formats.
_MASKED = frozenset(
    [
        "_rev",
        "_oldRev",
        "id",
        "_id",
        "_key",
        "globallyUniqueId",
        "objectId",
        "executionTime",
        "peakMemoryUsage",
        "revision",
        "checksum",
        "lastValue",
        "selectivityEstimate",
        "documentLookups",
        "seeks",
        "cursorsCreated",
        "scannedFull",
        "scannedIndex",
        "cacheHits",
        "cacheMisses",
        "searchParallelism",
        "size",
        "documentsSize",
        "nextBatchId",
        "details_of_version",
    ]
)


def folder() -> Path | None:
    """Of the recordings: ARANGO_RECORDINGS, or beside RECORDED_DATA."""
    told = os.environ.get("ARANGO_RECORDINGS")
    beside = os.environ.get("RECORDED_DATA")
    found = Path(told) if told else Path(beside).parent / "arango" if beside else None
    return found if found and (found / "recorded_3.12.jsonl").exists() else None


def rows(kind: str) -> Iterator[Json]:
    there = folder()
    if there is None:
        return
    with (there / "recorded_3.12.jsonl").open() as lines:
        yield from (row for row in map(json.loads, lines) if row["kind"] == kind)


class Stage:
    """One row's scene in a double of its own; knows what the recorded ids are called here."""

    def __init__(self, double: ArangoDouble) -> None:
        self.double = double
        self.saved: list[Json] = []
        self.named: dict[str, str] = {}  # variable of the script: collection
        self.last: dict[str, str] = {}  # kind of id: the newest one

    def ask(self, method: str, path: str, body: Any = None, headers: Json | None = None) -> tuple[int, Any, Json]:
        told = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
        answer = self.double.answer(method, path, headers or {}, told)
        response = self.double.response(answer)
        value = json.loads(response.body) if isinstance(response.body, bytes) and response.body else None
        return response.status, value, {name.lower(): text for name, text in response.headers.items()}

    # -- the scene -----------------------------------------------------------------------------------------

    def set(self, script: str) -> None:
        scene = script.split("logCurlRequest", maxsplit=1)[0]
        strings = dict(_STRING.findall(scene))
        for call in _CALL.finditer(scene):
            argument = _balanced(scene, call.end())
            before = scene[: call.start()]
            loop = _LOOP.search(before[before.rfind(";", 0, before.rfind("for")) + 1 :]) if "for" in before else None
            times = int(loop[1]) if loop and before.count("{") > before.count("}") else 1
            assigned = re.search(r"(\w+) = $", before)
            for i in range(times):
                self._play(call["name"], call["verb"], re.sub(r"\bi\b(?=\s*})", str(i), argument), strings, assigned)

    def _play(
        self, name: str, verb: str, argument: str, strings: dict[str, str], assigned: re.Match[str] | None
    ) -> None:
        first, _, rest = argument.partition(",")
        text = strings.get(first.strip(), first.strip().strip('"'))
        match verb:
            case "_create" | "_createEdgeCollection":
                options = _object(rest) if rest.strip() else {}
                kind = 3 if verb == "_createEdgeCollection" else 2
                _, made, _ = self.ask("POST", "/_api/collection", {**options, "name": text, "type": kind})
                self.last["collection"] = made["id"]
                self.named[assigned[1] if assigned else ""] = text
            case "_createDatabase":
                self.ask("POST", "/_api/database", {"name": text})
            case "_createTransaction":
                collections = {"read": next(iter(reversed(self.named.values())))}
                _, made, _ = self.ask("POST", "/_api/transaction/begin", {"collections": collections})
                self.last["transaction"] = made["result"]["id"]
            case "loadGraph":
                load_graph(self, text)
            case "remove":
                self.ask("DELETE", f"/_api/document/{self.saved[-1]['_id']}")
            case _:
                target = name.rsplit(".", maxsplit=1)[-1]
                target = self.named.get(target, target if name.startswith("db.") else list(self.named.values())[-1])
                if verb == "ensureIndex":
                    _, made, _ = self.ask("POST", f"/_api/index?collection={target}", _object(argument))
                    self.last["index"] = made["id"]
                else:
                    _, made, _ = self.ask("POST", f"/_api/document/{target}", _object(argument))
                    self.saved += made if isinstance(made, list) else [made]

    # -- the requests --------------------------------------------------------------------------------------

    def here(self, request: Json) -> tuple[str, str, str | None, Json]:
        """A recorded request with the ids that things have here."""
        path = request["url"].removeprefix(_HOST)
        for kind, pattern in (
            ("collection", r"/_api/collection/(\d+)"),
            ("transaction", r"/_api/transaction/(\d+)"),
            ("cursor", r"/_api/cursor/(\d+)$"),
            ("index", r"/_api/index/(\w+/\d+)"),
            ("edge", r"/edge/relation/(\d+)"),
        ):
            match = re.search(pattern, path)
            if match and kind in self.last:
                path = path[: match.start(1)] + self.last[kind] + path[match.end(1) :]
        if self.saved:
            path = re.sub(r"(/_api/document/\w+/)\d+", rf"\g<1>{self.saved[0]['_key']}", path)
        headers = dict(line.split(": ", 1) for line in request["headers"])
        for name, at in (("If-Match", 1), ("If-None-Match", 0)):
            if name in headers:
                headers[name] = f'"{self.saved[at]["_rev"]}"'
        body = request["body"]
        if body:
            revisions = iter([document["_rev"] for document in self.saved])
            body = re.sub(r'("_rev": )"_l6[^"]*"', lambda match: f'{match[1]}"{next(revisions)}"', body)
        return request["method"], path, body, headers

    def replay(self, row: Json) -> str:  # noqa: PLR0911 -- each says what differs
        """ "" where all answers are as recorded, "not supported: ..." or what differs."""
        if "function ()" in row["script"]:
            return "not supported: JavaScript on the server"
        if any(_endpoint(request["url"]) not in ROUTES for request in row["requests"]):
            return "not supported: endpoints " + " ".join(_endpoint(request["url"]) for request in row["requests"])
        if row["name"] == "RestCollectionGetAllCollections":
            for name in ("demo", "mycollection", "animals", "ignore"):  # left there by other examples
                self.ask("POST", "/_api/collection", {"name": name})
        self.set(row["script"])
        answers: list[tuple[int, Any, Json]] = []
        for request in row["requests"]:
            method, path, body, headers = self.here(request)
            answers.append(self.ask(method, path, body, headers))
            value = answers[-1][1]
            if isinstance(value, dict) and value.get("errorNum") == 9:
                return f"not supported: {value['errorMessage']}"
            if _endpoint(path) == "cursor" and isinstance(value, dict) and "id" in value:
                self.last["cursor"] = value["id"]
        shown = [answers[at] for at in _shown(row["script"])]
        if len(shown) != len(row["responses"]):
            return f"{len(row['responses'])} responses are recorded, {len(shown)} are expected from the script"
        for (status, value, headers), recorded in zip(shown, row["responses"], strict=True):
            if status != recorded["status"]:
                return f"status {status} instead of {recorded['status']}: {value}"
            found = difference(value, recorded["body"]) or _header_difference(headers, recorded["headers"])
            if found:
                return found
        return ""


def _endpoint(url: str) -> str:
    match = re.search(r"/_api/(\w+)", url)
    return match[1] if match else url


def _shown(script: str) -> list[int]:
    """Which requests' responses the script shows."""
    latest: dict[str, int] = {}
    count, shown = 0, []
    for match in _REQUEST_OR_SHOWN.finditer(script):
        if match[1]:
            latest[match[1]] = count
            count += 1
        else:
            shown.append(latest[match[2]])
    return shown


def _balanced(text: str, start: int) -> str:
    depth = 1
    for at in range(start, len(text)):
        depth += text[at] in "([{"
        depth -= text[at] in ")]}"
        if depth == 0:
            return text[start:at]
    raise ValueError(text[start:])


def _object(text: str) -> Any:
    """A literal of JavaScript."""
    quoted = re.sub(r"([{,]\s*)([$\w]+)\s*:", r'\1"\2":', text)
    return json.loads(re.sub(r",\s*([}\]])", r"\1", quoted))


# -- comparing -----------------------------------------------------------------------------------------------


def difference(found: Any, recorded: Any, at: str = "") -> str:  # noqa: PLR0911 -- each says what differs
    """ "" where they are the same but for ids, revisions, times and what depends on plans."""
    name = at.rpartition(".")[2]
    if isinstance(recorded, dict) and isinstance(found, dict):
        if "architecture" in recorded:
            return ""  # how the server was built
        if found.keys() != recorded.keys() and name != "identifiers":
            return f"{at}: {sorted(found.keys() ^ recorded.keys())} are on one side only"
        pairs = zip(found.values(), recorded.values(), strict=False) if name == "identifiers" else (
            (found[each], recorded[each]) for each in recorded
        )  # fmt: skip
        names = recorded if name != "identifiers" else ["."] * len(recorded)
        return next(
            (text for each, pair in zip(names, pairs, strict=False) if (text := difference(*pair, f"{at}.{each}"))), ""
        )
    if isinstance(recorded, list) and isinstance(found, list):
        if at == ".result" and recorded and isinstance(recorded[0], dict) and "globallyUniqueId" in recorded[0]:
            found, recorded = (sorted(each, key=lambda item: item["name"]) for each in (found, recorded))
        if len(found) != len(recorded):
            return f"{at}: {len(found)} items instead of {len(recorded)}: {found}"
        return next(
            (
                text
                for each, pair in enumerate(zip(found, recorded, strict=True))
                if (text := difference(*pair, f"{at}.{each}"))
            ),
            "",
        )
    if name in _MASKED or at.startswith(".figures") or _is_made_up(recorded):
        return "" if _shape(found) == _shape(recorded) else f"{at}: {found!r} has not the shape of {recorded!r}"
    if name == "errorMessage":
        return "" if _message(found) == _message(recorded) else f"{at}: {found!r} instead of {recorded!r}"
    is_close = isinstance(found, int | float) and isinstance(recorded, int | float) and math.isclose(found, recorded)
    same = found == recorded and isinstance(found, bool) == isinstance(recorded, bool)
    return "" if same or (is_close and not isinstance(found, bool)) else f"{at}: {found!r} instead of {recorded!r}"


def _is_made_up(recorded: Any) -> bool:
    return isinstance(recorded, str) and (recorded.startswith("idx_") or bool(_REVISION.fullmatch(recorded)))


def _shape(value: Any) -> Any:
    if isinstance(value, str):
        text = re.sub(r"^h\w+(?=/\d+$)", "H", value)
        return re.sub(r"\d+", "1", _REVISION.sub("R", text))
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _message(text: str) -> str:
    if text.startswith("VPackError error: "):
        return "VPackError"
    return re.sub(r" \[node #\d+: \w+\]", "", text)


def _header_difference(found: Json, recorded: Json) -> str:
    for name, value in recorded.items():
        if name == "content-length":
            continue
        if name not in found:
            return f"the header {name} is missing"
        if _shape(found[name]) != _shape(value):
            return f"the header {name} is {found[name]!r} instead of {value!r}"
    extra = {"etag", "location", "x-arango-error-codes"} & (found.keys() - recorded.keys())
    return f"the headers {extra} are recorded nowhere" if extra else ""


# -- the data sets of the recorded queries -----------------------------------------------------------------

_PEOPLE = (("female", "alice"), ("male", "bob"), ("male", "charly"), ("female", "diana"))
_GRAPHS: dict[str, tuple[str, list[str], dict[str, Json], list[Json]]] = {
    # name: (edge collection, vertex collections, vertices, edges)
    "social": (
        "relation",
        ["female", "male"],
        {f"{kind}/{name}": {"name": name.title()} for kind, name in _PEOPLE},
        [
            {"_from": "female/alice", "_to": "male/bob", "type": "married", "vertex": "alice"},
            {"_from": "female/alice", "_to": "male/charly", "type": "friend", "vertex": "alice"},
            {"_from": "male/charly", "_to": "female/diana", "type": "married", "vertex": "charly"},
            {"_from": "male/bob", "_to": "female/diana", "type": "friend", "vertex": "bob"},
        ],
    ),
    "knows_graph": (
        "knows",
        ["persons"],
        {f"persons/{name}": {"name": name.title()} for name in ("alice", "bob", "charlie", "dave", "eve")},
        [
            {"_from": f"persons/{start}", "_to": f"persons/{end}", "vertex": start}
            for start, end in (("alice", "bob"), ("bob", "charlie"), ("bob", "dave"), ("eve", "alice"), ("eve", "bob"))
        ],
    ),
    "traversalGraph": (
        "edges",
        ["circles"],
        {f"circles/{name}": {"label": str(at + 1)} for at, name in enumerate("ABCDEFGHIJK")},
        [
            {"_from": f"circles/{start}", "_to": f"circles/{end}", "theFalse": False, "theTruth": True, "label": label}
            for (start, end), label in (
                ("AB", "left_bar"), ("BC", "left_blarg"), ("CD", "left_blorg"), ("BE", "left_blub"),
                ("EF", "left_schubi"), ("AG", "right_foo"), ("GH", "right_blob"), ("HI", "right_blub"),
                ("GJ", "right_zip"), ("JK", "right_zup"),
            )
        ],
    ),
}  # fmt: skip
_OBSERVATIONS = [
    ("07:00:00", "st113", 10), ("07:15:00", "st113", 9), ("07:30:00", "st113", 25), ("07:45:00", "st113", 20),
    ("07:00:00", "xh458", 0), ("07:15:00", "xh458", 10), ("07:30:00", "xh458", 5), ("07:45:00", "xh458", 30),
    ("08:00:00", "xh458", 25),
]  # fmt: skip
DATA_SETS = (*_GRAPHS, "observationsSampleDataset")


def load_graph(stage: Stage, name: str) -> None:
    edge_collection, vertices, documents, edges = _GRAPHS[name]
    definition = {"collection": edge_collection, "from": vertices, "to": vertices}
    stage.ask("POST", "/_api/gharial", {"name": name, "edgeDefinitions": [definition]})
    for handle, document in documents.items():
        collection, _, key = handle.partition("/")
        stage.ask("POST", f"/_api/document/{collection}", {"_key": key, **document})
    for edge in edges:
        _, made, _ = stage.ask("POST", f"/_api/document/{edge_collection}", edge)
        if edge["vertex" if "vertex" in edge else "label"] == "charly":  # what the recorded `any` found
            stage.last["edge"] = made["_key"]


def load_data_set(stage: Stage, name: str) -> None:
    if name in _GRAPHS:
        load_graph(stage, name)
        return
    stage.ask("POST", "/_api/collection", {"name": "observations"})
    for time, subject, value in _OBSERVATIONS:
        stage.ask(
            "POST", "/_api/document/observations", {"time": f"2021-05-25 {time}", "subject": subject, "val": value}
        )


def replay_query(stage: Stage, row: Json) -> str:
    """As `Stage.replay`, for a row that is one query."""
    if "RAND()" in row["input"]:
        return "not supported: chance"
    data_set = row["options"].get("dataset")
    if data_set and data_set not in DATA_SETS:
        return f"not supported: the data set {data_set}"
    if data_set:
        load_data_set(stage, data_set)
    query = row["input"].replace("\\\\", "\\")  # the page it stood on escaped it once more
    body = {"query": query, "bindVars": row["options"].get("bindVars", {}), "batchSize": 100_000}
    _, value, _ = stage.ask("POST", "/_api/cursor", body)
    if value.get("errorNum") == 9:
        return f"not supported: {value['errorMessage']}"
    if "result" not in value:
        return f"refused: {value}"
    return difference(value["result"], row["result"])
