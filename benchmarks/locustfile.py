"""A realistic mix against any host: 70 get, 15 list, 10 create, 4 patch, 1 delete; a few users get most requests.

    pip install 'users-api[bench]'
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000                       with a web page on port 8089
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --headless \
           --users 100 --spawn-rate 20 --run-time 60s --processes 2                       without, on two cores
    API_KEY=… locust -f benchmarks/locustfile.py --host https://users.example.com         if it needs an API key

At start it reads ids from the list; if there are none, it creates some. It deletes only users that it has created.

Each visitor has one request due every INTERVAL_SECONDS (1), however long the last answer took. Times count from when a
request was due, so they include the wait for the answers before it: 100 visitors offer 100 requests a second, and if
the server stalls, the percentiles show it. INTERVAL_SECONDS=0 sends the next request when the last one was answered:
that is the most that the visitors can do, and its percentiles hide such waiting.

Locust itself is the limit beyond one or two thousand requests a second and core: `benchmarks.run` measures the capacity
of a server with wrk, while this simulates people.
"""

import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import deque

from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner

USERS = "/api/v1/users/"
ONE_USER = "/api/v1/users/[id]"  # the name of every path of one user in the report
PAGE = 100
WANTED_IDS = 1000
SEEDS = 20
INTERVAL_SECONDS = float(os.environ.get("INTERVAL_SECONDS", "1"))
"""Time between two requests of a visitor, in seconds; 0 sends the next one when the last was answered."""
HEADERS = {"Authorization": f"Bearer {os.environ['API_KEY']}"} if os.environ.get("API_KEY") else {}


@events.init.add_listener  # type: ignore[untyped-decorator]
def check_host(environment: Environment, **_: object) -> None:
    """End in one line if the host does not answer, or asks for a key: otherwise every request would be a failure."""
    if environment.host is None or environment.web_ui or isinstance(environment.runner, WorkerRunner):
        return  # The page may name another host, and a worker's master has checked.
    request = urllib.request.Request(f"{environment.host}{USERS}?limit=1", headers=HEADERS)
    try:
        with urllib.request.urlopen(request, timeout=30):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code not in (401, 403):
            return  # The report shows it.
        reason = "refuses the key in API_KEY" if HEADERS else "asks for a key: set API_KEY (`users-api key` makes one)"
    except OSError as error:
        reason = f"does not answer ({getattr(error, 'reason', error)}): is it served?"
    sys.exit(f"locustfile: {environment.host} {reason}")


class Visitor(FastHttpUser):
    """One client with a keep-alive connection of its own."""

    known_ids: list[int] = []  # noqa: RUF012 - the visitors of a process share what the first one found
    finding = threading.Lock()  # gevent's lock, by which locust replaces it

    def on_start(self) -> None:
        """Find the ids of users."""
        self.counts_from: float | None = None
        if HEADERS:
            self.client.auth_header = HEADERS["Authorization"]
        self.created: deque[int] = deque(maxlen=10_000)
        with self.finding:
            if not self.known_ids:
                self._find_ids()
        if not self.known_ids:
            raise StopUser  # the report shows the answers of the host
        self.due = time.perf_counter()
        self.counts_from = self.due

    def wait_time(self) -> float:
        """Return the seconds until the next request is due: 0 if it is late."""
        now = time.perf_counter()
        self.due = self.due + INTERVAL_SECONDS if INTERVAL_SECONDS else now
        self.counts_from = self.due
        return max(0.0, self.due - now)

    def _count_from_due(self, answer: ResponseContextManager) -> None:
        """Report the time since the request was due, or since the last answer if a task sends two."""
        now = time.perf_counter()
        if INTERVAL_SECONDS and self.counts_from is not None:
            answer.request_meta["response_time"] = (now - self.counts_from) * 1000
            self.counts_from = now

    def _find_ids(self) -> None:
        after = 0
        while len(self.known_ids) < WANTED_IDS:
            with self._list(after) as answer:
                self._count_from_due(answer)
                page = answer.json() if answer.status_code == 200 else []
            # A service without `after` answers with its first page again.
            new = [user["id"] for user in page if user["id"] > after]
            self.known_ids.extend(new)
            if len(new) < PAGE:
                break
            after = new[-1]
        while len(self.known_ids) < SEEDS:
            created = self._create()
            if created is None:
                break
            self.known_ids.append(created)

    def _list(self, after: int) -> ResponseContextManager:
        path = f"{USERS}?limit={PAGE}&after={after}"
        return self.client.get(path, name=f"{USERS}?limit&after", catch_response=True)

    def _create(self) -> int | None:
        """Create a user; return its id, or None if that failed."""
        body = {"email": f"visitor-{uuid.uuid4().hex}@example.com", "name": "Visitor"}
        with self.client.post(USERS, json=body, catch_response=True) as answer:
            self._count_from_due(answer)
            if answer.status_code != 201:
                return None
            user_id: int = answer.json()["id"]
            return user_id

    def _any_id(self) -> int:
        # The density falls as 1/rank (Zipf): a few users get many requests, most hardly any.
        rank = int((len(self.known_ids) + 1) ** random.random()) - 1
        return self.known_ids[min(rank, len(self.known_ids) - 1)]

    @task(70)
    def get_user(self) -> None:
        """Read one user."""
        with self.client.get(f"{USERS}{self._any_id()}", name=ONE_USER, catch_response=True) as answer:
            self._count_from_due(answer)
            if answer.status_code == 404:  # another visitor has created and deleted it
                answer.success()

    @task(15)
    def list_users(self) -> None:
        """Read one page."""
        with self._list(self._any_id()) as answer:
            self._count_from_due(answer)

    @task(10)
    def create_user(self) -> None:
        """Create a user."""
        created = self._create()
        if created is not None:
            self.created.append(created)

    @task(4)
    def rename_user(self) -> None:
        """Change a user."""
        body = {"name": f"Renamed {random.randrange(1_000_000)}"}
        with self.client.patch(f"{USERS}{self._any_id()}", name=ONE_USER, json=body, catch_response=True) as answer:
            self._count_from_due(answer)
            if answer.status_code == 404:
                answer.success()

    @task(1)
    def delete_user(self) -> None:
        """Delete a user that this visitor created."""
        if not self.created:
            self.create_user()
        if self.created:
            path = f"{USERS}{self.created.popleft()}"
            with self.client.delete(path, name=ONE_USER, catch_response=True) as answer:
                self._count_from_due(answer)
