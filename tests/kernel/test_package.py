"""The Debian package on a host: installed by apt, upgraded under agents, removed, purged.

`scripts/build-deb --test` builds it, and hands it over by ``--package FILE``; without that there is nothing to do here.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEADLINE, ROOT, agents_cgroup, wait_until
from test_installed import DEV, OF_ONE_VERSION, WHEELS, as_user, call, described, state

AGENTRES = "/usr/bin/agentres"
SITE = "usr/lib/agentres/lib/python3/site-packages"
UNITS = ("agentres.service", "agentres.socket", "agentres.slice", "agentres@x.service")
DAEMON = "agentres.service"
WAITS = ("sh", "-c", "echo ready; read line; exit 7")
AS_DEV = ("setpriv", f"--reuid={DEV}", f"--regid={DEV}", "--init-groups")

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(not ROOT, reason="root installs"),
]


def apt(*line: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", "--yes", "--quiet", *line], env=environment, capture_output=True, text=True, check=False, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # Debian 12's systemd has its folders by their old name, below /lib: dpkg takes them for the package's alone.
    told = [line for line in (done.stdout + done.stderr).splitlines() if "'/usr/lib/systemd" not in line]  # fmt: skip
    assert not [line for line in told if "warning" in line.lower()], told


def named() -> set[str]:
    """All files of this host that have its name, but for sources, caches and what tests made."""
    elsewhere = ("/opt", "/home", "/root", "/tmp", "/var/tmp", "/proc", "/sys", "/dev")
    pruned = [word for path in elsewhere for word in ("-path", path, "-o")]
    found = call("find", "/", "(", *pruned[:-1], ")", "-prune", "-o", "-iname", "*agentres*", "-print")  # fmt: skip
    return set(found.stdout.split("\n"))


def known() -> set[str]:
    """What systemd has loaded, and what is in the cgroups' tree."""
    units = call("systemctl", "list-units", "--all", "--plain", "--no-legend", "*agentres*").stdout
    cgroups = Path("/sys/fs/cgroup").rglob("*agentres*")
    return {*(line.split()[0] for line in units.splitlines()), *map(str, cgroups)}


@pytest.fixture(scope="module")
def package(request: pytest.FixtureRequest) -> str:
    return str(Path(request.config.getoption("--package")).absolute())


@pytest.fixture(scope="module", autouse=True)
def installed(package: str) -> Iterator[None]:
    own = Path("/etc/tmpfiles.d/agentres.conf")
    if own.exists() and WHEELS.is_dir():  # the VM's, which would hide the package's of that name
        own.rename(own.with_stem("agentres-vm"))
    before, loaded = named(), known()
    apt("install", package)
    call("usermod", "-aG", "agentres", DEV)
    yield
    apt("purge", "agentres")
    assert named() == before
    assert known() == loaded
    # As Debian has it; files may still be the group's.
    assert DEV in grp.getgrnam("agentres").gr_mem
    call("groupdel", "agentres")


@contextlib.contextmanager
def running(name: str, *options: str, user: bool = True) -> Iterator[subprocess.Popen[str]]:
    """An agent that waits for a line: by the daemon for dev, or root's own without it."""
    line = [*(AS_DEV if user else ()), AGENTRES, "run", "--name", name, *options, "--", *WAITS]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/dev" if user else "/root"}
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd="/", env=environment,
    ) as agent:  # fmt: skip
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "ready\n"
            yield agent
        finally:
            agent.terminate()


def home(name: str) -> Path:
    return agents_cgroup() / f"agentres-{pwd.getpwnam(DEV).pw_uid}:{name}.scope"


