"""What holds for the whole suite: on a CI machine a test is not skipped for want of a tool.

A skip says which tool is missing, and pytest prints it (`-ra`). With CI=true such a skip is a failure, because there
the machine is ours to equip. The one thing a clone may lack anywhere is the recorded market data, RECORDED_DATA.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from adapters.kafka import local
from tests.arango import arango  # noqa: F401 -- a fixture for every test
from tests.browser import browser, page  # noqa: F401 -- fixtures for every test
from tests.kafka import kafka, kafka_cluster, kafka_tools  # noqa: F401 -- fixtures for every test
from tests.processes import broker, start_exchange, start_worker  # noqa: F401 -- fixtures for every test

# Every process of a test would compile all it imports, again and again: half of the time it takes to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Brokers of processes that test at the same time choose from different ports.
share = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
local.PORTS = local.PORTS[share :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]

# Hypothesis without a clock: a busy machine is no defect of the code.
settings.register_profile("streamforge", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("streamforge")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--arango-url", default="", help="http://USER@HOST:PORT of a real ArangoDB for its tests")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _no_skip_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _no_skip_in_ci(report)
    return report


def _no_skip_in_ci(report: Any) -> None:
    if os.environ.get("CI") != "true" or report.outcome != "skipped":
        return
    *_, reason = report.longrepr if isinstance(report.longrepr, tuple) else (report.longrepr,)
    if "RECORDED_DATA" not in str(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped with CI=true ({reason}): .ci/run has to install what is missing"
