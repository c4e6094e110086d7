"""``agentres metrics``: the file for node_exporter, the address, and the command over a fake cgroup tree and HTTP."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import agentres as in_process
from fake_slice import MIB
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from scraped import series

from agentres.cli.listening import parse_address
from agentres.cli.metrics import write_textfile
from agentres.kernel import delegation, host, registry
from agentres.model.errors import AgentresError, UsageError

# The file for node_exporter.


def test_a_textfile_is_replaced_whole_and_readable_by_all(tmp_path: Path) -> None:
    target = tmp_path / "agentres.prom"
    target.write_text("old")
    target.chmod(0o600)
    with target.open() as reader:
        old = os.umask(0o077)
        try:
            write_textfile(str(target), b"new\n")
        finally:
            os.umask(old)
        assert reader.read() == "old"  # who has it open reads on in the old one
    assert target.read_bytes() == b"new\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["agentres.prom"]


def test_a_textfile_may_be_named_without_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_textfile("x.prom", b"new\n")
    assert (tmp_path / "x.prom").read_bytes() == b"new\n"


def test_a_textfile_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "agentres.prom"
    target.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(AgentresError, match=r"agentres\.prom: no space left on device"):
        write_textfile(str(target), b"new\n")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["agentres.prom"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "pipe").symlink_to("/dev/null")
    for path in (str(tmp_path), f"{tmp_path}/pipe", "/dev/null", "/dev/stdout"):
        with pytest.raises(UsageError, match="expected a regular file"):
            write_textfile(path, b"")
    assert (tmp_path / "pipe").is_symlink()
    with pytest.raises(AgentresError, match=r"/nowhere/x\.prom: no such file or directory"):
        write_textfile("/nowhere/x.prom", b"")


# The address.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9105", ("127.0.0.1", 9105)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:9105", ("::1", 9105)),
        ("localhost:80", ("localhost", 80)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":9105",
        "9105:",
        "::1:9105",
        "[]:9105",
        "65536",
        "-1",
        "٣",
        "+9",
        "x",
        "127.0.0.1",
        "[::1]",
    ],
)
def test_wrong_addresses_are_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(UsageError, match=f"--listen {re.escape(text)}: expected"):
        parse_address(text)


# The command, on a fake cgroup tree.

DRIVER = """
import os, sys
from agentres.cli import line
from agentres.kernel import delegation
delegation.hierarchy = lambda: delegation.Hierarchy(os.environ["FAKE_MOUNT"], "/", False)
sys.exit(line.main(sys.argv[1:]))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    return {**os.environ, "FAKE_MOUNT": str(mount), "AGENTRES_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def command(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: status, stdout, stderr."""
    mount = environment["FAKE_MOUNT"]
    place = delegation.Hierarchy(mount, "/", False)
    monkeypatch.setattr(delegation, "hierarchy", lambda: place)
    monkeypatch.setenv("AGENTRES_STATE_DIR", environment["AGENTRES_STATE_DIR"])

    def call(textfile: str | None = None, listen: str | None = None) -> tuple[int, str, str]:
        given = {"--textfile": textfile, "--listen": listen}
        return in_process(
            "metrics", *(f"{key}={text}" for key, text in given.items() if text is not None)
        )

    return call


def agentres(environment: dict[str, str], **named: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, "metrics"],
        env=environment,
        text=True,
        timeout=60,
        stderr=subprocess.PIPE,
        **named,
    )


Command = Callable[..., tuple[int, str, str]]


def test_the_command_prints_an_agent_from_its_control_files(
    environment: dict[str, str], command: Command
) -> None:
    path = Path(environment["FAKE_MOUNT"], "agentres-x/agent")
    (path / "main").mkdir(parents=True)
    (path / "cpu.stat").write_text("usage_usec 3\nuser_usec 2\nsystem_usec 1\n")
    (path / "memory.max").write_text("max\n")
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n")
    fd = os.open(path, os.O_RDONLY)
    registry.mark(fd, "x", 1.0, 1)
    os.close(fd)
    if not registry.running(environment["FAKE_MOUNT"]):
        pytest.skip("this file system has no extended attributes to mark an agent with")
    status, out, err = command()
    assert (status, err) == (0, "")
    found = series(out)
    own = ("x", "/agentres-x")
    assert found["agentres_cpu_seconds_total", (*own, "user")] == 2e-6
    assert found["agentres_oom_kills_total", own] == 2
    assert ("agentres_memory_limit_bytes", own) not in found
    assert found["agentres_host_memory_limit_bytes", ()] > 0