def test_the_daemon_runs_and_will_at_boot() -> None:
    for unit in ("agentres.socket", DAEMON):
        assert state(unit, "ActiveState") == "active", unit
        assert call("systemctl", "is-enabled", unit).stdout == "enabled\n"
    python = call("readlink", "--canonicalize", f"/proc/{state(DAEMON, 'MainPID')}/exe").stdout
    assert re.fullmatch(r"/usr/bin/python3\.\d+\n", python)
    assert Path("/run/agentres/agentres.sock").stat().st_gid == grp.getgrnam("agentres").gr_gid
    done = call("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_dpkg_knows_all_of_it() -> None:
    listed = set(call("dpkg", "--listfiles", "agentres").stdout.splitlines())
    for path in (
        "/usr/share/man/man1/agentres.1.gz",
        "/usr/share/bash-completion/completions/agentres",
        "/usr/share/zsh/vendor-completions/_agentres",
        "/usr/share/fish/vendor_completions.d/agentres.fish",
        "/usr/lib/sysusers.d/agentres.conf",
        "/usr/lib/tmpfiles.d/agentres.conf",
        "/usr/lib/systemd/system-generators/agentres",
    ):
        assert path in listed
    beside = {str(path) for path in Path("/usr/lib/agentres").rglob("*")} - listed
    assert not [path for path in beside if "__pycache__" not in path]
    assert any(path.endswith(".pyc") for path in beside)  # else each start would compile
    # The other Pythons' modules are no matter of this host's: what it has differs from nothing that was shipped.
    verified = call("dpkg", "--verify", "agentres").stdout.splitlines()
    excluded = ("/usr/share/man/", "/usr/share/doc/")  # by the configuration of the VM's dpkg
    assert not [line for line in verified if not line.split()[-1].startswith(excluded)]


def test_it_imports_nothing_of_the_hosts() -> None:
    found = call("/usr/lib/agentres/bin/python3", "-P", "-c",
                 "import sys, agentres, pydantic_core, psutil, pyroute2, typer, textual, prometheus_client\n"
                 "print(*sys.path)\nprint(agentres.__file__, pydantic_core.__file__)")  # fmt: skip
    assert "dist-packages" not in found.stdout
    assert found.stdout.count("/usr/lib/agentres/lib/") == 3


def test_a_member_of_the_group_has_agents_by_the_daemon() -> None:
    with running("held", "--io-write", "20MB/s", "--memory", "64M") as agent:
        assert "wbps=20000000" in (home("held") / "agent" / "io.max").read_text()
        assert (home("held") / "agent" / "memory.max").read_text() == f"{64 << 20}\n"
        agent.communicate("\n", timeout=DEADLINE)
        assert agent.returncode == 7
    done = as_user("nobody", AGENTRES, "run", "--", "true", check=False)
    assert done.returncode == 125


def test_a_daemon_that_an_administrator_has_disabled_stays_so(package: str) -> None:
    call("systemctl", "disable", "--now", "agentres.socket", DAEMON)
    try:
        apt("install", "--reinstall", package)
        for unit in ("agentres.socket", DAEMON):
            assert state(unit, "ActiveState") == "inactive", unit
            assert call("systemctl", "is-enabled", unit, check=False).stdout == "disabled\n"
    finally:
        call("systemctl", "enable", "--now", "agentres.socket", DAEMON)


def test_maintainer_scripts_may_run_twice() -> None:
    version = call("dpkg-query", "--show", "--showformat=${Version}", "agentres").stdout
    script = "/var/lib/dpkg/info/agentres.{}".format
    environment = {**os.environ, "DPKG_MAINTSCRIPT_PACKAGE": "agentres"}
    for name, step in (("postinst", "configure"), ("prerm", "upgrade"), ("postrm", "upgrade"), ("postinst", "configure")):  # fmt: skip
        for _ in range(2):
            call(script(name), step, version, env=environment)  # type: ignore[arg-type]
    assert state(DAEMON, "ActiveState") == "active"
    assert as_user(DEV, AGENTRES, "run", "--", "true").returncode == 0


@pytest.fixture
def newer(package: str, tmp_path: Path) -> str:
    """A package of a later version, whose modules are of no use to this one's processes."""
    tree = tmp_path / "newer"
    call("dpkg-deb", "--raw-extract", package, str(tree))
    modules = tree / SITE / "agentres"
    for path in modules.rglob("*.py"):
        if path.name != "__init__.py" or path.parent != modules:
            text = path.read_text()
            path.write_text(text + OF_ONE_VERSION if text.strip() else text)
    first = modules / "__init__.py"
    first.write_text(re.sub('__version__ = ".*"', '__version__ = "0.1.999"', first.read_text()))
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub("^Version: .*$", "Version: 0.1.999", control.read_text(), flags=re.MULTILINE))  # fmt: skip
    (modules / "gone.py").write_text("")  # the next version has it no more
    call("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(tmp_path))
    [built] = tmp_path.glob("*.deb")
    return str(built)


@pytest.mark.parametrize("over", ["itself", "an older one"])
def test_an_upgrade_loses_no_agent(over: str, package: str, request: pytest.FixtureRequest) -> None:
    fresh = package if over == "itself" else request.getfixturevalue("newer")
    unit_file = '[agent]\ncommand = ["sleep", "1000"]\n[limits]\nmemory = "64M"\n'
    with contextlib.ExitStack() as stack:
        kept = [
            stack.enter_context(running(f"kept-{n}", "--memory", "20M", "--io-write", "20MB/s"))
            for n in range(5)
        ]
        alone = stack.enter_context(running("alone", "--local", user=False))
        unit = stack.enter_context(described("unit", unit_file))
        call("systemctl", "start", unit)
        as_user(DEV, AGENTRES, "run", "--detach", "--name", "apart", "--", "sleep", "1000")
        daemon, supervisor = state(DAEMON, "MainPID"), state(unit, "MainPID")
        inode = Path("/run/agentres/agentres.sock").stat().st_ino
        apt("install", "--reinstall", fresh)
        assert state(DAEMON, "ActiveState") == "active"
        assert state(DAEMON, "MainPID") not in (daemon, "0")
        assert state(unit, "MainPID") == supervisor
        assert (
            Path("/run/agentres/agentres.sock").stat().st_ino == inode
        )  # it listened all the time
        assert "populated 1" in (home("apart") / "cgroup.events").read_text()
        as_user(DEV, AGENTRES, "set", "kept-3", "--memory", "30M")
        assert (home("kept-3") / "agent" / "memory.max").read_text() == f"{30 << 20}\n"
        assert "apart" in as_user(DEV, AGENTRES, "ps").stdout
        as_user(DEV, AGENTRES, "stop", "apart")
        for agent in (*kept, alone):
            _, err = agent.communicate("\n", timeout=DEADLINE)
            assert agent.returncode == 7, err
        assert as_user(DEV, AGENTRES, "run", "--", "true").returncode == 0


def test_a_removal_ends_the_agents_and_keeps_the_configuration(package: str) -> None:
    rules = Path("/etc/agentres/agentres.toml")
    rules.write_text("[ceilings.everybody]\nagents = 4\n")
    with described("unit", '[agent]\ncommand = ["sleep", "1000"]\n') as unit:
        call("systemctl", "start", unit)
        call("systemctl", "enable", unit)
        with running("leased") as leased, running("alone", "--local", user=False) as alone:
            as_user(DEV, AGENTRES, "run", "--detach", "--name", "apart", "--", "sleep", "1000")
            apt("remove", "agentres")
            for agent in (leased, alone):
                agent.communicate(timeout=DEADLINE)
                assert agent.returncode not in (0, 7)
        assert rules.exists()
        assert not Path("/run/agentres").exists()
        assert not Path("/usr/lib/agentres").exists()
        wait_until(lambda: not list(Path("/sys/fs/cgroup").rglob("*agentres*")), "no cgroup")
        apt("install", package)
        assert state(DAEMON, "ActiveState") == "active"
        assert state(unit, "ActiveState") == "inactive"
        call("systemctl", "start", unit)
        assert state(unit, "ActiveState") == "active"
        # It stays enabled, and its description is there until the package is purged, at the end.
