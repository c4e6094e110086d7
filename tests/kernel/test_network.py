"""The network: rates against a peer in a namespace, what is counted, none at all, and what is left.

How near the rates come is measured by ``benchmarks/network``, over many rates and flows; here each way has one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import (
    AGENTRES,
    DEADLINE,
    ROOT,
    RunAgent,
    Watched,
    by_daemon,
    home_of,
    python,
    traces,
    wait_until,
)

from agentres.kernel import bpf, isolate, netns, network
from agentres.kernel.cgroup import Cgroup
from agentres.model.limits import NetworkMax

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _network.peer import FAR, FLOWS, NEAR, PORT, Peer, ip

as_root = pytest.mark.skipif(not ROOT, reason="cgroup BPF is root's: see test_without_bpf_…")
as_user = pytest.mark.skipif(ROOT or by_daemon(), reason="root has cgroup BPF")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with Peer() as made:
        made.pace(True)
        yield made


def flows(kind: str, *more: object, to: str = FAR, port: int = PORT) -> list[str]:
    return [sys.executable, "-S", str(FLOWS), kind, to, str(port), *map(str, more)]


def tcp(way: str, seconds: float = 4, to: str = FAR) -> list[str]:
    return flows("tcp", "--ways", way, "--seconds", seconds, "--warm", min(2, seconds / 2), to=to)


@pytest.fixture
def running(start: Start) -> Callable[..., Cgroup]:
    """``running("name", "--net-out=1M")``: an agent that waits for a line; its cgroup."""
    opened = []

    def begin(name: str, *options: str, command: list[str] | None = None) -> Cgroup:
        agent = start("--quiet", "--name", name, *options, command=command or ["sh", "-c", "echo up; read line"])  # fmt: skip
        assert agent.stdout is not None
        assert agent.stdout.readline() == "up\n"
        opened.append(Cgroup(str(home_of(name) / "agent")))
        return opened[-1]

    return begin


# Rates.


@as_root
@pytest.mark.beside_one
@pytest.mark.parametrize("way", ["out", "in"])
def test_tcp_gets_its_rate_and_no_more(agentres_run: RunAgent, peer: Peer, way: str) -> None:
    run = agentres_run("--cpu", "2", f"--net-{way}=5000000", command=tcp(way, 10), check=True)
    # Over eight seconds; a quarter of one may have come in at once.
    assert 0.95 <= json.loads(run.out)[way] / 5e6 <= 1.04
    assert run.usage["tx_bytes" if way == "out" else "rx_bytes"] > 15e6
    assert any(
        f"{'sent' if way == 'out' else 'received'} " in line for line in run.err.splitlines()
    )


@as_root
@pytest.mark.beside_one  # who sends has to get a processor
def test_without_a_queue_that_holds_packets_back_they_are_dropped(
    agentres_run: RunAgent, peer: Peer
) -> None:
    """UDP shows it: nobody slows down for what is lost, and no send fails."""
    peer.pace(False)
    try:
        command = flows("udp", "--rate", 4e6, "--seconds", 3)
        run = agentres_run("--net-out=1000000", command=command, check=True)
    finally:
        peer.pace(True)
    found = json.loads(run.out)
    assert found["errors"] == {}
    assert found["sent"] > 2e6
    assert found["came"] < 1.3e6  # half a second's burst over three, and the headers' share off
    assert run.usage["tx_dropped_packets"] > 1000
    assert "dropped" in run.err
    assert run.hits["network"] == run.usage["tx_dropped_packets"]


@as_root
@pytest.mark.parametrize("rate", ["5M", "max"])
def test_what_is_counted_is_what_the_interface_counts(
    agentres_run: RunAgent, peer: Peer, rate: str
) -> None:
    before = peer.counters()
    options = (f"--net-out={rate}", f"--net-in={rate}")
    run = agentres_run(*options, command=tcp("out,in", seconds=2), check=True)
    after = peer.counters()
    for way in ("tx", "rx"):
        packets = after[f"{way}_packets"] - before[f"{way}_packets"]
        wire = after[f"{way}_bytes"] - before[f"{way}_bytes"] - 14 * packets
        ours = run.usage[f"{way}_bytes"] + (run.usage["rx_dropped_bytes"] if way == "rx" else 0)
        assert abs(ours / wire - 1) < 0.005


@as_root
@pytest.mark.beside_one
def test_loopback_is_free_unless_it_is_to_count(agentres_run: RunAgent) -> None:
    script = f"""
