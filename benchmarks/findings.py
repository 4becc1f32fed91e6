"""The findings of a torture run, as JSON, Markdown and a chart."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.charts import Axis, Panel, line_chart
from benchmarks.machine import summarise
from benchmarks.tables import table
from tests.support.history import PATIENCE_SECONDS, TIMED_OUT, Fate, Kind, Operation, Violation

# In five minutes without an outage: 50,000 operations, and every kind of fault injection 20 times.
OPERATIONS_A_MINUTE = 10_000
INJECTIONS_A_MINUTE = 4
RECOVERY_SECONDS = 2.0
_SHOWN = 3


@dataclass(frozen=True)
class Findings:
    """The history of a run, its fault injections by kind, and its violations. `start` is in seconds of its clock."""

    start: float
    seconds: float
    history: list[Operation]
    injections: dict[str, int]
    violations: list[Violation]
    slowest: tuple[float, Operation | None]  # seconds, and the operation that took them
    errors: list[str]  # lines of the service's log
    outages: Sequence[tuple[float, float]] = ()  # when each began and ended

    @property
    def is_good(self) -> bool:
        """True if nothing was violated, no fault injection showed as a bug, and each outage was over at once."""
        return not self.violations and not self.failed and max(self.recoveries, default=0.0) < RECOVERY_SECONDS

    @property
    def failed(self) -> int:
        """The number of operations that were answered with 500, or not at all on an open connection."""
        return sum(operation.status == 500 or operation.problem == TIMED_OUT for operation in self.history)

    @property
    def recoveries(self) -> list[float]:
        """The seconds from the end of each outage to the first answer that is no refusal."""
        answers = sorted(operation.returned for operation in self.history if operation.fate is Fate.ANSWERED)
        return [next((at - ended for at in answers if at >= ended), math.inf) for _, ended in self.outages]

    @property
    def unknown(self) -> list[Operation]:
        """The writes whose outcome is unknown to the client."""
        return [operation for operation in self.history if operation.fate is Fate.UNKNOWN]

    @property
    def refused(self) -> int:
        """The number of operations that certainly had no effect and returned no state."""
        return sum(operation.fate is Fate.VOID for operation in self.history)

    @property
    def happened(self) -> int:
        """The number of unknown writes whose effect a read has shown; deletes are not counted."""
        seen = {operation.seen.name for operation in self.history if operation.seen is not None}
        return sum(operation.name in seen for operation in self.unknown if operation.name is not None)

    @property
    def outage(self) -> float:
        """The longest time in seconds without an answer other than a refusal, over all clients."""
        answers = sorted(o.returned - self.start for o in self.history if o.fate is Fate.ANSWERED)
        return max(after - before for before, after in pairwise([0.0, *answers, self.seconds]))

    def answers(self) -> dict[str, dict[str, int]]:
        """Return the number of each answer for each kind of operation."""
        counts: dict[str, Counter[str]] = {}
        for operation in self.history:
            answer = f"{operation.status or 'none'} {operation.problem.removeprefix('blank')}".strip()
            counts.setdefault(answer, Counter())[operation.kind.value] += 1
        return {answer: dict(counts[answer]) for answer in sorted(counts)}

    def over_time(self) -> dict[str, list[int]]:
        """Return the number of operations in each second, by outcome."""
        length = math.ceil(self.seconds)
        names = {Fate.ANSWERED: "answered", Fate.VOID: "refused", Fate.UNKNOWN: "unknown"}
        lines = {name: [0] * length for name in names.values()}
        for operation in self.history:
            at = operation.invoked if math.isinf(operation.returned) else operation.returned
            lines[names[operation.fate]][min(int(at - self.start), length - 1)] += 1
        return lines


def render(findings: Findings, machine: Mapping[str, Any], method: str) -> dict[str, str]:
    """Return torture.json, torture.md and the chart, by file name."""
    longest, slowest = findings.slowest
    document: dict[str, Any] = {
        "machine": machine,
        "method": method,
        "seconds": round(findings.seconds, 1),
        "operations": len(findings.history),
        "fault_injections": findings.injections,
        "refused": findings.refused,
        "unknown": len(findings.unknown),
        "unknown_that_happened": findings.happened,
        "violations": [str(violation) for violation in findings.violations],
        "failed": findings.failed,
        "longest_stall_seconds": round(longest, 3),
        "longest_outage_seconds": round(findings.outage, 3),
        "outages": [round(ended - began, 1) for began, ended in findings.outages],
        "recoveries": [round(seconds, 3) for seconds in findings.recoveries],
        "answers": findings.answers(),
        "errors_logged": findings.errors,
        "over_time": findings.over_time(),
    }
    kinds = [kind.value for kind in Kind]
    answers = [(name, *(f"{counts.get(kind, 0):,}" for kind in kinds)) for name, counts in document["answers"].items()]
    injections = [(name, f"{count:,}") for name, count in findings.injections.items()]
    parts = [
        "# Torture\n",
        f"{summarise(machine)}\n",
        f"{method}\n",
        table(("what", "found", "target", "verdict"), _verdicts(findings)) + "\n",
        f"The operation with the longest stall: {slowest}\n",
        "![operations a second](torture.svg)\n",
        "## Answers\n",
        table(("answer", *kinds), answers) + "\n",
        "## Fault injections\n",
        table(("fault injection", "times"), injections) + "\n",
        *_failures(findings),
    ]
    return {"torture.json": json.dumps(document, indent=1) + "\n", "torture.md": "\n".join(parts), **draw(document)}


def draw(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the chart of torture.json, by file name."""
    injections, lines = document["fault_injections"], document["over_time"]
    chart = line_chart(
        "Torture: operations by outcome",
        f"{sum(injections.values()):,} fault injections of {len(injections)} kinds in {document['seconds']:.0f} s",
        Panel(
            Axis("time, s"),
            Axis("operations/s"),
            {name: list(enumerate(counts)) for name, counts in lines.items()},
            "/s",
        ),
    )
    return {"torture.svg": chart}


