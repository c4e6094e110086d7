"""Takes the pictures for scripts/screenshots: _screenshots.py SCRIPTS/VM FOLDER."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PATIENCE = 120.0
"""Seconds for whatever an emulated machine does."""

BINARY = 2
"""The opcode of a frame of bytes (RFC 6455, 11.8)."""

# Agents as they are met: bursts of memory over a flat base, a compiler that has too few cores, a writer, one
# that waits for a model, one that somebody froze.
AGENTS = r"""
burst='
import mmap, time
base = mmap.mmap(-1, 120 << 20); base.write(bytes(120 << 20))
while True:
    more = mmap.mmap(-1, 200 << 20); more.write(bytes(200 << 20)); time.sleep(4); more.close(); time.sleep(4)
'
write='
import os, time
fd = os.open("/var/tmp/agentres-screens", os.O_CREAT | os.O_RDWR)
os.unlink("/var/tmp/agentres-screens")
while True:
    os.pwrite(fd, bytes(1 << 20), 0); os.fsync(fd); time.sleep(0.3)
'
agents=()
run() { agentres run --quiet "$@" & agents+=($!); }
run --name planner --memory 64M:1G --cpu 0.1:1 -- python3 -c "$burst"
run --name compiler --cpu 0.3 --memory 256M --priority 400 -- sh -c 'while :; do :; done'
run --name crawler --io-write 2MB/s --memory 128M --cpu 0.5 -- python3 -c "$write"
run --name reviewer --memory 64M:512M -- sleep 100000
run --name translator --memory 96M --pids 64 -- sh -c 'while sleep 1; do :; done'
until [ "$(agentres ps --json | grep -c '"name"')" = 5 ]; do sleep 0.5; done
until agentres freeze translator; do sleep 0.5; done
echo up
read -r _
agentres thaw translator
kill "${agents[@]}"
wait
"""


@contextmanager
def in_the_vm(vm: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command of root's in the VM; what it still does at the end is ended."""
    line = [vm, "exec", "--no-sync", "--", *command]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=PATIENCE / 4)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)


@contextmanager
def forwarded(vm: str, port: int) -> Iterator[int]:
    """A port here that is ``port`` in the VM."""
    status = subprocess.run([vm, "status"], capture_output=True, text=True, check=True).stdout
    folder = re.search(r"^folder: (.*)$", status, re.MULTILINE)
    assert folder is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = free.getsockname()[1]
    line = ["ssh", "-F", f"{folder[1]}/ssh_config", "-o", "ControlPath=none", "-N",
            "-L", f"127.0.0.1:{here}:127.0.0.1:{port}", "agentres-vm"]  # fmt: skip
    with subprocess.Popen(line, stdin=subprocess.DEVNULL) as process:
        try:
            yield here
        finally:
            process.terminate()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    profile = tempfile.mkdtemp()
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars",
                 "--window-size=1280,560", f"--user-data-dir={profile}", "--no-proxy-server"):  # fmt: skip
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def await_drawn(driver: Any, pattern: str) -> None:
    """Wait until the terminal in the page is sent what matches."""
    end, drawn = time.monotonic() + PATIENCE, ""
    while not re.search(pattern, drawn):
        if time.monotonic() > end:
            raise SystemExit(f"screenshots: {pattern!r} was never drawn")
        for entry in driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            frame = event["params"].get("response", {})
            if event["method"] == "Network.webSocketFrameReceived" and frame["opcode"] == BINARY:
                drawn += base64.b64decode(frame["payloadData"]).decode(errors="replace")
        time.sleep(0.2)


def save(driver: Any, file: Path) -> None:
    """The terminal in the page as a picture, which has all its lines."""
    below = "return innerHeight - document.querySelector('.xterm-screen').clientHeight"
    if driver.execute_script(below) < 0:
        raise SystemExit(f"screenshots: {file.name} would lack its last lines")
    driver.save_screenshot(str(file))


def dashboard(driver: Any, where: str, folder: Path) -> None:
    """The list of agents, and the page of one."""
    driver.get(where)
    await_drawn(driver, "planner")
    terminal = driver.find_element(By.CSS_SELECTOR, ".xterm-helper-textarea")
    terminal.send_keys("s")  # by memory
    time.sleep(60)  # the sparklines are to have something to show
    save(driver, folder / "dashboard.png")
    driver.set_window_size(1280, 1150)
    terminal.send_keys(Keys.ENTER)
    await_drawn(driver, "main process")
    time.sleep(10)
    save(driver, folder / "agent.png")


def report(driver: Any, state: Path, folder: Path) -> None:
    """The page about the history in ``state``."""
    with tempfile.TemporaryDirectory() as made:
        page = Path(made, "report.html")
        line = [sys.executable, "-m", "agentres", "report", "planner", "compiler", "-o", str(page)]
        environment = {**os.environ, "AGENTRES_STATE_DIR": str(state)}
        subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
        driver.set_window_size(1180, 1500)
        driver.get(f"file://{page}")
        # As far as the curves of the first run: a picture ends between two things, not within one.
        end = "return document.querySelector('figure').getBoundingClientRect().top"
        clip = {"x": 0, "y": 0, "width": 1180, "height": driver.execute_script(end), "scale": 1}
        taken = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
        )
        (folder / "report.png").write_bytes(base64.b64decode(taken["data"]))


def main() -> None:
    """Take them all."""
    vm, folder = sys.argv[1], Path(sys.argv[2])
    with (
        in_the_vm(vm, "bash", "-c", AGENTS) as agents,
        in_the_vm(vm, "agentres", "dashboard", "--control", "--listen", "0") as server,
    ):
        assert agents.stdout is not None
        assert server.stdout is not None
        if agents.stdout.readline() != "up\n":
            raise SystemExit("screenshots: the agents did not start")
        server.stdout.readline()
        where = server.stdout.readline().split()[-1]
        port, query = re.fullmatch(r"http://[^:]*:(\d+)/(.*)", where).groups()  # type: ignore[union-attr]
        with forwarded(vm, int(port)) as here, chromium() as driver:
            wait_for_port(here)
            dashboard(driver, f"http://127.0.0.1:{here}/{query}", folder)
        server.send_signal(signal.SIGINT)
    with tempfile.TemporaryDirectory() as pulled, chromium() as driver:
        subprocess.run([vm, "pull", "/var/lib/agentres", pulled], check=True)
        report(driver, Path(pulled, "agentres"), folder)


def wait_for_port(port: int) -> None:
    """Wait until somebody listens there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