import subprocess, sys
server = subprocess.Popen({flows("serve", to="127.0.0.1", port=5302)!r}, stdout=subprocess.PIPE)
server.stdout.readline()
line = {flows("tcp", "--seconds", 3, "--warm", 1, to="127.0.0.1", port=5302)!r}
print(subprocess.run(line, capture_output=True, check=True).stdout.decode())
server.kill()
"""
    rates = ["--cpu", "2", "--net-out=1000000", "--net-in=1000000"]
    free = agentres_run(*rates, command=python(script), check=True)
    assert json.loads(free.out)["out"] > 5e6
    assert free.usage["tx_loopback_bytes"] > 10e6
    assert free.usage["tx_bytes"] == 0
    held = agentres_run(*rates, "--net-loopback=limited", command=python(script), check=True)
    assert json.loads(held.out)["out"] < 1.1e6
    assert held.usage["tx_loopback_bytes"] == 0
    assert held.usage["tx_bytes"] > 1e6


@as_root
def test_a_rate_that_is_a_range_is_raised_when_it_is_met(
    start: Start, peer: Peer, tmp_path: Path
) -> None:
    send = ["sh", "-c", 'echo up; read line; exec "$@"', "sh", *tcp("out", 6)]
    limits = ["--cpu", "2", "--net-out", "500000:20000000"]
    agent = start("--quiet", "--name", "grows", *limits, command=send)
    assert agent.stdout is not None
    assert agent.stdout.readline() == "up\n"
    # It starts at its most; a range that is set starts where the limit stands.
    for rate in ("500000", "500000:20000000"):
        line = [*AGENTRES, "set", "grows", "--net-out", rate]
        subprocess.run(line, capture_output=True, check=True)
    out, _ = agent.communicate("\n", timeout=DEADLINE)
    history = [*AGENTRES, "history", "grows", "--actions", "--json"]
    told = json.loads(subprocess.run(history, capture_output=True, check=True).stdout)
    assert json.loads(out)["out"] > 2e6
    moves = [
        each
        for each in told["actions"]
        if (each["resource"], each["rule"] == "command") == ("net_out", False)
        and each["run"] == told["actions"][-1]["run"]
    ]
    assert (moves[0]["kind"], moves[0]["before"], moves[0]["unit"]) == ("raise", 500000, "bytes/s")
    assert moves[0]["after"] > 500000


@as_root
def test_what_is_sent_and_what_is_dropped_is_told_of(watched: Watched, peer: Peer) -> None:
    rules = """
