"""``agentres metrics``: exports agents, host and alerts in Prometheus's text format."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from typing import TYPE_CHECKING, Annotated

from agentres.cli import budget
from agentres.cli.listening import parse_address
from agentres.cli.parameters import Misuse, Option
from agentres.cli.stderr import say
from agentres.kernel import signal
from agentres.model import log
from agentres.model.errors import AgentresError, UsageError, reason

if TYPE_CHECKING:
    from types import FrameType

    from prometheus_client import CollectorRegistry

    from agentres.kernel.cgroup import Cgroup
    from agentres.kernel.network import Network
    from agentres.model.stats import Sample
    from agentres.store import Store

_INSTALL = "pip install 'agentres[metrics]'"


def metrics(
    textfile: Annotated[
        str | None,
        Option(
            metavar="FILE",
            help="Write to FILE atomically, for node_exporter's textfile collector, which reads *.prom.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        Option(
            metavar="[ADDR:]PORT",
            help="Answer HTTP scrapes until interrupted. ADDR: 127.0.0.1 by default; IPv6 in brackets. PORT 0: any free port.",
        ),
    ] = None,
) -> None:
    """Print what agents and the host use, and alerts, in Prometheus's text format."""
    try:
        if textfile is not None and listen is not None:
            raise UsageError("--textfile and --listen exclude each other")
        address = None if listen is None else parse_address(listen)
        registry = _registry()
        if address is not None:
            serve(registry, *address)
        elif textfile is not None:
            write_textfile(textfile, _text(registry))
        else:
            sys.stdout.buffer.write(_text(registry))
    except UsageError as error:
        raise Misuse(str(error)) from None


def _registry() -> CollectorRegistry:
    """Return a registry with our collector only, without metrics of this process."""
    try:
        from prometheus_client import CollectorRegistry

        from agentres.readers.metrics import AgentresCollector
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise AgentresError("metrics need the package prometheus-client", _INSTALL) from None
    from agentres.kernel.delegation import hierarchy

    registry = CollectorRegistry()
    mount = hierarchy().mount
    registry.register(
        AgentresCollector(
            mount,
            _read,
            _history,
            share=budget.share("no metrics of the budget"),
            own=budget.own_slice(),
        )
    )
    return registry


def _read(path: str) -> Sample:
    from agentres.kernel.cgroup import Cgroup
    from agentres.kernel.meter import GROUPS, Meter
    from agentres.readers.marks import MarkedWrites

    cgroup = Cgroup(path)
    network = _network(cgroup)
    meter = Meter(path, network=network, writeback=MarkedWrites(path))
    try:
        for group in GROUPS:
            meter.read(group)
        return meter.reading
    finally:
        meter.close()
        cgroup.close()
        if network is not None:
            network.close()


def _network(cgroup: Cgroup) -> Network | None:
    """Return the counter of the agent's packets; None if there is none, or we may not read it."""
    from agentres.kernel import network
    from agentres.model.errors import NotEnforceable

    try:
        return network.find(cgroup)
    except NotEnforceable as error:
        log.debug(__name__, "%s", error)
        return None


def _history() -> Store:
    from agentres.model.paths import state_directory
    from agentres.store import Store

    return Store.open(os.path.join(state_directory(), "history.db"), write=False)


def _text(registry: CollectorRegistry) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(registry)


def write_textfile(path: str, text: bytes) -> None:
    """Replace the file at ``path`` by ``text``, mode 0644; a reader finds either the old or the new one.

    Anything but a regular file is refused: /dev/stdout must not be replaced.  Raises AgentresError.
    """
    directory, name = os.path.split(os.path.abspath(path))
    temporary = None
    try:
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise UsageError(f"--textfile {path}: expected a regular file, or none yet")
        # Not *.prom: node_exporter would read it before it is complete.
        file, temporary = tempfile.mkstemp(suffix=".tmp", prefix=f".{name}.", dir=directory)
        with os.fdopen(file, "wb") as opened:
            opened.write(text)
            os.fchmod(file, 0o644)
        os.rename(temporary, path)
        temporary = None
    except OSError as error:
        raise AgentresError(f"--textfile {path}: {reason(error)}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def serve(registry: CollectorRegistry, address: str, port: int) -> None:
    """Answer scrapes until SIGTERM (exit status 0) or Ctrl-C.  Raises AgentresError."""
    from prometheus_client import make_wsgi_app

    from agentres.cli._httpd import Server

    shown = f"[{address}]" if ":" in address else address
    try:
        server = Server(address, port, make_wsgi_app(registry))
    except OSError as error:
        raise AgentresError(f"--listen {shown}:{port}: {reason(error)}") from error
    with server:
        signal.signal(signal.SIGTERM, _terminated)
        say(f"metrics at http://{shown}:{server.server_port}/metrics")
        server.serve_forever()


def _terminated(signo: int, frame: FrameType | None) -> None:
    raise SystemExit(0)  # not an Exception: socketserver ignores those
