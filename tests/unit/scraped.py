"""An exposition of metrics as a scraper reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse

from agentres.store import NoHistory, Store


def no_history() -> Store:
    raise NoHistory("/nowhere")


def series(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, sorted label values) -> value; a series that comes twice is an error."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found
