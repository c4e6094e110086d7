"""The dashboard in a browser: who is let in, and what a real Chromium shows (Debian's, headless)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TOP = Path(__file__).with_name("recorded_top.py")

SERVE = """
import sys
from agentres.readers.web import Dashboard, serve
folder, token, *names = sys.argv[1:]
top = [sys.executable, {top!r}, folder]
serve(Dashboard([*top, "--read-only"], top, token, names), "127.0.0.1", 0, lambda where: print(where, flush=True))
"""

TOKEN = "a-token-of-this-test"


class Served:
    """A dashboard that listens; ``url`` ends in a slash."""

    def __init__(self, folder: Path, *names: str, token: str = TOKEN) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE.format(top=str(TOP)), str(folder), token, *names],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOP.parent)},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def get(self, path: str = "", **headers: str) -> tuple[int, str, dict[str, str]]:
        request = urllib.request.Request(self.url + path, headers=headers)
        opener = urllib.request.build_opener(_Stay)
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def viewers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def wait_until(done: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait for what nobody tells us of."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            pytest.fail(f"in vain: {what}")
        time.sleep(0.02)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    served: list[Served] = []

    def begin(*names: str, **given: Any) -> Served:
        served.append(Served(tmp_path, *names, **given))
        return served[-1]

    yield begin
    for one in served:
        one.end()


# Who is let in.


def test_the_page_has_nothing_from_elsewhere(serve: Callable[..., Served]) -> None:
    status, page, headers = serve().get()
    assert status == 200
    addresses = re.findall(r'(?:src|href)="([^"]*)"|url\("([^"]*)"\)', page)
    assert len(addresses) == page.count("src=") + page.count("href=") + page.count("url(") > 4
    for attribute, style in addresses:
        assert re.match(r"/[^/]|/$|data:,", attribute or style), (attribute, style)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("localhost", 200), ("localhost:9", 200), ("[::1]:80", 200),
        ("dash.example", 200), ("DASH.example:443", 200), ("evil.example", 403),
        ("127.0.0.1.evil.example", 403), ("127.0.0.2", 403), ("", 403), ("[", 403), ("a@localhost", 403),
    ],
)  # fmt: skip
def test_only_names_that_it_knows(serve: Callable[..., Served], host: str, status: int) -> None:
    served = serve("dash.example")
    # urllib would put in a Host of its own for an empty one.
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: sock.recv(65536), b""))
    got = int(said.split(b" ", 2)[1])
    assert got == status or (status == 403 and got == 400)  # a Host that is none


def test_other_paths_are_not_there(serve: Callable[..., Served]) -> None:
    served = serve()
    for path in ("x", "download/a", "static/../server.py", "static/%2e%2e/server.py", "static/"):
        assert served.get(path)[0] in (403, 404), path


def upgrade(host: str, origin: str | None) -> bytes:
    """The beginning of a websocket (RFC 6455, 4.1)."""
    lines = [
        "GET /ws?width=80&height=24 HTTP/1.1", f"Host: {host}", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]  # fmt: skip
    lines += [f"Origin: {origin}"] if origin is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


def handshake(served: Served, origin: str | None) -> tuple[int, socket.socket]:
    """The status of the answer to a websocket's beginning, and the connection."""
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    sock.sendall(upgrade(f"127.0.0.1:{served.port}", origin))
    return int(sock.recv(4096).split(b" ", 2)[1]), sock


def status_of(served: Served, origin: str | None) -> int:
    status, sock = handshake(served, origin)
    sock.close()
    return status


def watching(served: Served) -> socket.socket:
    """A viewer's connection."""
    status, sock = handshake(served, f"http://127.0.0.1:{served.port}")
    assert status == 101
    return sock


def test_only_its_own_page_may_look(serve: Callable[..., Served]) -> None:
    served = serve()
    for origin in (None, "http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}", ""):
        assert status_of(served, origin) == 403, origin
    watching(served).close()
    wait_until(lambda: not served.viewers(), "who has hung up has no process")


def test_a_token_becomes_a_cookie(serve: Callable[..., Served]) -> None:
    served = serve()
    status, _, headers = served.get(f"?token={TOKEN}")
    assert (status, headers["Location"]) == (303, "/")
    for word in (f"agentres_{served.port}={TOKEN};", "HttpOnly", "SameSite=Strict"):
        assert word in headers["Set-Cookie"]
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "%FF"):
        status, _, headers = served.get(f"?token={wrong}")
        assert (status, headers.get("Set-Cookie")) == (403, None)


def test_without_a_token_nothing_is_one(serve: Callable[..., Served]) -> None:
    served = serve(token="")
    assert served.get("?token=")[0] == 403


