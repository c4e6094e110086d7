"""CPUs: lists of them, who gets which, and affinity where no controller binds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentres.kernel import cpus, process
from agentres.model.cpus import CPUS_MAX, count, format_list, parse_cpuset, parse_list
from agentres.model.errors import NotEnforceable
from agentres.model.units import UnitError
from agentres.policy.cpus import choose, refusal

NUMBERS = st.sets(st.integers(0, CPUS_MAX - 1), max_size=40)


@given(NUMBERS)
def test_a_list_is_read_as_it_was_written(numbers: set[int]) -> None:
    assert parse_list(format_list(numbers)) == tuple(sorted(numbers))


@given(st.text("0123456789-, x\n", max_size=12) | st.text(max_size=6))
def test_whatever_is_written_is_cpus_or_told(text: str) -> None:
    try:
        found = parse_cpuset(text)
    except UnitError:
        return
    assert count(found) >= 0
    if isinstance(found, str):
        assert format_list(parse_list(found)) == found != ""


@pytest.mark.parametrize(
    ("text", "cpuset", "many"),
    [
        ("2", 2, 2),
        ("0", 0, 0),
        ("3-3", "3", 1),
        ("0-3,8", "0-3,8", 5),
        ("8,1,0,2-3,1", "0-3,8", 5),
        ("8190-8191", "8190-8191", 2),
    ],
)
def test_a_number_alone_is_how_many_and_else_it_is_which(
    text: str, cpuset: int | str, many: int
) -> None:
    assert parse_cpuset(text) == cpuset
    assert count(cpuset) == many


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "1,", ",1", "3-1", "-1", "1-", "1--2", "a", "0-8192", "99999999999999", "1.5", "²", "0x1", "0-3:1/2", "all", "0 1"],
)  # fmt: skip
def test_what_is_no_list_and_no_number_is_told(text: str) -> None:
    with pytest.raises(UnitError, match="expected how many CPUs, or a list of them such as 0-3,8"):
        parse_cpuset(text)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ((0, 1), ""),
        ((1, 9), "CPU 9 is not on this host, which has 0-5"),
        ((5, 7, 8), "CPUs 7-8 are not on this host, which has 0-5"),
        ((0, 5), "CPU 5 is offline"),
        ((1, 2, 3), "CPUs 2-3 are not for the processes in /x, which have 0-1"),
    ],
)
def test_a_list_is_refused_for_what_it_cannot_have(wanted: tuple[int, ...], why: str) -> None:
    assert refusal(wanted, range(6), range(5), (0, 1), "/x") == why


ALONE = {cpu: (cpu,) for cpu in range(8)}
SIBLINGS = {cpu: (cpu % 4, cpu % 4 + 4) for cpu in range(8)}


@pytest.mark.parametrize(
    ("number", "cores", "bound", "busy", "chosen"),
    [
        (2, ALONE, {}, {}, [0, 1]),
        (2, ALONE, {}, {0: 0.9, 1: 0.8, 2: 0.7}, [3, 4]),
        # Who is bound counts before what is done at this moment.
        (1, ALONE, {0: 1, 1: 1}, {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0, 7: 0.9}, [7]),
        (3, ALONE, {0: 2, **dict.fromkeys(range(1, 8), 1)}, {}, [1, 2, 3]),
        # A tenth more or less is noise.
        (1, ALONE, {}, {0: 0.04, 1: 0.0}, [0]),
        # Cores first, then their other halves.
        (4, SIBLINGS, {}, {}, [0, 1, 2, 3]),
        (5, SIBLINGS, {}, {}, [0, 1, 2, 3, 4]),
        # The other half of another agent's core, or of a busy one, comes last.
        (3, SIBLINGS, {0: 1}, {}, [1, 2, 3]),
        (1, SIBLINGS, {}, {4: 0.9, 1: 0.5, 2: 0.5, 3: 0.5}, [5]),
        (1, {}, {0: 1}, {}, [1]),
    ],
)
def test_the_best_cpus_are_chosen(
    number: int,
    cores: dict[int, tuple[int, ...]],
    bound: dict[int, int],
    busy: dict[int, float],
    chosen: list[int],
) -> None:
    assert sorted(choose(number, range(8), cores, bound, busy)) == chosen


@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=12),
    st.sampled_from([ALONE, SIBLINGS]),
    st.dictionaries(st.integers(0, 7), st.floats(0, 1)),
)
def test_agents_are_spread_evenly_whatever_each_wants(
    wanted: list[int], cores: dict[int, tuple[int, ...]], busy: dict[int, float]
) -> None:
    bound = Counter[int]()
    for number in wanted:
        chosen = choose(number, range(8), cores, bound, busy)
        assert len(set(chosen)) == number
        bound.update(chosen)
    agents = [bound[cpu] for cpu in range(8)]
    assert max(agents) - min(agents) <= 1


def test_the_hosts_figures() -> None:
    online = cpus.online()
    assert len(online) == os.sysconf("SC_NPROCESSORS_ONLN")
    assert set(online) <= set(cpus.present())
    assert all(cpu in cpus.core(cpu) for cpu in online)
    busy = cpus.busy(0.02)
    assert set(busy) == set(online)
    assert all(0 <= part <= 1 for part in busy.values())


def test_what_a_cgroup_may_run_on_the_nearest_one_above_says(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cpuset.cpus.effective").write_text("0-3\n")
    assert cpus.allowed(str(tmp_path / "a/b")) == (str(tmp_path), (0, 1, 2, 3))
    (tmp_path / "a/cpuset.cpus.effective").write_text("2\n")
    assert cpus.allowed(str(tmp_path / "a/b")) == (str(tmp_path / "a"), (2,))


THREADS = """
import sys, threading
def wait():
    print(flush=True)
    sys.stdin.read()
