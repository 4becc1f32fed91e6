"""Metrics as Prometheus scrapes them."""

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse

STATEMENT = "users_api_statement_duration_seconds"


class Scrape:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in parse(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of this name with these labels."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    def all(self, name: str, *labels: str) -> dict[Any, float]:
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in self.samples
            if sample.name == name
        }


def scrape(url: str, path: str = "/metrics", **headers: str) -> Scrape:
    answer = httpx.get(f"{url}{path}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return Scrape(answer.text)
