"""One `mpirun` for all tests of the same number of ranks.

A start costs more than most of these tests do: every rank imports PyTorch and collects the tests.
So they run in one start for each number of ranks, before all other tests, and are reported when it
is their turn. A test that did not report from every rank, because it or one before it ended a rank
or kept it waiting, runs again in a start of its own, by pytest-isolate-mpi.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

REPORTS = "HESSDIST_TEST_REPORTS"
"""The environment variable that names the folder in which each rank writes its reports."""


class OneStart:
    """Starts the ranks, and gives out what they report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._reports: dict[str, list[pytest.TestReport]] = {}  # by the test's name

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Run the tests of several ranks, unless the user wants each by itself."""
        options = self._config.option
        beside_others = getattr(options, "tx", None) or hasattr(
            self._config, "workerinput"
        )  # pytest-xdist
        if options.collectonly or options.no_mpi_isolation or beside_others:
            return
        names = defaultdict(list)
        for item in session.items:
            if item.get_closest_marker("mpi") and not item.get_closest_marker("slow"):
                names[item.callspec.params["mpi_ranks"]].append(item.nodeid)
        for ranks, tests in sorted(names.items()):
            if len(tests) > 1:
                self._start(ranks, tests)

    def _start(self, ranks: int, tests: list[str]) -> None:
        # A collective that never ends returns to no handler of signals: a thread has to end it.
        limit = ("--timeout", "240", "--timeout-method", "thread")
        with TemporaryDirectory() as folder:
            subprocess.run(
                ["mpirun", "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "pytest",
                 "--no-mpi-isolation", "-p", "no:cacheprovider", "-m", "", *limit, *tests],
                env={**os.environ, REPORTS: folder}, cwd=self._config.rootpath,
                capture_output=True, check=False,
            )  # fmt: skip
            for rank in range(ranks):
                self._read(Path(folder, str(rank)), rank)
        for name in tests:
            ended = [report.when for report in self._reports.get(name, ())].count("teardown")
            if ended < ranks:
                self._reports.pop(name, None)

    def _read(self, path: Path, rank: int) -> None:
        for line in path.read_text().splitlines() if path.exists() else ():
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            if report.skipped and isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)  # JSON has no tuples
            self._reports.setdefault(report.nodeid, []).append(report)
            report.nodeid = f"{report.nodeid}[rank={rank}]"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Report a test that has run; leave others to pytest-isolate-mpi and to pytest."""
        reports = self._reports.pop(item.nodeid, None)
        if reports is None:
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(nextitem)  # what tests of this file have in common
        return True


class OneOfTheRanks:
    """Writes the reports of this rank, and begins each test together with the other ranks."""

    def __init__(self, config: pytest.Config) -> None:
        from mpi4py import MPI

        self._config = config
        self._comm = MPI.COMM_WORLD.Dup()  # tests have collectives of their own on the other one
        self._path = Path(os.environ[REPORTS], str(self._comm.rank))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a report."""
        data: dict[str, Any] = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report
        )
        with self._path.open("a") as file:
            file.write(json.dumps(data) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        """Wait for the others; if they do not come, they wait within the test for this rank."""
        result = yield
        all_here, end = self._comm.Ibarrier(), time.monotonic() + 60
        while not all_here.Test():
            if time.monotonic() > end:
                self._comm.Abort(1)
            time.sleep(0.002)
        return result


def register(config: pytest.Config) -> None:
    """Take part as the process that starts the ranks, or as one of them."""
    part = OneOfTheRanks if REPORTS in os.environ else OneStart
    config.pluginmanager.register(part(config))
