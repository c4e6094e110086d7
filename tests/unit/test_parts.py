"""Parts of ``scripts/test``: what they start goes with them, no two calls share a clone's logs, nothing is skipped in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from _tests import parts

ROOT = Path(__file__).parents[2]

# A shell's background job ignores interrupts.
FAMILY = ["sh", "-c", "sleep 1000 & echo $!; wait"]
TIDY = """
import time
try:
    print("up", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("tidied up", flush=True)
"""


def test_what_a_block_starts_ends_with_it_and_so_does_what_that_started() -> None:
    with parts.child(FAMILY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        grandchild = psutil.Process(int(process.stdout.readline()))
    grandchild.wait(10)
    assert not grandchild.is_running()


def test_it_is_interrupted_so_that_it_can_tidy_up() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as output:
        with parts.child([sys.executable, "-c", TIDY], stdout=writing) as process:
            os.close(writing)
            assert output.readline() == b"up\n"
        assert output.read() == b"tidied up\n"
    assert process.returncode == 0


def test_one_call_at_a_time(tmp_path: Path) -> None:
    first = parts.Parts(tmp_path / "logs")
    (tmp_path / "logs" / "kept").touch()
    with pytest.raises(SystemExit, match="this clone's tests run already"):
        parts.Parts(tmp_path / "logs")
    assert (tmp_path / "logs" / "kept").exists()
    assert first.all == []


def test_each_round_keeps_its_logs(tmp_path: Path) -> None:
    made = parts.Parts(tmp_path / "logs")
    for number in (1, 2):
        made.begin_round(number)
        made.command("a part", ["echo", f"round {number}"], cwd=tmp_path)
    kept = [(tmp_path / f"logs/round-{number}/a-part.log").read_text() for number in (1, 2)]
    assert kept == ["round 1\n", "round 2\n"]


def test_progress_is_shown_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = parts.Parts(tmp_path / "logs")
    part = made.command(
        "it", ["sh", "-c", "echo vm: half; echo else; exit 3"], cwd=tmp_path, aloud="vm: "
    )
    assert part.verdict == "FAILED (exit 3)"
    assert "test: vm: half\n" in capsys.readouterr().err
    assert made.log("it").read_text() == "vm: half\nelse\n"


SKIPS = """\
=========================== short test summary info ============================
SKIPPED [2] tests/unit/test_deploy.py:121: no promtool here: apt-get install prometheus
SKIPPED [1] tests/unit/test_metrics.py:387: no promtool here: apt-get install prometheus
SKIPPED [4] tests/unit/test_package.py: only development has what builds
FAILED tests/unit/test_a.py::test_it - assert 1 == 2
=================== 1 failed, 9 passed, 7 skipped in 79.70s ====================
"""


def test_why_tests_were_skipped_is_told_once_a_reason(tmp_path: Path) -> None:
    told = parts.Parts(tmp_path / "logs")
    for name in ("one", "two"):
        told.command(name, ["printf", "%s", SKIPS], cwd=tmp_path)
    assert told.skips() == [
        "   8 skipped: only development has what builds",
        "   6 skipped: no promtool here: apt-get install prometheus",
    ]


# What a host has that .ci/run begins on: programs that do nothing, and of the real ones what the script itself is made of.
DONE = "#!/bin/sh\nexit 0\n"
NEEDED = ("bash", "cat", "chmod", "dirname", "mkdir", "mktemp", "mv", "rm", "sh")
ASSEMBLED = """\
#!/bin/sh
mkdir -p "$3/usr/bin"
for name in {programs}; do
  printf '#!/bin/sh\\n' >"$3/usr/bin/$name"
  chmod +x "$3/usr/bin/$name"
done
"""


def ci(
    folder: Path, fetched: str = "", programs: str = "prometheus promtool"
) -> subprocess.CompletedProcess[str]:
    """``.ci/run`` where apt says ``fetched``, and the package has these programs; ``scripts/test`` tells where they are."""
    for name in (".ci/run", "scripts/_common.sh"):
        (folder / "tree" / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    test = folder / "tree/scripts/test"
    test.write_text("#!/bin/sh\nfor name in prometheus promtool; do command -v $name; done\n")
    there = folder / "bin"
    there.mkdir()
    for name in NEEDED:
        (there / name).symlink_to(shutil.which(name) or "")
    given = dict.fromkeys(("shellcheck", "clang-14", "chromium", "chromedriver"), DONE)
    given["apt-get"] = f"#!/bin/sh\n{fetched}\n"
    given["dpkg-deb"] = ASSEMBLED.format(programs=programs)
    for name, text in given.items():
        (there / name).write_text(text)
    for file in (test, *(there / name for name in given)):
        file.chmod(0o755)
    return subprocess.run(
        ["bash", folder / "tree/.ci/run"], capture_output=True, text=True, check=False,
        env={"PATH": str(there), "TMPDIR": str(folder), "HOME": str(folder / "home")},
    )  # fmt: skip


def test_ci_brings_prometheus_and_promtool(tmp_path: Path) -> None:
    done = ci(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [Path(line).name for line in done.stdout.splitlines()] == ["prometheus", "promtool"]
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "home", "tree"}
    shutil.rmtree(tmp_path / "bin")
    shutil.rmtree(tmp_path / "tree")
    assert ci(tmp_path, "exit 100").stdout == done.stdout  # fetched once


@pytest.mark.parametrize(
    ("fetched", "programs"), [("exit 100", "prometheus promtool"), ("", "prometheus")]
)
def test_ci_goes_no_further_without_them(tmp_path: Path, fetched: str, programs: str) -> None:
    done = ci(tmp_path, fetched, programs)
    assert (done.returncode, done.stdout) == (125, "")
    assert "package prometheus" in done.stderr