[sampling]
interval = "1s"
[alerts.network_out]
resource = "network_out"
warning = "500kB/s"
duration = "1s"
[alerts.network_drops]
resource = "network_drops"
warning = 10
duration = "1s"
"""
    peer.pace(False)
    try:
        command = flows("udp", "--rate", 4e6, "--seconds", 6)
        run = watched.run(rules, "--net-out=1000000", command=command)
    finally:
        peer.pace(True)
    assert run.status == 0, run.err
    assert watched.story("network_out")[0] == ("raised", "WARNING")
    assert watched.events("network_out")[0]["limit"] == 1e6
    assert watched.story("network_drops")[0] == ("raised", "WARNING")


# Live, and read back.


@as_root
def test_set_holds_from_the_next_packet_on_and_is_no_drift(
    running: Callable[..., Cgroup],
) -> None:
    cgroup = running("live", "--net-out=1M")
    line = [*AGENTRES, "set", "live", "--net-out", "2000000", "--net-loopback", "limited"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "net_out: 1.05 MB/s -> 2 MB/s\nnet_loopback: free -> limited\n"
    found = network.find(cgroup)
    assert found.read() == NetworkMax(100_000_000, 2_000_000, "limited")
    assert found.undone() == []
    found.close()


@as_root
def test_who_takes_the_programs_off_or_changes_a_rate_is_told_of(
    running: Callable[..., Cgroup],
) -> None:
    cgroup = running("undone")
    found = network.find(cgroup)
    wanted = found.read()
    (number,) = bpf.attached(cgroup.fd, bpf.EGRESS)
    (of_program,) = bpf.program(number).maps
    opened = bpf.open_map(of_program)
    page = bpf.share_map(opened, 8)
    page[0:8] = (5).to_bytes(8, sys.byteorder)  # as whoever opens the map can
    bpf.unshare_map(page)
    os.close(opened)
    (line,) = found.undone()
    assert line.startswith("network is 'in=100000000 out=5 loopback=free', was set to 'in=")
    found.write(wanted)
    assert found.undone() == []
    (number,) = bpf.attached(cgroup.fd, bpf.INGRESS)
    bpf.detach(cgroup.fd, number, bpf.INGRESS)
    (line,) = found.undone()
    assert line.startswith("agentres_net: what it receives is not limited any more")
    found.close()


@as_root
def test_limits_and_counters_outlive_the_supervisor_and_are_found_again(
    start: Start, peer: Peer
) -> None:
    agent = start("--quiet", "--name", "orphan-net", "--orphan=keep", "--net-in=7M", command=["sh", "-c", "echo $$; read line; exec \"$@\"", "sh", *tcp("out", 2)])  # fmt: skip
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    cgroup = Cgroup(str(home_of("orphan-net") / "agent"))
    agent.send_signal(signal.SIGKILL)
    agent.wait(DEADLINE)
    found = network.find(cgroup)
    assert found.read().net_in == 7 << 20
    before = found.figures()["tx_bytes"]
    assert agent.stdin is not None
    try:
        agent.stdin.write("\n")
        agent.stdin.flush()
        wait_until(lambda: (found.figures()["tx_bytes"] or 0) > (before or 0) + 1e6, "it sends")
    finally:
        os.kill(pid, signal.SIGKILL)
    found.close()
    cgroup.close()
    wait_until(lambda: not traces(), "no traces")


@as_root
def test_a_child_in_a_namespace_of_its_own_is_counted(agentres_run: RunAgent) -> None:
    """Over loopback there, which nobody else is in."""
    script = f"""
import subprocess
server = subprocess.Popen({flows("serve", to="127.0.0.1", port=5303)!r}, stdout=subprocess.PIPE)
server.stdout.readline()
subprocess.run({flows("tcp", "--seconds", 1, "--warm", 0, to="127.0.0.1", port=5303)!r}, check=True)
server.kill()
"""
    inner = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *python(script)]
    run = agentres_run(command=inner, check=True)
    assert run.usage["tx_loopback_bytes"] > 1e6


@as_root
def test_nothing_is_left_loaded(agentres_run: RunAgent) -> None:
    before = bpf.programs()
    for _ in range(5):
        agentres_run("--net-out=1M", command=["true"], check=True)
    wait_until(lambda: bpf.programs() <= before, "the kernel lets the programs go")


# Where there is no network, or nothing to hold it.


def test_none_is_a_loopback_and_nothing_else(agentres_run: RunAgent) -> None:
    script = """
import os, socket
print(sorted(os.listdir("/sys/class/net")) if os.geteuid() == 0 else "-", [name for _, name in socket.if_nameindex()])
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
try:
    socket.create_connection(("198.18.0.2", 53), timeout=5)
except OSError as error:
    print(error.strerror)
print(os.getuid(), os.getgid())
"""
    run = agentres_run("--net", "none", command=python(script), check=True)
    _, unreachable, ids = run.out.splitlines()
    assert run.out.splitlines()[0].endswith("['lo']")
    assert unreachable == "Network is unreachable"
    assert ids == f"{os.getuid()} {os.getgid()}"
    assert "none but loopback" in run.err
    assert run.summary is not None
    assert not any(row["file"] == "network" for row in run.summary["not_enforced"])


@as_root
def test_none_for_an_agent_of_another_user(agentres_run: RunAgent) -> None:
    names = "import os, socket; print(os.getuid(), [n for _, n in socket.if_nameindex()])"
    run = agentres_run("--net=none", "--user=dev", "--cwd=/", command=python(names), check=True)
    assert run.out == f"{__import__('pwd').getpwnam('dev').pw_uid} ['lo']\n"


# Behind a wire.

ECHO = """
import json, os, socket, sys
interfaces = sorted(name for _, name in socket.if_nameindex())
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    own = sock.getsockname()[0]
print(json.dumps([interfaces, own, open("/proc/sys/net/ipv4/conf/all/forwarding").read().strip()]))
"""
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")

ADDRESS = "192.0.2.7"
NAMES = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 53))
print("ready", flush=True)
A = bytes([0, 1, 0, 1])  # type, class
while True:
    asked, sender = sock.recvfrom(512)
    question = asked[12 : asked.index(0, 12) + 5]
    # Its name is the question's (a pointer to there), it stands for a minute.
    answer = bytes([0xC0, 12]) + A + bytes([0, 0, 0, 60, 0, 4]) + socket.inet_aton(sys.argv[2])
    answers = answer if question.endswith(A) else b""
    counts = bytes([0, 1, 0, bool(answers), 0, 0, 0, 0])
    sock.sendto(asked[:2] + bytes([0x81, 0x80]) + counts + question + answers, sender)
"""