def test_so_many_may_look(serve: Callable[..., Served]) -> None:
    from agentres.readers.web import VIEWERS

    served = serve()
    origin = f"http://127.0.0.1:{served.port}"
    held = [watching(served) for _ in range(VIEWERS)]
    assert status_of(served, origin) == 503
    held.pop().close()
    wait_until(lambda: status_of(served, origin) == 101, "there is room again")
    for sock in held:
        sock.close()
    wait_until(lambda: not served.viewers(), "no process is left")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_it(serve: Callable[..., Served], number: int) -> None:
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
        sock.sendall(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n"
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        while b"trainer" not in sock.recv(65536):
            pass
        viewers = served.viewers()
        assert viewers
        served.process.send_signal(number)
        assert served.process.wait(timeout=20) == (0 if number != signal.SIGKILL else -number)
    wait_until(lambda: not any(map(_runs, viewers)), "its viewers' processes end")


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def frames(sock: socket.socket) -> None:
    """Read until the other side closes."""
    while sock.recv(65536):
        pass


def message(text: bytes) -> bytes:
    """A client's frame (RFC 6455, 5.2), masked with zeros."""
    if len(text) < 126:
        head = bytes([0x81, 0x80 | len(text)])
    elif len(text) < 1 << 16:
        head = bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2, "big")
    else:
        head = bytes([0x81, 0x80 | 127]) + len(text).to_bytes(8, "big")
    return head + bytes(4) + text


_NONSENSE = (
    b"", b"{", b"{}", b"[]", b"7", b"null", b'["stdin"]', b'["stdin", 7]', b'["resize", 7]',
    b'["resize", {"width": "a"}]', b'["resize", {"width": null}]', b'["blur", 1]', b'["x"]', b'[["stdin"], 1]',
    b"[" * 5000, b"[" + b" " * (1 << 17) + b"]",
)  # fmt: skip


def test_what_makes_no_sense_ends_the_viewer_alone(serve: Callable[..., Served]) -> None:
    from agentres.readers.web import VIEWERS

    served = serve()
    some = VIEWERS // 2  # at once: those before them may still be leaving
    for at in range(0, len(_NONSENSE), some):
        texts = _NONSENSE[at : at + some]
        viewers = [watching(served) for _ in texts]
        for text, sock in zip(texts, viewers, strict=True):
            sock.sendall(message(text))
        for sock in viewers:
            try:
                frames(sock)
            except ConnectionResetError:  # it did not read all of it
                pass
            sock.close()
    wait_until(lambda: not served.viewers(), "the viewers' processes have ended")
    assert served.get()[0] == 200


def test_who_does_not_hang_up_is_not_waited_for(serve: Callable[..., Served]) -> None:
    with watching(serve()) as sock:
        began = time.monotonic()
        sock.sendall(message(b"{}"))
        frames(sock)  # without an answer to its close (RFC 6455, 5.5.1)
        assert time.monotonic() - began < 9  # two seconds; aiohttp alone would wait for ten


# The command.


