"""Predictors of others: what they are asked, and that a bad one costs a line and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from json_types import check

from agentres.model.history_schemas import Question
from agentres.model.limits import Range
from agentres.policy.observer import Observation
from agentres.policy.prediction import Prediction, Profile, learn
from agentres.policy.settings import Settings
from agentres.run import predictors
from agentres.run.predictors import PredictorFailed, ask, checked, first_limits

NOW = 1_700_000_000.0
MIB = 1 << 20
RANGES = {"memory": [32 * MIB, 2048 * MIB], "cpu": [0.1, 4.0]}
BOUNDS = {limit: Range(least, most) for limit, (least, most) in RANGES.items()}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a package with one predictor, ``mine``, of this text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def installed(body: str) -> None:
        (tmp_path / "mine_predictor.py").write_text(body)
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[agentres.predictors]\nmine = mine_predictor:predict\n"
        )

    return installed


def question(**changed: Any) -> dict[str, Any]:
    return {"schema": 1, "ranges": RANGES, **changed}


def test_its_answer_is_what_it_returns(install: Any) -> None:
    install(
        "import sys\n"
        "def predict(question):\n"
        "    print('to stdout'); print('to stderr', file=sys.stderr)\n"
        "    assert sys.stdin.read() == ''\n"
        "    return {'memory': question['history']['runs'] * 2**20, 'cpu': 0.1 + 0.2}\n"
    )
    assert ask("mine", question(history={"runs": 64})) == {"memory": 64 * MIB, "cpu": 0.1 + 0.2}


def test_a_class_may_be_one(install: Any) -> None:
    install("class predict(dict):\n    def __init__(self, question):\n        self['cpu'] = 2\n")
    assert ask("mine", question()) == {"cpu": 2.0}


BAD = [
    ("def predict(q): raise RuntimeError('no\\nidea')", r"RuntimeError: no\\nidea \(.*mine_predictor.py:1\)"),
    ("def predict(q): raise SystemExit(0)", "SystemExit: 0"),
    ("def predict(q): return [1]", "expected a dict, got list"),
    ("def predict(q): return None", "expected a dict, got NoneType"),
    ("def predict(q): return {'memory': float('nan')}", "memory: expected a number above 0, got 'nan'"),
    ("def predict(q): return {'memory': float('inf')}", "memory: expected a number above 0, got 'inf'"),
    ("def predict(q): return {'memory': -1}", "memory: expected a number above 0, got '-1'"),
    ("def predict(q): return {'cpu': 0}", "cpu: expected a number above 0"),
    ("def predict(q): return {'cpu': True}", "cpu: expected a number above 0"),
    ("def predict(q): return {'cpu': '1'}", "cpu: expected a number above 0"),
    ("def predict(q): return {'cpu': None}", "cpu: expected a number above 0"),
    ("def predict(q): return {'pids': 5}", "expected limits among memory, cpu, got 'pids'"),
    ("def predict(q): return {3: 5}", "expected limits among memory, cpu, got '3'"),
    ("import os\ndef predict(q): os._exit(9)", "ended with status 9"),
    ("import os\ndef predict(q): os._exit(0)", "its process ended without an answer"),
    ("import os\ndef predict(q): os.kill(os.getpid(), 9)", "ended with status -9"),
    ("import os\ndef predict(q):\n os.closerange(0, 99)\n return {}", "ended with status"),
    ("raise ImportError('gone')", "ImportError: gone"),
    ("predict = 3", "mine_predictor:predict is not callable"),
    ("no python", "SyntaxError"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), BAD)
def test_a_bad_one_is_told_in_one_line(install: Any, body: str, words: str) -> None:
    install(body + "\n")
    with pytest.raises(PredictorFailed, match=words) as failure:
        ask("mine", question())
    assert "\n" not in str(failure.value)


def test_one_that_is_not_there() -> None:
    with pytest.raises(PredictorFailed, match="no entry point of this name in the group"):
        ask("nobody", question())


def test_a_slow_one_is_killed_with_what_it_started(install: Any, tmp_path: Path) -> None:
    install(
        "import os, time, pathlib\n"
        "def predict(question):\n"
        "    child = os.fork()\n"
        "    if child: pathlib.Path(__file__).with_name('pids').write_text(f'{os.getpid()} {child}')\n"
        "    time.sleep(600)\n"
    )
    start = time.monotonic()
    with pytest.raises(PredictorFailed, match="took longer than 2 s and was killed"):
        ask("mine", question(), timeout=2.0)
    assert time.monotonic() - start < 20
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                break
            if state == "Z":  # nobody has reaped the orphan yet
                break
        else:
            pytest.fail(f"{pid} still runs")


def test_what_it_prints_takes_no_memory(install: Any) -> None:
    install(
        "import os\n"
        "def predict(question):\n"
        "    for fd in (1, 2):\n"
        "        assert os.readlink(f'/proc/self/fd/{fd}') == os.devnull\n"
        "    return {'cpu': 1}\n"
    )
    assert ask("mine", question()) == {"cpu": 1.0}


def test_somebody_else_may_reap_it_first(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    killpg = os.killpg

    def late(pid: int, signal: int) -> None:
        os.waitpid(pid, 0)
        killpg(pid, signal)

    monkeypatch.setattr(os, "killpg", late)
    install("def predict(q): return {'cpu': 1}")
    assert ask("mine", question()) == {"cpu": 1.0}
    install("def predict(q): raise RuntimeError('no idea')")
    with pytest.raises(PredictorFailed, match="RuntimeError: no idea"):
        ask("mine", question())
    install("import os\ndef predict(q): os._exit(9)")
    with pytest.raises(PredictorFailed, match="its process ended without an answer"):
        ask("mine", question())


def test_no_descriptor_is_left_open(install: Any) -> None:
    install("def predict(q): return {}")
    before = len(os.listdir("/proc/self/fd"))
    assert ask("mine", question()) == {}
    with pytest.raises(PredictorFailed):
        ask("nobody", question())
    assert len(os.listdir("/proc/self/fd")) == before


def test_numbers_of_other_libraries_are_numbers() -> None:
    from decimal import Decimal
    from fractions import Fraction

    assert checked({"cpu": Fraction(1, 2), "memory": Decimal(5)}, RANGES) == {
        "cpu": 0.5,
        "memory": 5,
    }


# What a run starts with.


def known() -> Profile:
    observed = Observation(memory=200e6, cpu=((1.0, 60.0),), pids=4)
    return learn(Profile.empty("name:a"), observed, NOW)


def started(
    profile: Profile | None, predictor: str = "mine"
) -> tuple[Prediction | None, list[str]]:
    warnings: list[str] = []
    settings = Settings(predictor=predictor)
    bounds = {**BOUNDS, "io_read": Range(1, 2)}  # of which nothing is predicted
    found = first_limits(settings, profile, "name:a", ["agent"], bounds, NOW, warnings.append)
    return found, warnings


def limits_of(prediction: Prediction) -> dict[str, float]:
    """What it starts with."""
    return {each.resource: each.first for each in prediction.forecasts}


def test_without_a_predictor_the_built_in_prediction_stands() -> None:
    assert started(None, "") == (None, [])
    prediction, warnings = started(known(), "")
    assert warnings == []
    assert prediction is not None
    assert limits_of(prediction) == {"memory": 237 * MIB, "cpu": 1.17}


def test_what_it_is_asked(install: Any, tmp_path: Path) -> None:
    install(
        "import json, pathlib\n"
        "def predict(q):\n"
        "    pathlib.Path(__file__).with_name('asked').write_text(json.dumps(q))\n"
        "    return {}\n"
    )
    prediction, warnings = started(known())
    assert warnings == []
    assert prediction == started(known(), "")[0]
    import json

    asked = json.loads((tmp_path / "asked").read_text())
    check(asked, Question)
    history = asked.pop("history")
    assert asked == {
        "schema": 1, "key": "name:a", "command": ["agent"], "now": NOW, "ranges": RANGES,
        "builtin": {"memory": 237 * MIB, "cpu": 1.17},
    }  # fmt: skip
    assert (history["runs"], history["capped"], history["ooms"], history["last"]) == (1, 0, 0, NOW)
    ((low, high, weight),) = history["use"]["memory"]
    assert low <= 200e6 <= high
    assert weight == 1.0
    assert history["held"] == {"memory": [], "cpu": [], "pids": []}


def test_what_it_says_takes_the_place_of_ours_within_the_range(install: Any) -> None:
    install("def predict(q): return {'memory': 1e15}")
    prediction, warnings = started(known())
    assert warnings == []
    assert prediction is not None
    assert limits_of(prediction) == {"memory": 2048 * MIB, "cpu": 1.17}
    assert prediction.why[0] == (
        "memory 2.0 GiB: says the predictor mine; 909 TiB is beyond the most that it may have"
    )
    install("def predict(q): return {'memory': 300e6, 'cpu': 0.001}")
    prediction, _ = started(None)
    assert prediction is not None
    assert limits_of(prediction) == {"memory": 287 * MIB, "cpu": 0.1}
    assert prediction.runs == 0


def test_of_a_bad_one_a_line_is_told_and_ours_stands(install: Any) -> None:
    install("def predict(q): return {'memory': float('nan')}")
    prediction, warnings = started(known())
    assert prediction == started(known(), "")[0]
    assert warnings == [
        "predictor mine: memory: expected a number above 0, got 'nan'; it is ignored"
    ]


def test_nobody_is_asked_where_no_limit_moves() -> None:
    warnings: list[str] = []
    settings = Settings(predictor="nobody")
    assert first_limits(settings, known(), "name:a", [], {}, NOW, warnings.append) is None
    assert warnings == []


def test_the_contract_is_in_the_modules_docstring() -> None:
    assert predictors.ENTRY_POINTS in (predictors.__doc__ or "")
