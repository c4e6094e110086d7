"""What there is to share, as the C library tells it."""

from __future__ import annotations

import os
import resource

import pytest

from agentres.kernel import host
from agentres.model.limits import Host


def test_the_host_has_processors_and_whole_pages_of_memory() -> None:
    found = host.read()
    assert found.cpus >= 1
    assert found.page == os.sysconf("SC_PAGE_SIZE")
    assert found.memory >= found.page
    assert found.memory % found.page == 0


def test_the_page_size_is_the_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"SC_PAGE_SIZE": 65536, "SC_PHYS_PAGES": 1000, "SC_NPROCESSORS_ONLN": 3}
    monkeypatch.setattr(os, "sysconf", answers.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10, 700))
    assert host.read() == Host(cpus=3, memory=65_536_000, page=65536, nofile=700)