def dashboard(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentres", "dashboard", *words], capture_output=True, text=True,
        check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def refused(*words: str) -> str:
    done = dashboard(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("agentres: ").rstrip()


def token_in(tmp_path: Path, data: bytes, mode: int = 0o600) -> str:
    file = tmp_path / "token"
    file.write_bytes(data)
    file.chmod(mode)
    return str(file)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_token_that_others_may_read_is_none(tmp_path: Path, mode: int) -> None:
    file = token_in(tmp_path, TOKEN.encode(), mode)
    assert refused("--token-file", file) == (
        f"--token-file {file}: others may read it; chmod 600 {file}"
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"short", b"a token with blanks in it", b"\xff" * 20, b"a" * 10 + b"\n" + b"b" * 10],
)
def test_a_token_that_is_none(tmp_path: Path, data: bytes) -> None:
    file = token_in(tmp_path, data)
    assert refused("--token-file", file) == (
        f"--token-file {file}: expected 16 or more printable ASCII characters in a line"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--token-file", "/nowhere"], "--token-file /nowhere: no such file or directory"),
        (["--token-file", "/nowhere", "--control"], "--control makes a token, --token-file has one: say one of them"),
        (["--listen", "80000"], "--listen 80000: expected a port up to 65535"),
        (["--interval", "0s"], "--interval 0s: expected 0.2s or more"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(words: list[str], said: str) -> None:
    assert refused(*words) == said


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused("--listen", str(port)).startswith(f"--listen 127.0.0.1:{port}: ")


def test_without_the_server_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError('none', name='aiohttp')")
    done = dashboard(PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "agentres: the dashboard needs the package textual-serve; pip install 'agentres[web]'\n"
    )


@pytest.mark.parametrize("control", [False, True])
def test_it_listens_on_the_loopback_alone_and_says_where(control: bool) -> None:
    line = [sys.executable, "-m", "agentres", "dashboard", "--listen", "0"]
    line += ["--control"] if control else []
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        where = re.fullmatch(r"looking at (http://127\.0\.0\.1:(\d+)/)\n", server.stdout.readline())
        assert where is not None
        (listening,) = {
            connection.laddr
            for connection in psutil.Process(server.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == ("127.0.0.1", int(where[2]))
        if control:
            token = re.fullmatch(
                rf"control by {re.escape(where[1])}\?token=([\w-]{{43}})\n",
                server.stdout.readline(),
            )
            assert token is not None
        server.terminate()
        assert server.stdout.read() == ""
        assert server.wait(timeout=20) == 0


# What a browser shows.

needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no Chromium here: apt-get install chromium chromium-driver",
)


class Browser:
    """A headless Chromium on a page of the dashboard."""

    def __init__(self, driver: Any, served: Served) -> None:
        self.driver, self.served = driver, served
        self._told: list[dict[str, Any]] = []
        self._frames = ""

    def open(self, path: str = "") -> None:
        self.driver.get(self.served.url + path)

    def type(self, *keys: str) -> None:
        from selenium.webdriver.common.by import By

        area = self.driver.find_element(By.CSS_SELECTOR, ".xterm-helper-textarea")
        for key in keys:
            area.send_keys(key)

    def told(self) -> list[dict[str, Any]]:
        """What the browser's network has seen so far (the DevTools protocol's events)."""
        for entry in self.driver.get_log("performance"):
            self._told.append(json.loads(entry["message"])["message"])
        return self._told

    def drawn(self) -> str:
        """All that was sent to be drawn."""
        import base64

        seen = [
            base64.b64decode(event["params"]["response"]["payloadData"]).decode(errors="replace")
            for event in self.told()
            if event["method"] == "Network.webSocketFrameReceived"
            and event["params"]["response"]["opcode"] == 2
        ]
        return "".join(seen)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.drawn(), f"{text!r} is drawn", 60)

    def requested(self) -> list[str]:
        """What pages have asked for; the browser's own first one does so as late as it likes, and is left out."""
        asked = (e["params"] for e in self.told() if e["method"] == "Network.requestWillBeSent")
        return [e["request"]["url"] for e in asked if not e["documentURL"].startswith("chrome")]

    def dots(self) -> int:
        """How many colours the page's picture has."""
        import io

        from PIL import Image

        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        return len(picture.getcolors(1 << 24) or ())


@pytest.fixture
def browse(serve: Callable[..., Served], tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    drivers = []

    def begin(**given: Any) -> Browser:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for word in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
            "--window-size=1280,800", f"--user-data-dir={tmp_path}/chromium", "--no-proxy-server",
        ):  # fmt: skip
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = Service(shutil.which("chromedriver"))
        drivers.append(webdriver.Chrome(options=options, service=service))
        return Browser(drivers[-1], serve(**given))

    yield begin
    for driver in drivers:
        driver.quit()


@needs_chromium
def test_a_browser_shows_the_agents_and_changes_nothing(browse: Callable[..., Browser]) -> None:
    browser = browse()
    browser.open()
    browser.wait_for("trainer")
    browser.wait_for("3.10/")  # a rate: it has looked again
    wait_until(lambda: browser.dots() > 20, "the terminal is drawn")
    browser.type("x", "y")
    browser.type("s")
    wait_until(lambda: browser.drawn().count("2.5G/3.0G") > 1, "sorted by memory, and drawn anew")
    assert "Stop trainer?" not in browser.drawn()
    assert not (browser.served.folder / "done").exists()
    requested, own = browser.requested(), (browser.served.url, "data:", "ws://127.0.0.1:")
    assert requested
    assert [url for url in requested if not url.startswith(own)] == []
    severe = [e for e in browser.driver.get_log("browser") if e["level"] == "SEVERE"]
    assert severe == []


@needs_chromium
def test_with_the_token_a_browser_commands(browse: Callable[..., Browser]) -> None:
    browser = browse()
    browser.open(f"?token={TOKEN}")
    assert browser.driver.current_url == browser.served.url  # it stays in no history
    browser.wait_for("3.10/")
    browser.type("x")
    browser.wait_for("Stop trainer?")
    browser.type("y")
    done = browser.served.folder / "done"
    # The shell makes the file before it writes to it.
    wait_until(lambda: done.exists() and done.read_text(), "it was stopped")
    assert done.read_text() == "stop trainer\n"


@needs_chromium
def test_the_last_line_stays_in_sight_when_the_window_grows(browse: Callable[..., Browser]) -> None:
    browser = browse()
    browser.driver.set_window_size(1280, 560)
    browser.open()
    browser.wait_for("trainer")
    below = 'return innerHeight - document.querySelector(".xterm-screen").clientHeight'
    browser.driver.set_window_size(1280, 1150)
    wait_until(lambda: browser.driver.execute_script("return innerHeight") > 900, "it has grown")
    wait_until(lambda: browser.driver.execute_script(below) < 100, "the terminal has grown, too")
    assert 0 <= browser.driver.execute_script(below) < 30  # less than two lines


@needs_chromium
def test_the_page_says_that_it_has_ended(browse: Callable[..., Browser]) -> None:
    browser = browse()
    browser.open()
    browser.wait_for("trainer")
    browser.type("q")
    text = 'return document.querySelector(".told").innerText'
    wait_until(lambda: "It has ended." in (browser.driver.execute_script(text) or ""), "it says so")
    wait_until(lambda: not browser.served.viewers(), "its process has ended")
