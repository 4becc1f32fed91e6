"""A realistic mix against any host: 70 get, 15 list, 10 create, 4 patch, 1 delete; a few users get most requests.

    pip install 'users-api[bench]'
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000                       with a web page on port 8089
    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --headless \
           --users 100 --spawn-rate 20 --run-time 60s --processes 2                       without, on two cores
    API_KEY=… locust -f benchmarks/locustfile.py --host https://users.example.com         if it needs an API key

At start it reads ids from the list; if there are none, it creates some. It deletes only users that it has created.
THINK_SECONDS=1 makes visitors pause. Locust itself is the limit beyond one or two thousand requests a second and core:
`benchmarks.run` measures the capacity of a server with wrk, while this simulates people.
"""

import os
import random
import threading
import uuid
from collections import deque

from locust import FastHttpUser, between, task
from locust.contrib.fasthttp import ResponseContextManager
from locust.exception import StopUser

USERS = "/api/v1/users/"
ONE_USER = "/api/v1/users/[id]"  # the name of every path of one user in the report
PAGE = 100
WANTED_IDS = 1000
SEEDS = 20
THINK_SECONDS = float(os.environ.get("THINK_SECONDS", "0"))
"""Mean pause of a visitor between two requests, in seconds; 0 sends the next one at once."""


class Visitor(FastHttpUser):
    """One client with a keep-alive connection of its own."""

    wait_time = between(THINK_SECONDS / 2, THINK_SECONDS * 3 / 2)
    known_ids: list[int] = []  # noqa: RUF012 - the visitors of a process share what the first one found
    finding = threading.Lock()  # gevent's lock, by which locust replaces it

    def on_start(self) -> None:
        """Find the ids of users."""
        key = os.environ.get("API_KEY")
        if key:
            self.client.auth_header = f"Bearer {key}"
        self.created: deque[int] = deque(maxlen=10_000)
        with self.finding:
            if not self.known_ids:
                self._find_ids()
        if not self.known_ids:
            raise StopUser  # the report shows the answers of the host

    def _find_ids(self) -> None:
        after = 0
        while len(self.known_ids) < WANTED_IDS:
            with self._list(after) as answer:
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
            if answer.status_code == 404:  # another visitor has created and deleted it
                answer.success()

    @task(15)
    def list_users(self) -> None:
        """Read one page."""
        with self._list(self._any_id()):
            pass

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
            if answer.status_code == 404:
                answer.success()

    @task(1)
    def delete_user(self) -> None:
        """Delete a user that this visitor created."""
        if not self.created:
            self.create_user()
        if self.created:
            self.client.delete(f"{USERS}{self.created.popleft()}", name=ONE_USER)
