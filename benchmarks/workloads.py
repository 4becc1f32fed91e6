"""The workloads: one wrk script each."""

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "lua"


@dataclass(frozen=True)
class Workload:
    """One kind of load. Every system serves it from the same seeded table."""

    name: str
    title: str
    writes: bool = False
    page_size: int = 100  # users in a page, if pages are read
    rows: int = 100_000  # users in the table when it begins
    max_seconds: int = 60  # the time that the rows last at the rates of one machine

    @property
    def script(self) -> Path:
        """The wrk script; it takes the arguments rows, first, seed, page size."""
        return SCRIPTS / f"{self.name.partition('-')[0]}.lua"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("get", "GET by id"),
        Workload("list", "list of 100"),
        Workload("create", "POST", writes=True),
        Workload("patch", "PATCH", writes=True),
        Workload("delete", "DELETE", writes=True, rows=300_000, max_seconds=4),
        Workload("mix", "mix: 70 get, 15 list, 10 create, 4 patch, 1 delete", writes=True),
    )
}


def list_workload(page_size: int) -> Workload:
    """Return the list workload with another page size."""
    return Workload(f"list-{page_size}", f"list of {page_size}", page_size=page_size)
