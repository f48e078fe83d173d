"""Error numbers of ArangoDB 3.12, with the HTTP status and the text that the server answers."""

from __future__ import annotations

from typing import Any

# errorNum: (HTTP status, text); from the server's errors.dat and GeneralResponse::responseCode.
KNOWN: dict[int, tuple[int, str]] = {
    4: (500, "internal error"),
    9: (501, "not implemented"),
    10: (400, "bad parameter"),
    11: (403, "forbidden"),
    18: (500, "lock timeout"),
    21: (410, "canceled request"),
    28: (500, "locked"),
    30: (503, "shutdown in progress"),
    400: (400, "bad parameter"),
    401: (401, "unauthorized"),
    404: (404, "not found"),
    405: (405, "method not supported"),
    413: (413, "request entity too large"),
    503: (503, "service unavailable"),
    600: (400, "invalid JSON object"),
    1004: (403, "read only"),
    1200: (409, "conflict"),
    1202: (404, "document not found"),
    1203: (404, "collection or view not found"),
    1204: (400, "parameter 'collection' not found"),
    1205: (400, "illegal document identifier"),
    1207: (409, "duplicate name"),
    1208: (400, "illegal name"),
    1210: (409, "unique constraint violated"),
    1212: (404, "index not found"),
    1216: (400, "document too large"),
    1221: (400, "illegal document key"),
    1222: (400, "unexpected document key"),
    1226: (400, "missing document key"),
    1227: (400, "invalid document type"),
    1228: (404, "database not found"),
    1229: (400, "database name invalid"),
    1230: (403, "operation only allowed in system database"),
    1233: (
        400,
        "expecting both `_from` and `_to` attributes to be defined in the edge document and have the format "
        "`<collectionName>/<vertexKey>` ",
    ),
    1495: (503, "leadership challenge is ongoing"),
    1496: (503, "not a leader"),
    1500: (410, "query killed"),
    1501: (400, "syntax error"),
    1502: (400, "query is empty"),
    1504: (400, "number out of range"),
    1511: (400, "variable is assigned multiple times"),
    1512: (400, "unknown variable"),
    1540: (400, "usage of unknown function"),
    1541: (400, "invalid number of arguments"),
    1542: (400, "invalid argument type"),
    1551: (400, "no value specified for declared bind parameter"),
    1552: (400, "bind parameter was not declared in the query"),
    1553: (400, "bind parameter has an invalid value or type"),
    1562: (400, "division by zero"),
    1563: (400, "array expected"),
    1569: (400, "FAIL(%s) called"),
    1579: (400, "access after data-modification"),
    1600: (404, "cursor not found"),
    1601: (409, "cursor is busy"),
    1620: (400, "schema violation"),
    1651: (400, "nested transactions detected"),
    1652: (400, "unregistered collection used in transaction"),
    1653: (400, "disallowed operation inside transaction"),
    1654: (410, "transaction aborted"),
    1655: (404, "transaction not found"),
    1920: (400, "multi use of edge collection in edge def"),
    1921: (400, "edge collection already used in edge def"),
    1923: (400, "malformed edge definition"),
    1924: (404, "graph not found"),
    1925: (409, "graph already exists"),
    1926: (404, "vertex collection does not exist or is not part of the graph"),
    1928: (400, "collection is not in list of orphan collections"),
    1929: (400, "collection already used in edge def"),
    1930: (404, "edge collection not used in graph"),
    1938: (400, "collection used in orphans"),
    1942: (403, "must not drop collection while part of graph"),
    1947: (400, "referenced vertex collection is not part of the graph"),
    21003: (503, "queue is full"),
    21004: (412, "queue time violated"),
}


class ArangoError(Exception):
    """What the server refuses: `number` as in KNOWN, `status` of HTTP, the text, and further attributes of the body."""

    def __init__(self, number: int, text: str = "", *, status: int = 0, **more: Any) -> None:
        known_status, known_text = KNOWN.get(number, (500, "internal error"))
        self.number, self.status, self.text = number, status or known_status, text or known_text
        self.more = more
        super().__init__(f"[{number}] {self.text}")

    def body(self) -> dict[str, Any]:
        return {
            "error": True, "code": self.status, "errorNum": self.number, "errorMessage": self.text, **self.more,
        }  # fmt: skip

    def inline(self) -> dict[str, Any]:
        """As it stands in the answer to an array of documents."""
        return {"error": True, "errorNum": self.number, "errorMessage": self.text}


def not_implemented(what: str) -> ArangoError:
    return ArangoError(9, f"the test double does not implement {what}")