threading.Thread(target=wait).start()
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A folder in place of a cgroup, with a process of two threads."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", THREADS], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "main").mkdir()
        (tmp_path / "cgroup.procs").write_text("")
        (tmp_path / "main/cgroup.procs").write_text(f"{process.pid}\n")
        yield str(tmp_path), process.pid
        process.communicate()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU only")
def test_all_threads_are_bound_and_what_undoes_it_is_seen(agent: tuple[str, int]) -> None:
    path, pid = agent
    first, second, *_ = sorted(all_of := os.sched_getaffinity(0))
    tids = [int(tid) for tid in os.listdir(f"/proc/{pid}/task")]
    assert len(tids) == 2
    cpus.bind(path, f"{first}", "max")
    assert [os.sched_getaffinity(tid) for tid in tids] == [{first}] * 2
    assert cpus.beyond(path, f"{first}") == ""
    cpus.bind(path, f"{second}", f"{first}")
    assert [os.sched_getaffinity(tid) for tid in tids] == [{second}] * 2
    os.sched_setaffinity(tids[1], {first, second})
    assert cpus.beyond(path, f"{second}") == (
        f"the affinity of thread {tids[1]} is {format_list({first, second})}, was set to {second}"
    )
    # One that has chosen fewer keeps them; who had all that there were gets all that there are.
    os.sched_setaffinity(tids[1], {first})
    cpus.bind(path, "max", f"{second}")
    assert [os.sched_getaffinity(tid) for tid in tids] == [all_of, {first}]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU")
def test_what_cannot_be_bound_in_time_is_bound_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    line = ["cat"]
    with (
        subprocess.Popen(line, stdin=subprocess.PIPE) as one,
        subprocess.Popen(line, stdin=subprocess.PIPE) as other,
    ):
        bound = []

        def below(path: str) -> list[int]:
            bound.append(os.sched_getaffinity(one.pid))
            os.sched_setaffinity(other.pid, before)  # as if it had just come
            return [one.pid, other.pid]

        monkeypatch.setattr(process, "below", below)
        with pytest.raises(NotEnforceable):
            cpus.bind("/", str(min(before)), format_list(before))
        assert bound[-1] == {min(before)}
        assert os.sched_getaffinity(one.pid) == before
