"""Which suites the machines of `scripts/test` run, in which company, and in which order."""

from dataclasses import dataclass

from .suites import Suite

# Tests of what a host has once; as dev they would all be skipped.
OF_THE_HOST = tuple(f"tests/kernel/test_{n}.py" for n in ("daemon", "daemon_replaced", "installed"))
# Typed as an ordinary user would.
OF_DEV = ("tests/kernel/test_documented.py",)
# Root's in parts, so that none is what the others wait for.
_ALERTS = tuple(f"tests/kernel/test_{n}.py" for n in ("breaches", "cpuset", "events", "pacing"))
_LIMITS = tuple(f"tests/kernel/test_{n}.py" for n in ("disk_space", "elastic", "places", "space"))
_ENDS = tuple(f"tests/kernel/test_{n}.py" for n in ("swap", "teardown"))
_RATES = tuple(f"tests/kernel/test_{n}.py" for n in ("io", "network"))
_OTHERS = tuple(
    f"tests/kernel/test_{n}.py"
    for n in ("exit", "live", "memory", "nofile", "pids", "resident", "signals", "terminal")
)
_DISKS = tuple(f"tests/kernel/test_{n}.py" for n in ("io", "writeback"))


def _but(*paths: str) -> tuple[str, ...]:
    return tuple(f"--ignore={path}" for path in paths)


HOST = Suite("the host's daemon", "root", paths=OF_THE_HOST)
_DOCUMENTATION = Suite("as dev, the documentation", "dev", paths=OF_DEV)
_OF_ONE = (*OF_THE_HOST, *OF_DEV)
_ROOT = Suite("as root", "root", options=_but(*_OF_ONE))
_ROOT_IN_PARTS = (
    Suite("as root, runs in a row, swap", "root", paths=_ENDS),
    Suite("as root, limits that move, places", "root", paths=_LIMITS),
    Suite("as root, disks, network", "root", paths=_RATES),
    Suite("as root, alerts, events", "root", paths=_ALERTS),
    Suite("as root, exits, terminals, commands", "root", paths=_OTHERS),
    Suite(
        "as root, all others",
        "root",
        options=_but(*_OF_ONE, *_ALERTS, *_LIMITS, *_ENDS, *_RATES, *_OTHERS),
    ),
)
_ROOT_DISKS = Suite("as root, disks", "root", paths=_DISKS)
_ROOT_BUT_DISKS = Suite("as root, all others", "root", options=_but(*_OF_ONE, *_DISKS))
_DEV = Suite("as dev", "dev", options=_but(*_OF_ONE))
_BY_DAEMON = Suite("as dev, by the daemon", "dev", options=(*_but(*_OF_ONE), "--daemon"))


@dataclass(frozen=True)
class Phase:
    """Tests that bear the same company: those with a ``mark``.

    ``first`` has the machines by name, each with the suite that it begins with; one that is done takes the next of the ``rest``.
    """

    name: str
    mark: str
    first: dict[str, Suite]
    rest: tuple[Suite, ...]


_COMPANY = "not beside_one and not alone"
_ALONE = Phase("alone", "alone", {"": _ROOT}, (_DEV, _BY_DAEMON))

# What tests wait for is time, mostly: five machines keep two processors busy. The longest suites are the first.
MANY = (
    Phase(
        "",
        _COMPANY,
        {
            "": HOST,
            "second": _DEV,
            "third": _BY_DAEMON,
            "fourth": _ROOT_IN_PARTS[0],
            "fifth": _ROOT_IN_PARTS[1],
        },
        (*_ROOT_IN_PARTS[2:], _DOCUMENTATION),
    ),
    Phase(
        "beside one",
        "beside_one",
        {"": _ROOT_BUT_DISKS, "second": _ROOT_DISKS},
        (_DEV, _BY_DAEMON),
    ),
    _ALONE,
)
TWO = (
    Phase("", _COMPANY, {"": HOST, "second": _DEV}, (_ROOT, _BY_DAEMON, _DOCUMENTATION)),
    Phase("by itself", "beside_one", {"": _ROOT}, (_DEV, _BY_DAEMON)),
    _ALONE,
)
MACHINES = tuple(MANY[0].first)
