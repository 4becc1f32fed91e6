"""Concurrent histories of the users API: recorded at a client, then judged.

`check` decides whether a history is linearizable: whether each operation can be given one instant between its
invocation and its answer, such that one client alone, doing them in that order, would have seen the same answers.

The object is an address. It holds at most one user, and a user never changes its address, so addresses are independent
of each other and a history is linearizable if it is for each of them. The state is None or (user, version, name), which
covers each user as a register with versions, the uniqueness of its address, and what joins the two: one search sees
more than one search for each would.

The search is Wing and Gong's with Lowe's memory of configurations. A write whose outcome is unknown may take effect at
any time after its invocation, or never. Nothing is cut off but orders that cannot succeed: see `_Search`.
"""

import asyncio
import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import orjson

USERS = "/api/v1/users"


class Kind(Enum):
    """What a client asked for."""

    CREATE = "POST"
    FIND = "FIND"
    GET = "GET"
    PATCH = "PATCH"
    DELETE = "DELETE"


class Fate(Enum):
    """What a client knows of an operation's effect."""

    ANSWERED = "answered"
    UNKNOWN = "unknown"  # a write that may take effect at any time from its invocation on, or never
    VOID = "void"  # certainly without effect, and nothing was seen


class Seen(NamedTuple):
    """A user as an answer shows it. What the answer does not show is None."""

    id: int
    version: int | None = None
    name: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: times in seconds of one monotonic clock, arguments, answer. Status 0: none came."""

    kind: Kind
    invoked: float
    returned: float
    status: int = 0
    address: str | None = None
    user_id: int | None = None
    name: str | None = None
    if_match: int | None = None
    seen: Seen | None = None
    client: int = 0
    problem: str = ""  # the problem's kind, or why no answer came

    @property
    def fate(self) -> Fate:
        """What the answer tells of the effect."""
        if self.status and self.status < 500:
            return Fate.ANSWERED
        # A 503 means that nothing was done, unless its type is outcome-unknown. After any other 5xx the outcome is
        # unknown too.
        undone = self.status == 503 and self.problem != "outcome-unknown"
        return Fate.VOID if undone or self.kind in (Kind.FIND, Kind.GET) else Fate.UNKNOWN

    @property
    def changes(self) -> bool:
        """Whether it changed something, or may have."""
        if self.kind in (Kind.FIND, Kind.GET):
            return False
        return self.status < 300 or self.fate is Fate.UNKNOWN

    def __str__(self) -> str:
        asked = [self.kind.value]
        asked += [] if self.user_id is None else [f"user {self.user_id}"]
        asked += [] if self.address is None else [self.address]
        asked += [] if self.name is None else [f"name={self.name}"]
        asked += [] if self.if_match is None else [f"If-Match {self.if_match}"]
        got = [str(self.status) if self.status else "no answer", self.problem]
        if self.seen is not None:
            user_id, version, name, _ = self.seen
            got.append(f"user {user_id} v{'?' if version is None else version} name={'?' if name is None else name}")
        elif self.kind is Kind.FIND and self.status == 200:
            got.append("nobody")
        return f"client {self.client:2}  {' '.join(asked):44} -> {' '.join(filter(None, got))}"


@dataclass(frozen=True, slots=True)
class Violation:
    """Operations of a history that no order explains."""

    reason: str
    operations: tuple[Operation, ...]

    def __str__(self) -> str:
        start = min((operation.invoked for operation in self.operations), default=0.0)
        lines = [
            f"  {1000 * (operation.invoked - start):9.3f} to {1000 * (operation.returned - start):9.3f} ms  {operation}"
            for operation in sorted(self.operations, key=_by_invocation)
        ]
        return "\n".join([self.reason, *lines])


def check(history: Iterable[Operation]) -> list[Violation]:
    """Everything that is wrong with a history; nothing if it is linearizable.

    Names tell the writes apart, so each that a history writes must be written once: ValueError where one is not. And
    an id must be known from an answer that shows the user as it was created, as an id that the server chose is.
    """
    history = list(history)
    operations = [operation for operation in history if operation.fate is not Fate.VOID]
    users, violations = _identify(operations)
    # Those without effect included: it is what they must not have had.
    writers = {operation.name: operation for operation in history if operation.name is not None}
    for address, cell in _by_address(operations, users).items():
        if (violation := _judge(address, cell, writers)) is not None:
            violations.append(violation)
    return violations


# Identities


class _User(NamedTuple):
    """A user by the name that it was created with: a create whose answer was lost has no id, but a name."""

    token: str
    address: str


class _Entry(NamedTuple):
    """An operation with the user that it is about."""

    operation: Operation
    token: str | None


def _identify(operations: Sequence[Operation]) -> tuple[dict[int, _User], list[Violation]]:
    """The user of each id, and what is wrong whatever the order: users from nowhere, twice, or at another address."""
    creates = _creates_by_name(operations)
    users: dict[int, _User] = {}
    ids: dict[str, int] = {}
    violations = []
    for operation in operations:
        seen = operation.seen
        if seen is None or seen.name is None or seen.name not in creates:
            continue
        user = users.setdefault(seen.id, _User(seen.name, _key(creates[seen.name].address)))
        if user.token != seen.name or ids.setdefault(seen.name, seen.id) != seen.id:
            violations.append(Violation("One create made two users, or two made one", (creates[seen.name], operation)))
    for operation in operations:
        if (fault := _fault(operation, users)) is not None:
            violations.append(Violation(fault, (operation,)))
    return users, violations


def _creates_by_name(operations: Sequence[Operation]) -> dict[str, Operation]:
    names: set[str] = set()
    creates: dict[str, Operation] = {}
    for operation in operations:
        if operation.kind not in (Kind.CREATE, Kind.PATCH):
            continue
        if operation.name is None or operation.name in names:
            raise ValueError(f"a history must write each name once: {operation}")
        names.add(operation.name)
        if operation.kind is Kind.CREATE:
            creates[operation.name] = operation
    return creates


def _fault(operation: Operation, users: Mapping[int, _User]) -> str | None:
    seen = operation.seen
    if seen is None:
        return None
    if operation.user_id not in (None, seen.id):
        return "The answer shows another user than was asked for"
    if seen.id not in users:
        return "The answer shows a user that nobody created"
    addresses = {_key(address) for address in (seen.email, operation.address) if address is not None}
    if addresses - {users[seen.id].address}:
        return "The answer shows a user at another address than it was created with"
    return None


def _key(address: str | None) -> str:
    assert address is not None, "a create without an address"
    return address.lower()


def _by_address(operations: Sequence[Operation], users: Mapping[int, _User]) -> dict[str, list[_Entry]]:
    """The operations of each address. What is about a user that was never there belongs to none, and is right."""
    cells: dict[str, list[_Entry]] = defaultdict(list)
    for operation in operations:
        user_id = operation.seen.id if operation.seen is not None else operation.user_id
        user = users.get(user_id) if user_id is not None else None
        if operation.kind is Kind.CREATE:
            cells[_key(operation.address)].append(_Entry(operation, operation.name))
        elif operation.kind is Kind.FIND:
            cells[_key(operation.address)].append(_Entry(operation, user and user.token))
        elif user is not None:
            cells[user.address].append(_Entry(operation, user.token))
    return cells


# One address


class _Holder(NamedTuple):
    """The user that holds an address."""

    token: str
    version: int
    name: str


_State = _Holder | None

_UNSEEN = "(never seen)"
"""Stands for every name that no answer shows: what wrote it cannot be told from the others of its kind."""


class _Impossible(Exception):
    """The operation cannot have been answered so in this state."""


def _apply(operation: Operation, token: str | None, name: str | None, state: _State) -> _State:
    """The state after an operation, `state` itself where it changes nothing. Raises _Impossible."""
    holds = state is not None and state.token == token
    match operation.kind, operation.status if operation.fate is Fate.ANSWERED else 0:
        case Kind.CREATE, 409:
            possible, after = state is not None, state
        case Kind.CREATE, 0 | 201:
            assert token is not None
            assert name is not None
            possible, after = state is None, _Holder(token, 1, name)
        case Kind.FIND, 200 if operation.seen is None:
            possible, after = state is None, state
        case Kind.FIND | Kind.GET, 200 | 304:
            possible, after = holds, state
        case Kind.GET | Kind.PATCH | Kind.DELETE, 404:
            possible, after = not holds, state
        case Kind.PATCH | Kind.DELETE, 412:
            possible = holds and state is not None and operation.if_match not in (None, state.version)
            after = state
        case Kind.PATCH, 0 | 200 if state is not None:
            assert name is not None
            possible = holds and operation.if_match in (None, state.version)
            after = _Holder(state.token, state.version + 1, name)
        case Kind.DELETE, 0 | 204 if state is not None:
            possible, after = holds and operation.if_match in (None, state.version), None
        case _:
            raise _Impossible
    if not possible or not _shows(operation.seen, after):
        raise _Impossible
    return after


def _shows(seen: Seen | None, state: _State) -> bool:
    if seen is None:
        return True
    return state is not None and seen.version in (None, state.version) and seen.name in (None, state.name)


class _Configuration(NamedTuple):
    """How far a search is: bit sets of the answered operations and of the unknown writes in place, and the state."""

    done: int
    used: int
    state: _State


class _Search:
    """Looks for an order of the operations on one address.

    What keeps it short leaves no order out that could succeed:

    - What changes nothing goes in place as soon as it fits: it would fit there in any order that it fits in later on.
    - A user leaves, and a version ends, only when every answer that shows it is in place: neither ever returns.
    - A version gets no other name than the answers show at it.
    - Of unknown writes that differ in nothing that anybody saw, the earliest goes first.
    - What is unknown about a user that is gone is forgotten: it can do nothing any more.
    """

    def __init__(self, entries: Iterable[_Entry]) -> None:
        ordered = sorted(entries, key=lambda entry: entry.operation.invoked)
        self._answered = [entry for entry in ordered if entry.operation.fate is Fate.ANSWERED]
        self._all = (1 << len(self._answered)) - 1
        self._name_at: dict[tuple[str, int], str] = {}
        self._version_of: dict[str, int] = {}
        # What clients saw. A user is seen if any answer is about it, even if none shows its first name.
        self._names = {token for operation, token in ordered if token is not None and operation.kind is not Kind.CREATE}
        # Bit sets of the answered operations that need a user, a version of it, or a name.
        self._need_user: dict[str, int] = defaultdict(int)
        self._need_version: dict[tuple[str, int], int] = defaultdict(int)
        self._need_name: dict[str, int] = defaultdict(int)
        for bit, entry in enumerate(self._answered):
            self._index(1 << bit, entry)
        self._unknown = [entry for entry in ordered if entry.operation.fate is Fate.UNKNOWN]
        self._groups = self._group_unknown()
        self._about: dict[str, int] = defaultdict(int)
        for bit, (operation, token) in enumerate(self._unknown):
            if operation.kind is not Kind.CREATE and token is not None:
                self._about[token] |= 1 << bit

    def _index(self, bit: int, entry: _Entry) -> None:
        operation, token = entry
        if token is None or operation.status in (404, 409):
            return
        self._need_user[token] |= bit
        if operation.seen is None:
            return
        _, version, name, _ = operation.seen
        if version is not None:
            self._need_version[token, version] |= bit
        if name is not None:
            self._names.add(name)
            self._need_name[name] |= bit
        if name is not None and version is not None:
            # A second name at one version, or a version at one name, is a contradiction that the search will run into.
            self._name_at.setdefault((token, version), name)
            self._version_of.setdefault(name, version)

    def _group_unknown(self) -> list[list[int]]:
        """The unknown writes that differ in nothing that was seen, each group in order of invocation."""
        groups: dict[object, list[int]] = defaultdict(list)
        for number, (operation, token) in enumerate(self._unknown):
            if operation.name in self._names:
                groups[number].append(number)
            else:
                user = None if operation.kind is Kind.CREATE else token
                groups[operation.kind, user, operation.if_match].append(number)
        return list(groups.values())

    def succeeds(self) -> bool:
        """Whether there is an order that explains every answer."""
        visited: set[_Configuration] = set()
        stack = [_Configuration(0, 0, None)]
        while stack:
            settled, horizon, writes = self._settle(stack.pop())
            if settled.done == self._all:
                return True
            if settled in visited:
                continue
            visited.add(settled)
            stack.extend(self._steps(settled, horizon, writes))
        return False

    def _settle(self, at: _Configuration) -> tuple[_Configuration, float, list[int]]:
        """Put in place what changes nothing; then by when the next operation must be, and which writes it may be."""
        done, state = at.done, at.state
        while True:
            before, horizon, writes = done, math.inf, []
            for number in range(_lowest_clear_bit(done), len(self._answered)):
                if done >> number & 1:
                    continue
                operation, token = self._answered[number]
                if operation.invoked > horizon:
                    break
                try:
                    same = _apply(operation, token, operation.name, state) == state
                except _Impossible:
                    same = False
                else:
                    if not same:
                        writes.append(number)
                if same:
                    done |= 1 << number
                else:
                    horizon = min(horizon, operation.returned)
            if done == before:
                return _Configuration(done, at.used, state), horizon, writes

    def _steps(self, at: _Configuration, horizon: float, writes: list[int]) -> Iterator[_Configuration]:
        """What may follow; the likeliest comes last, since the search goes on with that one."""
        for group in self._groups:
            number = next((number for number in group if not at.used >> number & 1), None)
            if number is not None and self._unknown[number].operation.invoked <= horizon:
                yield from self._unknown_step(at, number)
        for number in writes:
            operation, token = self._answered[number]
            bit = 1 << number
            after = _apply(operation, token, operation.name, at.state)
            if self._may_follow(at.state, after, at.done | bit):
                yield self._forget(at.state, _Configuration(at.done | bit, at.used, after))

    def _unknown_step(self, at: _Configuration, number: int) -> Iterator[_Configuration]:
        operation, token = self._unknown[number]
        seen = operation.name in self._names
        name = operation.name if seen else _UNSEEN
        if operation.kind is Kind.CREATE and not seen:
            token = _UNSEEN
        try:
            after = _apply(operation, token, name, at.state)
        except _Impossible:
            return
        if self._may_follow(at.state, after, at.done):
            yield self._forget(at.state, _Configuration(at.done, at.used | 1 << number, after))

    def _may_follow(self, before: _State, after: _State, done: int) -> bool:
        if before is not None:
            needed = self._need_version.get(before[:2], 0) | self._need_name.get(before.name, 0)
            if after is None:
                needed |= self._need_user.get(before.token, 0)
            if needed & ~done:
                return False
        if after is None:
            return True
        expected = self._name_at.get((after.token, after.version), after.name)
        return expected == after.name and self._version_of.get(after.name, after.version) == after.version

    def _forget(self, before: _State, after: _Configuration) -> _Configuration:
        if before is None or after.state is not None:
            return after
        return after._replace(used=after.used & ~self._about.get(before.token, 0))


def _lowest_clear_bit(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1


# The report

_SHOWN = 40


def _judge(address: str, entries: list[_Entry], writers: Mapping[str, Operation]) -> Violation | None:
    if _Search(entries).succeeds():
        return None
    ends = sorted(entry.operation.returned for entry in entries if entry.operation.fate is Fate.ANSWERED)
    # What goes wrong stays wrong, so the first answer that went wrong can be found by halving.
    end = ends[bisect_left(ends, True, key=lambda end: not _Search(_until(entries, end)).succeeds())]
    culprit = next(entry for entry in entries if entry.operation.returned == end)
    operations = [
        entry.operation
        for entry in _without_bystanders(_until(entries, end))
        # If the violation is about one user, earlier and later users of the address do not matter.
        if culprit.operation.kind is Kind.CREATE or culprit.token in (None, entry.token)
    ]
    # What wrote the name that was seen changed nothing, as its client was told; and that may be what went wrong.
    seen = culprit.operation.seen
    writer = writers.get(seen.name) if seen is not None and seen.name is not None else None
    if writer is not None and writer.name not in {operation.name for operation in operations}:
        operations.append(writer)
    operations.sort(key=lambda operation: min(operation.returned, end))
    hidden = f" (the last {_SHOWN} of {len(operations)})" if len(operations) > _SHOWN else ""
    reason = f"{address}: up to this answer some order explains every answer, with it none does{hidden}:"
    return Violation(f"{reason}\n  {culprit.operation}", tuple(operations[-_SHOWN:]))


def _until(entries: Iterable[_Entry], end: float) -> list[_Entry]:
    """What a history was at an instant: whatever had no answer yet may or may not have happened."""
    prefix = []
    for entry in entries:
        operation = entry.operation
        if operation.invoked > end:
            continue
        if operation.returned <= end:
            prefix.append(entry)
        elif operation.changes:
            prefix.append(entry._replace(operation=replace(operation, status=0, returned=math.inf, seen=None)))
    return prefix


def _without_bystanders(entries: list[_Entry]) -> list[_Entry]:
    """Leave out what changed nothing and is not needed to show the fault: larger pieces first, then smaller ones."""
    size = max(1, len(entries) // 2)
    while True:
        start = 0
        while start < len(entries):
            piece = entries[start : start + size]
            kept = [entry for entry in piece if entry.operation.changes]
            fewer = entries[:start] + kept + entries[start + size :]
            if len(kept) < len(piece) and not _Search(fewer).succeeds():
                entries = fewer
                start += len(kept)
            else:
                start += size
        if size == 1:
            return entries
        size //= 2


def _by_invocation(operation: Operation) -> float:
    return operation.invoked


# The recorder


class Answer(NamedTuple):
    """An HTTP answer; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