def wires() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith(isolate.PREFIX)]


def left_on_the_host() -> list[object]:
    return [wires(), isolate.has_table(), FORWARD.read_text()]


@as_root
def test_an_isolated_agent_has_its_own_interface_and_reaches_what_the_host_does(
    agentres_run: RunAgent, peer: Peer
) -> None:
    before = left_on_the_host()
    run = agentres_run("--net=isolated", command=python(ECHO, FAR, PORT), check=True)
    interfaces, own, _ = json.loads(run.out)
    assert interfaces == ["eth0", "lo"]
    assert own.startswith("10.213.")
    assert left_on_the_host() == before


@as_root
@pytest.mark.beside_one
def test_an_isolated_agent_has_its_rate_too(agentres_run: RunAgent, peer: Peer) -> None:
    options = ("--net=isolated", "--cpu=2", "--net-out=3000000")
    run = agentres_run(*options, command=tcp("out", 10), check=True)
    # Over eight seconds: time for which the machine stands still is lost, and two were too few for that.
    assert 0.90 <= json.loads(run.out)["out"] / 3e6 <= 1.05


@as_root
def test_two_isolated_agents_have_addresses_of_their_own(start: Start, peer: Peer) -> None:
    before = left_on_the_host()
    script = f"{ECHO}\nsys.stdout.flush()\nsys.stdin.readline()"
    agents = [
        start("--quiet", "--net=isolated", command=python(script, FAR, PORT)) for _ in range(2)
    ]
    told = [json.loads(agent.stdout.readline()) for agent in agents if agent.stdout is not None]
    assert len({own for _, own, _ in told}) == 2
    for agent in agents:
        agent.communicate("\n", timeout=DEADLINE)
        assert agent.returncode == 0
    assert left_on_the_host() == before


LISTENS = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 5301))
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as sock:
    print(sock.getsockname()[0], flush=True)
while True: listener.accept()[0].close()
"""
CONNECTS = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 5301), timeout=3).close()
    print("reached")
except OSError as error:
    print(error)
"""


@as_root
def test_nothing_outside_reaches_an_isolated_agent(
    start: Start, agentres_run: RunAgent, peer: Peer
) -> None:
    before = left_on_the_host()
    agent = start("--quiet", "--net=isolated", command=python(LISTENS, FAR, PORT))
    assert agent.stdout is not None
    own = agent.stdout.readline().strip()
    connects = python(CONNECTS, own)
    assert (
        subprocess.run(connects, capture_output=True, text=True).stdout == "reached\n"
    )  # the host
    ip("-n", peer.name, "route", "add", str(isolate.ADDRESSES), "via", NEAR)
    there = ["ip", "netns", "exec", peer.name, *connects]
    assert subprocess.run(there, capture_output=True, text=True).stdout == "timed out\n"
    assert agentres_run("--net=isolated", command=connects, check=True).out == "timed out\n"
    agent.terminate()
    agent.communicate(timeout=DEADLINE)
    assert left_on_the_host() == before


@as_root
def test_a_namespace_that_lives_on_leaves_no_wire(start: Start, peer: Peer) -> None:
    """As with a connection that its peer does not close."""
    before = left_on_the_host()
    agent = start("--quiet", "--net=isolated", command=["sh", "-c", "echo $$; read line"])
    assert agent.stdout is not None
    namespace = os.open(f"/proc/{int(agent.stdout.readline())}/ns/net", os.O_RDONLY)
    try:
        agent.communicate("\n", timeout=DEADLINE)
        assert agent.returncode == 0
        assert left_on_the_host() == before
    finally:
        os.close(namespace)


