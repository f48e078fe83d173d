"""Every call the worker answers; importing this module declares them all.

    POST /queues/start                     a `start` command: 202 {status, queue_id, ids}
    POST /queues/stop                      {queue_id}: 202 {status: "stopping"}
    POST /commands                         any other command: 202, its answer comes as an event
    GET  /queues, /queues/list             runs, newest first                                    ?state &limit &after
    GET  /queues/{id}                      state, steps, progress
    GET  /queues/{id}/events               events in order                                       ?after &limit
    GET  /queues/{id}/report               what came of it
    GET  /candles/{symbol}/{interval}      newest last; JSON or Arrow                            ?start &end &limit
    GET  /trades/{symbol}                  the same
    GET  /coverage, /coverage/{stream}     what is stored, missing, unrecoverable                ?start &end
    GET  /book/{symbol}                    the order book as it was last seen                    ?venue
    GET  /streams                          health of what comes live
    GET  /dead-letters                     the newest ones                                       ?limit
    GET  /models, /models/{name}/{version} trained models                                        ?start &end &limit
    GET  /tables, /tables/{name}[/{key}]   the Faust tables                                      ?limit &after
    GET  /health/live, /ready, /startup    200, or 503 with what is missing
    GET  /metrics, /status                 Prometheus text; what the page needs to know
    WS   /ws/queues, /ws/topic/{topic}     one JSON frame per record
    WS   /ws/market                        a symbol live: trades, book, candles, states          ?symbol &venue
    GET  /, /dashboard                     the pages: runs and reports; the market live

Changing calls want the bearer token wherever one is set (`app/auth.py`). Every error is `{"error": sentence}`, with the
`field` at fault where there is one: 422 for what cannot be read or granted, 404 for what is unknown, 503 while the
tables are recovered.
"""

from typing import Any, cast

from app.core import app
from app.web import health, live, market, page, queues, rows, stored, tail
from app.web.guard import guard

cast(Any, app.web).web_app.middlewares.append(guard)

VIEWS = (health, live, market, page, queues, rows, stored, tail)