PATIENCE_SECONDS = 60
"""How long a client waits for an answer: longer than the service takes for one with its default settings."""

TIMED_OUT = "timed out"
"""Why no answer came, where the connection stayed."""


class Connection:
    """One keep-alive HTTP/1.1 connection: no more than the recorder needs, and several times as fast as httpx."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname, parts.port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str], *, hang_up: bool = False
    ) -> Answer:
        """Send a request and read its answer, or hang up before it. Raises OSError or EOFError where none came.

        TimeoutError, which is an OSError, where none came within PATIENCE_SECONDS.
        """
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # It was idle, and the server has closed it.
        reader, writer = self._streams = self._streams or await asyncio.open_connection(self._host, self._port)
        lines = [f"{method} {target} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            if hang_up:
                await writer.drain()
                raise ConnectionAbortedError
            async with asyncio.timeout(PATIENCE_SECONDS):
                answer = await _read_answer(reader)
        except (OSError, EOFError):
            self.close()
            raise
        if answer.headers.get("connection") == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def aclose(self) -> None:
        """Close the connection and wait until it is."""
        if self._streams is not None:
            self._streams[1].close()
            with suppress(OSError):
                await self._streams[1].wait_closed()


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(head[0].split(" ")[1]), headers, body)


class Recorder:
    """The operations of many clients, in order of their ends."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.operations: list[Operation] = []
        self.slowest: tuple[float, Operation | None] = 0.0, None
        """The operation that took longest, and its seconds, whether or not an answer came."""
        self.clock = clock

    def add(self, operation: Operation, seconds: float) -> None:
        """Keep an operation that took so long."""
        self.operations.append(operation)
        if seconds > self.slowest[0]:
            self.slowest = seconds, operation

    @asynccontextmanager
    async def client(self, base_url: str, number: int) -> AsyncIterator["Client"]:
        """A client that records what it does here."""
        connection = Connection(base_url)
        try:
            yield Client(self, connection, number)
        finally:
            await connection.aclose()


