"""`python -m adapters.arango_double --data FOLDER --port N`: the test double as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from pathlib import Path

from adapters.arango_double.faults import Plan, read_plan
from adapters.arango_double.server import ArangoDouble, serve


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m adapters.arango_double", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of its data; one process at a time")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8529)
    parser.add_argument("--password", help="of the user root; without it nobody is asked")
    parser.add_argument("--token-seconds", type=float, default=3600, help="how long a JWT holds")
    parser.add_argument("--faults", type=Path, help="plan of faults in YAML, see adapters/arango_double/faults.py")
    told = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        plan = read_plan(told.faults) if told.faults else Plan()
        double = ArangoDouble(told.data, password=told.password, token_s=told.token_seconds, plan=plan)
    except BlockingIOError:
        logging.getLogger(__name__).error("%s is held by another double: stop it, or take another folder", told.data)
        return 1
    except (ValueError, OSError) as bad:
        logging.getLogger(__name__).error("%s", bad)
        return 1
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(double):
        asyncio.run(serve(double, told.host, told.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
