"""How agents restart: what the generator makes of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentres.daemon.generator import drop_in, generate


def test_an_agent_that_does_not_restart_has_no_drop_in(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[agent]\ncommand = ["true"]')
    assert generate(str(tmp_path), f"{tmp_path}/out") == []
    assert not (tmp_path / "out").exists()


def test_one_that_does_waits_longer_each_time() -> None:
    text = drop_in({"restart": "on-failure", "restart_delay": "2s", "restart_delay_max": "1m"})
    assert text.splitlines() == [
        "[Unit]",
        "StartLimitIntervalSec=0",
        "[Service]",
        "Restart=on-failure",
        "RestartSec=2s",
        "RestartSteps=8",
        "RestartMaxDelaySec=60s",
    ]


def test_without_delays_the_usual_ones_hold() -> None:
    text = drop_in({"restart": "always"})
    assert "RestartSec=1s\n" in text
    assert "RestartMaxDelaySec=300s\n" in text


@pytest.mark.parametrize(
    "agent", [{"restart": "sometimes"}, {"restart": "always", "restart_delay": "soon"}]
)
def test_what_makes_no_sense_is_refused(agent: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        drop_in(agent)


def test_a_wrong_file_keeps_no_other_from_its_drop_in(tmp_path: Path) -> None:
    agents = tmp_path / "agents.d"
    agents.mkdir()
    (agents / "a.toml").write_text("[agent")
    (agents / "b.toml").write_text('[agent]\nrestart = "never"')
    (agents / "c.toml").write_text("agent = 3")
    (agents / "d.toml").write_text('[agent]\nrestart = "always"')
    (agents / "e.toml").mkdir()
    (agents / ".hidden.toml").write_text("[")
    (agents / "README").write_text("[")
    wrong = generate(str(agents), str(tmp_path / "out"))
    assert [line.partition(": ")[0] for line in wrong] == [f"{agents}/{x}.toml" for x in "abe"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["agentres@d.service.d"]
    (made,) = (tmp_path / "out" / "agentres@d.service.d").iterdir()
    assert made.read_text().startswith(f"# Made by agentres from {agents}/d.toml\n[Unit]\n")


def test_without_agents_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert generate(f"{tmp_path}/agents.d", f"{tmp_path}/out") == []
