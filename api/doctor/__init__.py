"""`users-api doctor`: examines both URLs step by step, in the order in which a connection needs them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from api.database.faults import DATABASE_ERRORS, classify
from api.doctor.connection import ConnectionChecks
from api.doctor.findings import Finding, Step, green, red, skipped, yellow
from api.doctor.network import HostChecks
from api.doctor.session import check_statement_timeout, check_time_zone, check_transactions
from api.errors import describe
from api.neon.drivers import DatabaseURL
from api.settings import Settings

Report = Callable[[str, str, Step | None], None]
"""Called with the variable and the name of each step twice: with None when it begins, with the step when it ends."""

_UNREACHABLE = "check the host, the port, firewalls and Neon's IP allow list; --timeout waits longer"
_UNKNOWN = "run it again; if it fails again, see the server's log"
_STUCK = "look for locks, an overloaded server, or a stopped one behind the pooler; --timeout waits longer"


async def examine(settings: Settings, *, replicas: int, workers: int, time_limit: float, report: Report) -> list[Step]:
    """Run every step for DATABASE_URL, then for DIRECT_URL; each has `time_limit` seconds for all of its steps.

    It only reads, and leaves nothing behind. A failure of the database or the network is a red step, not an exception.
    Raises SettingsError if DATABASE_URL is not set. Without DIRECT_URL what needs it is skipped.
    """
    pooled = ConnectionChecks(settings.pooled)
    direct = ConnectionChecks(settings.direct) if settings.direct_url is not None else None
    try:
        first = _Steps("DATABASE_URL", pooled, time_limit, report)
        await first.reach()
        await first.take("pooling", lambda: _check_pooled(pooled, direct))
        await first.take(
            "prepared statements",
            lambda: pooled.check_prepared_statements(settings.statement_cache_size),
            skip=pooled.pooled is None and "needs pooling",
        )
        await first.take("TimeZone", lambda: check_time_zone(pooled.first))
        await first.take("transactions", lambda: check_transactions(pooled.first))
        await first.take(
            "statement_timeout", lambda: check_statement_timeout(pooled.first, settings.statement_timeout_seconds)
        )
        await first.take("statements", pooled.check_statements)
        await first.take("constraints", pooled.check_constraints)
        await first.take("connections", lambda: pooled.check_connections(replicas, workers, settings.pool_max_size))
        await first.take("round trip", pooled.check_round_trip)

        second = _Steps("DIRECT_URL", direct or pooled, time_limit, report)
        if direct is None:
            await second.take("URL", pooled.check_server, skip="not set: `users-api migrate` asks for it")
        else:
            await _examine_direct(second, pooled, direct, first.ended_at)
        return [*first.taken, *second.taken]
    finally:
        await asyncio.gather(*(each.close() for each in (pooled, direct) if each))


async def _examine_direct(
    steps: "_Steps", pooled: ConnectionChecks, direct: ConnectionChecks, pooled_ended_at: str | None
) -> None:
    await steps.reach()
    await steps.take(
        "same database",
        lambda: _check_same(pooled, direct),
        skip=pooled_ended_at and f"needs {pooled_ended_at} of DATABASE_URL",
    )
    await steps.take("pooling", lambda: _check_direct(pooled, direct))
    await steps.take("TimeZone", lambda: check_time_zone(direct.first))
    await steps.take("transactions", lambda: check_transactions(direct.first))
    await steps.take("statement_timeout", lambda: check_statement_timeout(direct.first, None))
    await steps.take("migrations", direct.check_migrations)
    await steps.take("round trip", direct.check_round_trip)


class _Steps:
    """The steps of one URL, run in order until one fails that the others need, or until the time is up."""

    def __init__(self, variable: str, connection: ConnectionChecks, time_limit: float, report: Report) -> None:
        self._variable = variable
        self._connection = connection
        self._deadline = asyncio.get_running_loop().time() + time_limit
        self._report = report
        self.taken: list[Step] = []
        self.ended_at: str | None = None  # the step after which no other can be tried

    async def reach(self) -> None:
        """Run the steps that all others need: the network to each host, which asyncpg tries in turn, and the login."""
        url = self._connection.url
        await self.take("URL", lambda: _read_notes(url))
        alone = len(url.hosts) == 1
        for host, port in url.hosts:
            host_checks = HostChecks(url, host, port)
            try:
                for step, check in host_checks.all():
                    if not await self.take(step, check, needed=alone, spare=not alone) and not alone:
                        break
            finally:
                host_checks.close()
        await self.take("authentication", lambda: self._connection.authenticate(self._deadline), needed=True)
        await self.take("server", self._connection.check_server)

    async def take(
        self,
        name: str,
        check: Callable[[], Awaitable[Finding]],
        *,
        needed: bool = False,
        spare: bool = False,
        skip: str | Literal[False] | None = None,
    ) -> bool:
        """Run one check and record its finding; return True if that is green or yellow.

        `needed`: if it is red, the steps after it are skipped. `spare`: other hosts can replace this one, so it is
        yellow at worst. `skip`: the reason to skip the check, if there is one.
        """
        self._report(self._variable, name, None)
        started = time.perf_counter()
        if reason := skip if self.ended_at is None else f"needs {self.ended_at}":
            finding = skipped(reason)
        else:
            finding = await self._run(name, check, _UNREACHABLE if needed or spare else _STUCK)
        passed = finding.status in ("green", "yellow")
        if finding.status == "red" and spare and self.ended_at is None:
            finding = yellow(f"{finding.detail}; other hosts are tried", finding.remedy or "")
        elif finding.status == "red" and (needed or self._connection.lost):
            self.ended_at = name
        milliseconds = None if finding.status == "skipped" else round(1000 * (time.perf_counter() - started), 2)
        step = Step(self._variable, name, finding.status, milliseconds, finding.detail, finding.remedy)
        self.taken.append(step)
        self._report(self._variable, name, step)
        return passed

    async def _run(self, name: str, check: Callable[[], Awaitable[Finding]], silence_remedy: str) -> Finding:
        started = time.perf_counter()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await check()
        except TimeoutError:
            self.ended_at = name
            return red(f"no answer within {time.perf_counter() - started:.1f} s", silence_remedy)
        except DATABASE_ERRORS as error:
            return red(describe(error), classify(error).remedy or _UNKNOWN)


async def _read_notes(url: DatabaseURL) -> Finding:
    return green("; ".join(url.notes) or "every part of it is used")


async def _check_pooled(pooled: ConnectionChecks, direct: ConnectionChecks | None) -> Finding:
    evidence = await pooled.find_pooling()
    if pooled.pooled:
        return green(f"pooled: {evidence}")
    neon = pooled.url.hosts[0][0].endswith(".neon.tech")
    if neon or pooled.url.pooled or (direct and pooled.url.hosts != direct.url.hosts):
        return yellow(f"direct: {evidence}", "use the URL of the pooler: Neon's has -pooler in its host")
    if direct is None:
        return green(f"direct: {evidence}")
    return green(f"direct: {evidence}; both URLs name one server without a pooler")


async def _check_direct(pooled: ConnectionChecks, direct: ConnectionChecks) -> Finding:
    evidence = await direct.find_pooling()
    if direct.pooled and pooled.pooled is False:
        return red(f"pooled: {evidence}, and DATABASE_URL is direct", "swap the values of DATABASE_URL and DIRECT_URL")
    if direct.pooled:
        return red(
            f"pooled: {evidence}, and migrations need a session",
            "use the URL without the pooler: Neon's has no -pooler in its host",
        )
    if direct.url.pooled:
        return red(
            f"direct: {evidence}, but its host's name ends with -pooler, which users-api migrate refuses",
            "name the host otherwise in DIRECT_URL",
        )
    return green(f"direct: {evidence}")


async def _check_same(pooled: ConnectionChecks, direct: ConnectionChecks) -> Finding:
    if await pooled.fingerprint() == await direct.fingerprint():
        return green("both URLs lead to one database")
    return red(
        "the two URLs lead to different databases", "copy both URLs of the same branch and database from Neon's console"
    )