def test_the_command_writes_a_textfile(command: Command, tmp_path: Path) -> None:
    assert command(f"{tmp_path}/x.prom") == (0, "", "")
    assert series((tmp_path / "x.prom").read_text())["agentres_agents", ()] == 0


@pytest.mark.parametrize(
    ("textfile", "listen", "status", "words"),
    [
        ("/nowhere/x", None, 1, "--textfile /nowhere/x: no such file or directory"),
        ("/dev/null", None, 2, "--textfile /dev/null: expected a regular file"),
        ("x", "1", 2, "--textfile and --listen exclude each other"),
        (None, "x", 2, "--listen x: expected PORT"),
        (None, "", 2, "--listen : expected PORT"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: Command, textfile: str | None, listen: str | None, status: int, words: str
) -> None:
    exited, out, err = command(textfile, listen)
    assert (exited, out) == (status, "")
    assert err.startswith(f"agentres: {words}")
    assert err.count("\n") == 1


def test_without_the_client_library_the_remedy_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    line = "metrics need the package prometheus-client; pip install 'agentres[metrics]'"
    assert command() == (1, "", f"agentres: {line}\n")


def test_a_port_that_is_taken_is_one_line(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, out, err = command(listen=str(port))
    assert (status, out) == (1, "")
    assert err == f"agentres: --listen 127.0.0.1:{port}: address already in use\n"


def test_a_full_disk_behind_stdout_is_one_line(environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = agentres(environment, stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "agentres: cannot write: no space left on device\n",
    )


def test_a_reader_that_has_gone_is_no_failure_to_tell_of(environment: dict[str, str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = agentres(environment, stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_wrong_configuration_costs_only_the_budget(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrong.toml").write_text("budget.share = 2")
    monkeypatch.setenv("AGENTRES_CONFIG", f"{tmp_path}/wrong.toml")
    status, out, err = command()
    assert status == 0
    assert err.startswith(
        f"agentres: no metrics of the budget: {tmp_path}/wrong.toml: budget.share"
    )
    assert err.count("\n") == 1
    assert series(out)["agentres_agents", ()] == 0


def test_the_command_tells_the_budget_of_where_an_agent_would_run(
    command: Command, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = environment["FAKE_MOUNT"]
    place = delegation.Place("direct", f"{mount}/mine", delegation.Hierarchy(mount, "/", False))
    monkeypatch.setattr(delegation, "find", lambda: place)
    monkeypatch.setattr(host, "memory", lambda: 1000 * MIB)
    (tmp_path / "agentres.toml").write_text('budget.share = "50%"')
    monkeypatch.setenv("AGENTRES_CONFIG", f"{tmp_path}/agentres.toml")
    status, out, err = command()
    assert (status, err) == (0, "")
    assert series(out)["agentres_budget_bytes", ("/mine/agentres.slice",)] == 500 * MIB
    assert series(out)["agentres_budget_allocated_bytes", ("/mine/agentres.slice",)] == 0


# For real, on a free port.


@pytest.fixture
def listening(
    environment: dict[str, str],
) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], str]]]:
    started: list[subprocess.Popen[str]] = []

    def listen(where: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, "metrics", "--listen", where],
            env=environment,
            text=True,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.fullmatch(r"agentres: metrics at (http://\S+)\n", line)
        assert match, line
        return process, match[1]

    yield listen
    for process in started:
        process.kill()
        process.communicate()


def get(url: str, **headers: str) -> tuple[str, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_scrapes_are_answered_until_sigterm(
    listening: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    process, url = listening("0")
    assert url.startswith("http://127.0.0.1:")
    kind, text = get(url)
    assert kind.startswith("text/plain")
    assert series(text)["agentres_agents", ()] == 0
    kind, text = get(url, Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    list(parse_openmetrics(text))
    _, text = get(f"{url}?name[]=agentres_agents")
    assert series(text) == {("agentres_agents", ()): 0}
    # Who connects and goes, or says nothing, is in nobody's way.
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    with socket.create_connection((host, int(port))) as silent:
        get(url)
        silent.sendall(b"GET / HTTP/1.0\r\n")
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")


def test_ctrl_c_ends_it_with_130_and_ipv6_is_in_brackets(
    listening: Callable[[str], tuple[subprocess.Popen[str], str]],
) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        where = "127.0.0.1"
    else:
        where = "[::1]"
    process, url = listening(f"{where}:0")
    assert url.startswith(f"http://{where}:")
    get(url)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, "")
