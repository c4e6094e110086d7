"""The process that reads configuration, and ``agentres config``: show, check, path and init."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from pathlib import Path

from command_line import agentres
from configured import Write, handler, rules_of

from agentres.config import load, sections
from agentres.policy.alerts import DEFAULT_RULES
from agentres.policy.settings import Settings, from_plain

# The process of its own.


def read_apart(*paths: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "agentres.config", *paths],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environ},
        timeout=60,
    )


def test_a_process_of_its_own_writes_the_settings(write_config: Write) -> None:
    done = read_apart(write_config("alerts.cpu.enabled = false"))
    assert (done.returncode, done.stderr) == (0, b"")
    settings = from_plain(marshal.loads(done.stdout))
    assert rules_of(settings, "cpu") == []


def test_a_process_of_its_own_reads_what_the_environment_names(write_config: Write) -> None:
    done = read_apart(AGENTRES_CONFIG=write_config("history.enabled = false"))
    assert not from_plain(marshal.loads(done.stdout)).history


def test_a_process_of_its_own_refuses_in_one_line(write_config: Write) -> None:
    path = write_config("a = ")
    done = read_apart(path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"{path}:1:5: invalid value\n".encode()


def test_a_module_that_prints_and_starts_threads_spoils_nothing(
    write_config: Write, tmp_path: Path
) -> None:
    write_config(
        "import os, threading, time\nprint('noise')\nos.write(1, b'noise')\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\ndef f(event): pass\n",
        "noisy_handler.py",
    )
    path = write_config('handlers.x = { type = "python", callable = "noisy_handler:f" }')
    done = read_apart(path, PYTHONPATH=str(tmp_path))
    settings = from_plain(marshal.loads(done.stdout))
    assert handler(settings, "x").options == {"callable": "noisy_handler:f"}


# The verbs.


def verb(*arguments: str, **environ: str) -> tuple[int, str, str]:
    return agentres("config", *arguments, env=environ)


def test_show_prints_a_file_of_the_same_settings(write_config: Write) -> None:
    path = write_config('alerts.cpu.warning = "60%"\nhandlers.j.type = "journal"')
    status, out, _ = verb("show", AGENTRES_CONFIG=path)
    assert status == 0
    assert load([write_config(out, "shown")]) == load([path])


def test_show_prints_json(write_config: Write) -> None:
    import json

    path = write_config("history.enabled = false")
    status, out, _ = verb("show", "--json", AGENTRES_CONFIG=path)
    assert status == 0
    assert json.loads(out) == {"schema": 1, "files": [path], **sections(load([path]))}


def test_check_tells_what_it_read(write_config: Write) -> None:
    path = write_config("")
    words = f"{len(DEFAULT_RULES)} rules, 1 handler, 4 philosophies, 0 limits"
    assert verb("check", path) == (0, f"{path}: {words}\n", "")
    assert verb("check", AGENTRES_CONFIG=path) == (0, f"{path}: {words}\n", "")


def test_check_refuses_in_one_line(write_config: Write) -> None:
    path = write_config("alerts.cpu.enabled = 0")
    line = f"agentres: {path}: alerts.cpu.enabled = 0: expected true or false\n"
    assert verb("check", path) == (1, "", line)
    assert verb("show", AGENTRES_CONFIG=path) == (1, "", line)


def test_path_tells_which_files_are_there(tmp_path: Path) -> None:
    status, out, _ = verb("path", AGENTRES_CONFIG="", XDG_CONFIG_HOME=str(tmp_path))
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 2)
    assert lines[1] == f"{tmp_path}/agentres/agentres.toml\tnot there"
    here = __file__
    assert verb("path", AGENTRES_CONFIG=here)[1] == f"{here}\tread\n"


def test_a_file_to_begin_with_says_nothing_and_means_what_is_built_in(
    write_config: Write, tmp_path: Path
) -> None:
    path = tmp_path / "deep/agentres.toml"
    assert verb("init", str(path)) == (0, f"{path}\n", "")
    assert load([str(path)]) == Settings()
    status, _, err = verb("init", str(path))
    assert status == 1
    assert "is there already" in err
    marked = path.read_text().splitlines()
    at = marked.index("# [sampling]")
    all_of_it = "\n".join(line.removeprefix("# ") for line in marked[at:])
    assert load([write_config(all_of_it)]) == Settings()