def _verdicts(findings: Findings) -> Iterator[tuple[str, str, str, str]]:
    total, injected = len(findings.history), findings.injections.values()
    minutes = (findings.seconds - sum(ended - began for began, ended in findings.outages)) / 60
    counts = f"{sum(injected):,} of {len(injected)} kinds, each at least {min(injected)} times"
    happened = f"{findings.happened:,} of them seen to have happened"
    unanswered = f"answers 500, or none in {PATIENCE_SECONDS} s"
    done = f"{total:,} ({total / minutes:,.0f} a minute)"
    are_many, are_all = total >= OPERATIONS_A_MINUTE * minutes, min(injected) >= INJECTIONS_A_MINUTE * minutes
    yield "operations", done, f">= {OPERATIONS_A_MINUTE:,} a minute", _verdict(are_many)
    yield "fault injections", counts, f">= {INJECTIONS_A_MINUTE} a minute", _verdict(are_all)
    yield "violations", f"{len(findings.violations):,}", "0", _verdict(not findings.violations)
    yield unanswered, f"{findings.failed:,}", "0", _verdict(not findings.failed)
    if findings.outages:
        downtime = ", ".join(f"{ended - began:.0f}" for began, ended in findings.outages)
        slowest = max(findings.recoveries)
        yield (
            "longest recovery",
            f"{slowest:.2f} s after outages of {downtime} s",
            "< 2 s",
            _verdict(slowest < RECOVERY_SECONDS),
        )
    yield "refused, without effect", f"{findings.refused:,}", "", ""
    yield "unknown outcomes", f"{len(findings.unknown):,}, {happened}", "", ""
    yield "longest stall of one client", f"{findings.slowest[0]:.2f} s", "", ""
    yield "longest outage for all clients", f"{findings.outage:.2f} s", "", ""


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def _failures(findings: Findings) -> Iterator[str]:
    if findings.violations:
        yield "## Violations\n"
    for violation in findings.violations[:_SHOWN]:
        yield f"```\n{violation}\n```\n"
    if findings.errors:
        yield f"## Errors in the service's log: {len(findings.errors):,}\n"
    for error in findings.errors[:_SHOWN]:
        yield f"```\n{error}\n```\n"
