"""FOR v, e, p IN 1..n OUTBOUND start GRAPH ...: walks along the edges of a named graph or of collections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from adapters.arango_double.aql import nodes
from adapters.arango_double.aql.evaluate import Compiler, Row, Scope
from adapters.arango_double.aql.run import Run
from adapters.arango_double.errors import ArangoError, not_implemented
from adapters.arango_double.storage import Collection
from adapters.arango_double.values import number, truth

Json = dict[str, Any]
Stage = Callable[[Iterable[Row]], Iterable[Row]]


@dataclass(frozen=True)
class _Path:
    ids: tuple[str, ...]
    edges: tuple[Json, ...]


@dataclass(frozen=True)
class _Rules:
    breadth_first: bool
    vertices: str  # none, path or global
    edges: str  # none or path


def traversed(clause: nodes.Traverse, compiler: Compiler, scope: Scope) -> Stage:
    run = compiler.run
    names = clause.variables
    low, high = int(number(compiler.constant(clause.low))), int(number(compiler.constant(clause.high)))
    start = compiler.compile(clause.start, scope)
    rules = _rules(compiler.constant(clause.options, {}))
    edges = _edges(clause, compiler)
    prune = compiler.compile(clause.prune, scope | set(names)) if clause.prune is not None else None

    def bound(row: Row, path: _Path) -> Row:
        made = (run.document(path.ids[-1]), path.edges[-1] if path.edges else None)
        inner = row | dict(zip(names, made, strict=False))
        if len(names) > 2:
            inner[names[2]] = {"vertices": [run.document(vertex) for vertex in path.ids], "edges": list(path.edges)}
        return inner

    def stage(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            told = start(row)
            first = told.get("_id") if isinstance(told, dict) else told
            if not isinstance(first, str) or "/" not in first:
                run.warn(10, "Invalid input for traversal: Only id strings or objects with _id are allowed")
                continue

            def goes_on(path: _Path, row: Row = row) -> bool:
                return len(path.edges) < high and not (prune is not None and truth(prune(bound(row, path))))

            for path in _walk(first, edges, rules, goes_on, run):
                if len(path.edges) >= low:
                    yield bound(row, path)

    return stage


def _rules(told: Any) -> _Rules:
    if not isinstance(told, dict):
        raise ArangoError(10, "OPTIONS must be an object")
    order = told.get("order", "bfs" if told.get("bfs") else "dfs")
    if order == "weighted":
        raise not_implemented("weighted traversals")
    vertices, edges = told.get("uniqueVertices", "none"), told.get("uniqueEdges", "path")
    if vertices == "global" and order != "bfs":
        raise ArangoError(10, "uniqueVertices: 'global' is only supported with order: 'bfs'")
    return _Rules(order == "bfs", vertices, edges)


def _edges(clause: nodes.Traverse, compiler: Compiler) -> list[tuple[str, Collection]]:
    run = compiler.run
    if clause.graph is None:
        found = []
        for direction, told in clause.edges:
            name = run.parameter(told.name) if isinstance(told, nodes.Parameter) else getattr(told, "name", "")
            found.append((direction, run.collection(name)))
        for _, collection in found:
            if not collection.is_edge:
                raise ArangoError(1218, "collection type invalid: edge collection expected", status=400)
        return found
    name = compiler.constant(clause.graph)
    graph = run.database.collections["_graphs"].get(str(name))
    if graph is None:
        raise ArangoError(1924, f"AQL: graph '{name}' not found (while parsing)")
    return [(clause.direction, run.collection(edge["collection"])) for edge in graph["edgeDefinitions"]]


def _walk(
    start: str,
    edges: list[tuple[str, Collection]],
    rules: _Rules,
    goes_on: Callable[[_Path], bool],
    run: Run,
) -> Iterator[_Path]:
    pending = deque([_Path((start,), ())])
    seen = {start}
    while pending:
        path = pending.popleft()
        yield path
        if not goes_on(path):
            continue
        following = []
        for edge, other in _neighbours(path.ids[-1], edges, run):
            if rules.edges == "path" and any(edge["_id"] == each["_id"] for each in path.edges):
                continue
            if (rules.vertices == "path" and other in path.ids) or (rules.vertices == "global" and other in seen):
                continue
            seen.add(other)
            following.append(_Path((*path.ids, other), (*path.edges, edge)))
        if rules.breadth_first:
            pending.extend(following)
        else:
            pending.extendleft(following)  # the newest edge first, as the server's stack has it


def _neighbours(id: str, edges: list[tuple[str, Collection]], run: Run) -> Iterator[tuple[Json, str]]:
    for direction, collection in edges:
        index = next(each for each in collection.indexes if each.definition["type"] == "edge")
        for mine, other in (("_from", "_to"), ("_to", "_from")):
            if direction in ("ANY", "OUTBOUND" if mine == "_from" else "INBOUND"):
                for key in index.keys(mine, id):
                    edge = collection.get(key)
                    if edge is not None:
                        run.scanned_index += 1
                        yield edge, edge[other]