class Client:
    """Does one operation at a time and records each. With `hang_up` it does not wait for the answer."""

    def __init__(self, recorder: Recorder, connection: Connection, number: int) -> None:
        self._recorder = recorder
        self._connection = connection
        self._number = number

    async def create(self, address: str, name: str, *, hang_up: bool = False) -> Operation:
        """POST."""
        asked = Operation(Kind.CREATE, 0, 0, address=address, name=name)
        return await self._do(asked, USERS, {"email": address, "name": name}, hang_up=hang_up)

    async def find(self, address: str) -> Operation:
        """GET by address."""
        return await self._do(Operation(Kind.FIND, 0, 0, address=address), f"{USERS}?email={quote(address)}")

    async def get(self, user_id: int, if_none_match: int | None = None) -> Operation:
        """GET by id."""
        headers = {} if if_none_match is None else {"if-none-match": f'"{if_none_match}"'}
        return await self._do(Operation(Kind.GET, 0, 0, user_id=user_id), f"{USERS}/{user_id}", headers=headers)

    async def patch(self, user_id: int, name: str, if_match: int | None = None, *, hang_up: bool = False) -> Operation:
        """PATCH of the name."""
        asked = Operation(Kind.PATCH, 0, 0, user_id=user_id, name=name, if_match=if_match)
        return await self._do(asked, f"{USERS}/{user_id}", {"name": name}, _condition(if_match), hang_up=hang_up)

    async def delete(self, user_id: int, if_match: int | None = None, *, hang_up: bool = False) -> Operation:
        """DELETE."""
        asked = Operation(Kind.DELETE, 0, 0, user_id=user_id, if_match=if_match)
        return await self._do(asked, f"{USERS}/{user_id}", None, _condition(if_match), hang_up=hang_up)

    async def _do(
        self,
        asked: Operation,
        target: str,
        document: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        hang_up: bool = False,
    ) -> Operation:
        method = "GET" if asked.kind is Kind.FIND else asked.kind.value
        body = b"" if document is None else orjson.dumps(document)
        headers = {"content-type": "application/json", **(headers or {})}
        invoked = self._recorder.clock()
        try:
            answer = await self._connection.request(method, target, body, headers, hang_up=hang_up)
        except (OSError, EOFError) as error:
            reason = TIMED_OUT if isinstance(error, TimeoutError) else "hung up" if hang_up else "connection lost"
            done = replace(asked, invoked=invoked, returned=math.inf, client=self._number, problem=reason)
            returned = self._recorder.clock()
        else:
            returned = self._recorder.clock()
            done = replace(_read(asked, answer), invoked=invoked, returned=returned, client=self._number)
        self._recorder.add(done, returned - invoked)
        return done


def _condition(if_match: int | None) -> dict[str, str]:
    return {} if if_match is None else {"if-match": f'"{if_match}"'}


def _read(asked: Operation, answer: Answer) -> Operation:
    """The operation with what its answer shows."""
    version = int(answer.headers["etag"].strip('"')) if "etag" in answer.headers else None
    if answer.status >= 400:
        if answer.headers.get("content-type") != "application/problem+json":
            return replace(asked, status=answer.status, problem="not a problem+json")
        kind = orjson.loads(answer.body)["type"].rpartition(":")[2]
        return replace(asked, status=answer.status, problem=kind)
    if answer.status == 304:
        assert asked.user_id is not None
        return replace(asked, status=304, seen=Seen(asked.user_id, version))
    if answer.status == 204:
        return replace(asked, status=204)
    document = orjson.loads(answer.body)
    if asked.kind is Kind.FIND:
        if not document:
            return replace(asked, status=200)
        assert len(document) == 1, f"more than one user at {asked.address}"
        document = document[0]
    return replace(asked, status=answer.status, seen=Seen(document["id"], version, document["name"], document["email"]))