@as_root
def test_what_a_killed_supervisor_left_of_an_isolated_agent_is_removed(
    start: Start, peer: Peer
) -> None:
    before = left_on_the_host()
    agent = start("--quiet", "--name=wired", "--orphan=keep", "--net=isolated", command=["sh", "-c", "echo $$; exec sleep 1000"])  # fmt: skip
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    agent.send_signal(signal.SIGKILL)
    agent.wait(DEADLINE)
    assert isolate.has_table()
    gc = [*AGENTRES, "gc"]
    done = subprocess.run(gc, capture_output=True, text=True, check=True)
    assert done.stdout == "nothing is left\n"  # it runs, and needs it all
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not traces() and not wires(), "no traces, and no wire")
    done = subprocess.run(gc, capture_output=True, text=True, check=True)
    assert "table ip agentres" in done.stdout
    assert left_on_the_host() == before


@as_root
def test_an_isolated_agent_asks_name_servers_outside_of_loopback(
    agentres_run: RunAgent, tmp_path: Path
) -> None:
    """As systemd-resolved's hosts have it: a stub on loopback, and its own servers in another file."""
    own, upstream = Path(netns.RESOLV_CONF), Path(netns.UPSTREAM)
    kept = own.read_bytes() if own.exists() else None
    made = not upstream.parent.exists()
    upstream.parent.mkdir(parents=True, exist_ok=True)
    try:
        own.write_text("nameserver 127.0.0.53\n")
        upstream.write_text(f"nameserver {FAR}\n")
        run = agentres_run("--net=isolated", command=["cat", str(own)], check=True)
        assert run.out == f"nameserver {FAR}\n"
        assert own.read_text() == "nameserver 127.0.0.53\n"
        upstream.unlink()
        run = agentres_run("--net=isolated", command=["cat", str(own)], check=True)
        assert "no names are resolved in there" in run.err
    finally:
        upstream.unlink(missing_ok=True)
        if made:
            upstream.parent.rmdir()
        if kept is None:
            own.unlink()
        else:
            own.write_bytes(kept)


@as_root
def test_an_isolated_agent_has_its_names_resolved(agentres_run: RunAgent, peer: Peer) -> None:
    """By a server that the host reaches, through the wire and NAT."""
    own = Path(netns.RESOLV_CONF)
    kept = own.read_bytes() if own.exists() else None
    line = ["ip", "netns", "exec", peer.name, sys.executable, "-S", "-c", NAMES, FAR, ADDRESS]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            own.write_text(f"nameserver {FAR}\n")
            ask = python("import socket; print(socket.gethostbyname('model.agentres.test'))")
            assert agentres_run("--net=isolated", command=ask, check=True).out == f"{ADDRESS}\n"
        finally:
            server.kill()
            if kept is None:
                own.unlink()
            else:
                own.write_bytes(kept)


@as_user
def test_isolated_is_roots_and_says_what_is_to_be_had(agentres_run: RunAgent) -> None:
    run = agentres_run("--net=isolated", command=["echo", "ran"])
    assert (run.status, run.out) == (125, "")
    assert "cannot enforce --net isolated: a wire to the host's network is root's" in run.err
    assert "--net none is to be had without" in run.err


@as_user
def test_without_bpf_a_rate_that_is_asked_for_is_refused(agentres_run: RunAgent) -> None:
    run = agentres_run("--net-out=1M", command=["echo", "ran"])
    assert (run.status, run.out) == (125, "")
    assert "cannot enforce --net-in/--net-out: cgroup BPF needs CAP_BPF" in run.err
    run = agentres_run("--net-out=1M", "--best-effort", command=["echo", "ran"])
    assert (run.status, run.out) == (0, "ran\n")
    assert "NOT enforced: network (cgroup BPF needs" in run.err


@as_user
def test_without_bpf_the_standard_rates_are_told_to_be_missing(agentres_run: RunAgent) -> None:
    run = agentres_run(command=["true"], check=True)
    assert "NOT enforced: network" in run.err
    assert "network    not counted here" in run.err
    run = agentres_run("--net-in=max", "--net-out=max", command=["true"], check=True)
    assert "NOT enforced: network" not in run.err
