"""A test double of an ArangoDB 3.12 server: not a database, a tool for tests and for trials without one.

It speaks the HTTP API that python-arango and our queries need, keeps what it answered through kill -9, and makes the
server's troubles on demand (`faults.py`). What it does is held to answers recorded from a real server 3.12.10
(`tests/adapters/test_arango_recordings.py`). What it does not know it refuses: 501 with errorNum 9, or the server's own
parse error, never a guess.

    python -m adapters.arango_double --data FOLDER --port 8529 [--faults PLAN.yaml] [--password SECRET]

Proved by it: requests, answers, errors, retries, idempotence. Not proved by it: speed, choice of indexes, lock
time-outs, clusters, intermediate commits. All documents are in memory.
"""
