"""Configuration that makes no sense: each mistake is refused in one line, and in which words."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from configured import Write, host

from agentres.config import ConfigError, load
from agentres.model.errors import UsageError
from agentres.policy.resources import RESOURCES

OF_MEMORY = 'expected a size such as "300MiB" or percent of the limit such as "75%", above 0 and at most 100%'
OF_CPU = (
    'expected cores such as 1.5 or percent of the limit such as "75%", above 0 and at most 100%'
)
OF_PIDS = (
    'expected a number such as 500 or percent of the limit such as "75%", above 0 and at most 100%'
)
OF_FDS = "expected a number such as 500, above 0"
OF_SWAP = 'expected a size such as "300MiB", above 0'
OF_DISK = 'expected bytes a second such as "100MB/s", above 0'
OF_TIME = 'expected percent of the time such as "20%", more than 0% and at most 100%'
DURATION = 'expected a duration such as "30s", 0s to 30d'
SHARE = 'expected percent of the threshold such as "5%", less than 100%'
ANY_OF = 'expected one of "agent", "host", "slice", or a list of them, each once'
MIXED = "expected both in percent of the limit or neither, and there is"
SEVERITIES = '"INFO", "WARNING", "CRITICAL" or "EMERGENCY"'
TYPES = '"python", "command", "webhook", "journal" or "terminal"'
NAME = "expected a name of at most 64 letters, digits, _ and -"
TIMEOUT = 'expected a duration such as "30s", more than 0s and at most 5m'
QUEUE = "expected a whole number, 1 to 10000"
ARGV = 'expected a list of text such as ["/usr/bin/logger", "-t", "agentres"]'
URL = 'expected a URL such as "https://example.org/alerts", without user and spaces'
NOT_BUILT_IN = "nothing of this name being built in"
SECTIONS = 'expected a section: "sampling", "history", "limits", "scaling", "budget", "prediction", "philosophies", "ceilings", "alerts", "handlers" or "agent"'
FRACTION = 'expected percent such as "50%"'
LASTING = 'expected a duration such as "30s", 1s to 30d'
PHILOSOPHY = 'expected a philosophy: "balanced", "conservative", "aggressive" or "frozen"'
RANGE = "expected least:most such as 256M:2G"

REFUSED = [
    ('[ceilings.x]\nmemory = "1G:2G"', 'ceilings.x.memory = "1G:2G": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nmemory = "max"', 'ceilings.x.memory = "max": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nio_read = "/dev/vda=3M"', 'ceilings.x.io_read = "/dev/vda=3M": expected one figure, which is the most that it may be'),
    ('[ceilings.x]\nmemori = "1G"', 'ceilings.x.memori = "1G": expected a key, did you mean "memory"?'),
    ("[ceilings.x]\ncpu = 0", "ceilings.x.cpu = 0: must be above 0"),
    ("[ceilings.x]\nusers = 3", "ceilings.x.users = 3: expected a name, or a list of them"),
    ("[ceilings.x]\nagents = -1", "ceilings.x.agents = -1: expected a whole number, 0 to 1000"),
    ("ceilings.memory = 3", "ceilings.memory = 3: expected a section"),
    # Sections and keys.
    ("alert = 3", 'alert = 3: expected a section, did you mean "alerts"?'),
    ("[alrets.memory]", 'alrets: expected a section, did you mean "alerts"?'),
    ("[x]", f"x: {SECTIONS}"),
    ('["x\\ny"]', f'"x\\ny": {SECTIONS}'),
    ("alerts = 3", "alerts = 3: expected a section"),
    ("handlers = 3", "handlers = 3: expected a section"),
    ("alerts.memory = 3", "alerts.memory = 3: expected a section"),
    ("handlers.terminal = 3", "handlers.terminal = 3: expected a section"),
    ("sampling = []", "sampling = []: expected a section"),
    ("history = false", "history = false: expected a section"),
    ("sampling.intervall = 1", 'sampling.intervall = 1: expected a key of sampling, did you mean "interval"?'),
    ("history.x = 1", 'history.x = 1: expected a key of history: "enabled"'),
    ("alerts.memory.warnin = 3", 'alerts.memory.warnin = 3: expected a key, did you mean "warning"?'),
    ("alerts.memory.Warning = 3", 'alerts.memory.Warning = 3: expected a key, did you mean "warning"?'),
    ("handlers.terminal.url = 3", 'handlers.terminal.url = 3: expected a key: "type", "severity", "timeout", "queue" or "enabled"'),
    ('[handlers.x]\ntype = "webhook"\nulr = "y"', 'handlers.x.ulr = "y": expected a key, did you mean "url"?'),
    # Sampling, history.
    ('sampling.interval = "0.5s"', 'sampling.interval = "0.5s": expected a duration such as "30s", 1s to 1h'),
    ('sampling.interval = "61m"', 'sampling.interval = "61m": expected a duration such as "30s", 1s to 1h'),
    ("sampling.interval = true", 'sampling.interval = true: expected a duration such as "30s", 1s to 1h'),
    ("sampling.interval = nan", 'sampling.interval = nan: expected a duration such as "30s", 1s to 1h'),
    ('sampling.fastest = "9ms"', 'sampling.fastest = "9ms": expected a duration such as "30s", 10ms to 1h'),
    ('sampling.fastest = "6s"', 'sampling.fastest = "6s": expected at most interval = "5s"'),
    ("history.enabled = 1", "history.enabled = 1: expected true or false"),
    # Limits.
    ("limits = 3", "limits = 3: expected a section"),
    ("limits.memroy = 3", 'limits.memroy = 3: expected a key of limits, did you mean "memory"?'),
    ('limits.memory = "2G:1G"', f'limits.memory = "2G:1G": {RANGE}: its least, 2.0 GiB, is above its most, 1.0 GiB'),
    ('limits.memory = ":1G"', f'limits.memory = ":1G": {RANGE}'),
    ('limits.memory = "9G"', 'limits.memory = "9G": is above the host\'s 8.0 GiB'),
    ('limits.memory = "1G:9G"', 'limits.memory = "1G:9G": 9G: is above the host\'s 8.0 GiB'),
    ("limits.memory = 0", "limits.memory = 0: must be above 0"),
    ("limits.memory = true", 'limits.memory = true: expected a limit, or a range such as "256M:2G", as text'),
    ("limits.memory = nan", 'limits.memory = nan: expected a limit, or a range such as "256M:2G", as text'),
    ("limits.memory = []", 'limits.memory = []: expected a limit, or a range such as "256M:2G", as text'),
    ('limits.cpu = ""', 'limits.cpu = "": expected a limit, or a range such as "256M:2G", as text'),
    ("limits.cpu = 5", "limits.cpu = 5: is above the host's 4 cores"),
    ("limits.cpu = -1.5", "limits.cpu = -1.5: must not be negative; expected cores such as 1.5, or percent of one core such as 150%"),
    ('limits.swap = "0:1G"', 'limits.swap = "0:1G": expected one value: this limit does not move'),
    ("limits.pids = 1.5", "limits.pids = 1.5: expected a whole number such as 512"),
    ('limits.pids = "1\\n2"', 'limits.pids = "1\\n2": expected a whole number such as 512'),
    ('limits.io_read = "vda=5M"', 'limits.io_read = "vda=5M": a device is a path, as /dev/vda=50M'),
    ('limits.io_read = ["5M", "/a=0"]', 'limits.io_read = ["5M", "/a=0"]: /a=0: must be above 0'),
    ("limits.io_read = [[1]]", 'limits.io_read = [[1]]: expected a rate or a range such as "10M:100M" or "/dev/vda=50M", or a list of them'),
    # Scaling, budget, prediction.
    ('scaling.philosophy = "balancd"', 'scaling.philosophy = "balancd": expected a philosophy, did you mean "balanced"?'),
    ('scaling.philosophy = "x"', f'scaling.philosophy = "x": {PHILOSOPHY}'),
    ("scaling.philosophy = 3", "scaling.philosophy = 3: expected text"),
    ("scaling.predict = 1", "scaling.predict = 1: expected true or false"),
    ("scaling.predictor = 3", "scaling.predictor = 3: expected text"),
    ("scaling.x = 1", 'scaling.x = 1: expected a key of scaling: "philosophy", "predict" or "predictor"'),
    ('budget.share = "101%"', f'budget.share = "101%": {FRACTION}, 1% to 100%'),
    ("budget.share = 80", f"budget.share = 80: {FRACTION}, 1% to 100%"),
    ("budget.share = 0", f"budget.share = 0: {FRACTION}, 1% to 100%"),
    ('prediction.half_life = "-1s"', 'prediction.half_life = "-1s": expected a duration such as "30s", 1m to 365d'),
    ('prediction.percentile = "0%"', f'prediction.percentile = "0%": {FRACTION}, 1% to 100%'),
    ("prediction.margin = -0.1", f"prediction.margin = -0.1: {FRACTION}, 0% to 100%"),
    # Philosophies.
    ("philosophies = 3", "philosophies = 3: expected a section"),
    ("philosophies.x = 3", "philosophies.x = 3: expected a section"),
    ('[philosophies."a b"]', f'philosophies."a b": {NAME}'),
    ("philosophies.x.stpe = 3", 'philosophies.x.stpe = 3: expected a key, did you mean "step"?'),
    ("philosophies.x.moves = false", 'philosophies.x.moves = false: expected a key: "based_on", "up", "down", "step", "aim", "cooldown", "burst", "give_back", "patience" or "margin"'),
    ("philosophies.x.step = 1", "philosophies.x.step = 1: expected a factor such as 1.5, more than 1 and at most 10"),
    ("philosophies.x.step = 0.5", "philosophies.x.step = 0.5: expected a factor such as 1.5, more than 1 and at most 10"),
    ('philosophies.x.step = "1.5"', 'philosophies.x.step = "1.5": expected a factor such as 1.5, more than 1 and at most 10'),
    ("philosophies.x.step = 11", "philosophies.x.step = 11: expected a factor such as 1.5, more than 1 and at most 10"),
    ("philosophies.x.step = 3", "philosophies.x.step = 3: expected less than up / down, which is 3"),
    ("philosophies.x.patience = 0.5", "philosophies.x.patience = 0.5: expected a factor such as 1.5, 1 to 1000"),
    ('philosophies.x.up = "96%"', f'philosophies.x.up = "96%": {FRACTION}, 1% to 95%'),
    ('philosophies.x.up = "75"', f'philosophies.x.up = "75": {FRACTION}, 1% to 95%'),
    ('philosophies.x = { up = "60%", aim = "60%" }', 'philosophies.x.up = "60%": expected more than aim = "60%"'),
    ('philosophies.x = { aim = "30%", down = "30%" }', 'philosophies.x.aim = "30%": expected more than down = "30%"'),
    ('philosophies.x.aim = "80%"', 'philosophies.x.aim = "80%": expected less than up = "75%"'),
    ('philosophies.x.aim = "20%"', 'philosophies.x.aim = "20%": expected more than down = "25%"'),
    ('philosophies.x = { up = "50%", aim = "40%", down = "45%" }', 'philosophies.x.aim = "40%": expected more than down = "45%"'),
    ('philosophies.x = { step = 2, up = "75%", down = "40%" }', "philosophies.x.step = 2: expected less than up / down, which is 1.88"),
    ("philosophies.x.down = -0.1", f"philosophies.x.down = -0.1: {FRACTION}, 0% to 95%"),
    ('philosophies.x.margin = "-1%"', f'philosophies.x.margin = "-1%": {FRACTION}, 0% to 100%'),
    ('philosophies.x.cooldown = "-5s"', f'philosophies.x.cooldown = "-5s": {LASTING}'),
    ("philosophies.x.cooldown = 0", f"philosophies.x.cooldown = 0: {LASTING}"),
    ('philosophies.x.cooldown = "never"', f'philosophies.x.cooldown = "never": {LASTING}'),
    ("philosophies.x.give_back = -1", f'philosophies.x.give_back = -1: {LASTING}, or "never"'),
    ("philosophies.x.give_back = nan", f'philosophies.x.give_back = nan: {LASTING}, or "never"'),
    ("philosophies.x.burst = 1", "philosophies.x.burst = 1: expected true or false"),
    ('philosophies.x.based_on = "agressive"', 'philosophies.x.based_on = "agressive": expected a philosophy, did you mean "aggressive"?'),
    ('philosophies.x.based_on = "x"', 'philosophies.x.based_on = "x": expected a philosophy that is not based on this one'),
    ('philosophies.x.based_on = "y"\nphilosophies.y.based_on = "x"', 'philosophies.y.based_on = "x": expected a philosophy that is not based on this one'),
    ('philosophies.balanced.based_on = "z"\nphilosophies.z.step = 2', 'philosophies.z.based_on: expected a philosophy that is not based on this one'),
    ("philosophies.x.based_on = 3", "philosophies.x.based_on = 3: expected text"),
    ("philosophies.frozen.step = 2", "philosophies.frozen.step = 2: expected no key: frozen leaves every limit where it is"),
    ('philosophies.frozen.based_on = "balanced"', 'philosophies.frozen.based_on = "balanced": expected no key: frozen leaves every limit where it is'),
    ('philosophies.x = { based_on = "frozen", step = 2 }', "philosophies.x.step = 2: expected no key: frozen leaves every limit where it is"),
    # Thresholds.
    ('alerts.memory.warning = "175%"', f'alerts.memory.warning = "175%": {OF_MEMORY}'),
    ('alerts.memory.warning = "0%"', f'alerts.memory.warning = "0%": {OF_MEMORY}'),
    ('alerts.memory.warning = "-5%"', f'alerts.memory.warning = "-5%": {OF_MEMORY}'),
    ('alerts.memory.warning = "%"', f'alerts.memory.warning = "%": {OF_MEMORY}'),
    ('alerts.memory.warning = ""', f'alerts.memory.warning = "": {OF_MEMORY}'),
    ('alerts.memory.warning = "1 MB/s"', f'alerts.memory.warning = "1 MB/s": {OF_MEMORY}'),
    ("alerts.memory.warning = 0", f"alerts.memory.warning = 0: {OF_MEMORY}"),
    ("alerts.memory.warning = true", f"alerts.memory.warning = true: {OF_MEMORY}"),
    ("alerts.memory.warning = [1]", f"alerts.memory.warning = [1]: {OF_MEMORY}"),
    ("alerts.memory.warning = { a = 1 }", f"alerts.memory.warning: {OF_MEMORY}"),
    ("alerts.memory.warning = 2024-01-01", f"alerts.memory.warning = 2024-01-01: {OF_MEMORY}"),
    ("alerts.cpu.warning = inf", f"alerts.cpu.warning = inf: {OF_CPU}"),
    ("alerts.cpu.warning = nan", f"alerts.cpu.warning = nan: {OF_CPU}"),
    ('alerts.cpu.warning = "150%"', f'alerts.cpu.warning = "150%": {OF_CPU}'),
    ("alerts.cpu.warning = 0x" + "f" * 5000, f"alerts.cpu.warning = 0x{'f' * 77}…: {OF_CPU}"),
    ("alerts.fds.warning = -1", f"alerts.fds.warning = -1: {OF_FDS}"),
    ('alerts.fds.warning = "1.5"', f'alerts.fds.warning = "1.5": {OF_FDS}'),
    ('alerts.fds.warning = "75%"', f'alerts.fds.warning = "75%": {OF_FDS}: fds has no limit to be percent of'),
    ('alerts.disk.warning = "10%"', f'alerts.disk.warning = "10%": {OF_DISK}: disk has no limit to be percent of'),
    ('alerts.disk.warning = "fast"', f'alerts.disk.warning = "fast": {OF_DISK}'),
    ('[alerts.x]\nresource = "swap"\nwarning = "75%"', f'alerts.x.warning = "75%": {OF_SWAP}: swap has no limit to be percent of'),
    ('[alerts.x]\nresource = "pids"\nwarning = "many"', f'alerts.x.warning = "many": {OF_PIDS}'),
    ('[alerts.x]\nresource = "io_pressure"\nwarning = 20', f"alerts.x.warning = 20: {OF_TIME}"),
    ('[alerts.x]\nresource = "io_pressure"\nwarning = "20"', f'alerts.x.warning = "20": {OF_TIME}'),
    ('[alerts.x]\nresource = "cpu_pressure"\nwarning = "101%"', f'alerts.x.warning = "101%": {OF_TIME}'),
    # Levels together.
    ('alerts.memory.warning = "80%"', 'alerts.memory.warning = "80%": expected less than critical = "80%"'),
    ('alerts.memory.critical = "70%"', 'alerts.memory.critical = "70%": expected more than warning = "75%"'),
    ('alerts.memory.emergency = "80%"', 'alerts.memory.emergency = "80%": expected more than critical = "80%"'),
    ('alerts.memory.info = "75%"', 'alerts.memory.info = "75%": expected less than warning = "75%"'),
    ('alerts.memory.warning = "1G"', f'alerts.memory.warning = "1G": {MIXED} critical = "80%"'),
    ('alerts.memory.emergency = "1G"', f'alerts.memory.emergency = "1G": {MIXED} critical = "80%"'),
    ('alerts.memory = { warning = "2G", critical = "1G" }', 'alerts.memory.critical = "1G": expected more than warning = "2G"'),
    ("alerts.fds.critical = 1000", "alerts.fds.critical = 1000: expected more than warning = 1000"),
    # The rest of a rule.
    ('alerts.cpu.duration = "soon"', f'alerts.cpu.duration = "soon": {DURATION}'),
    ("alerts.cpu.duration = -1", f"alerts.cpu.duration = -1: {DURATION}"),
    ('alerts.cpu.duration = "31d"', f'alerts.cpu.duration = "31d": {DURATION}'),
    ("alerts.cpu.cooldown = inf", f"alerts.cpu.cooldown = inf: {DURATION}"),
    ("alerts.cpu.keep_firing_for = []", f"alerts.cpu.keep_firing_for = []: {DURATION}"),
    ('alerts.cpu.hysteresis = "100%"', f'alerts.cpu.hysteresis = "100%": {SHARE}'),
    ("alerts.cpu.hysteresis = 1", f"alerts.cpu.hysteresis = 1: {SHARE}"),
    ("alerts.cpu.hysteresis = -0.1", f"alerts.cpu.hysteresis = -0.1: {SHARE}"),
    ('alerts.cpu.hysteresis = "5"', f'alerts.cpu.hysteresis = "5": {SHARE}'),
    ('alerts.cpu.enabled = "no"', 'alerts.cpu.enabled = "no": expected true or false'),
    ('alerts.cpu.of = "network"', f'alerts.cpu.of = "network": {ANY_OF}'),
    ("alerts.cpu.of = []", f"alerts.cpu.of = []: {ANY_OF}"),
    ("alerts.cpu.of = [1]", f"alerts.cpu.of = [1]: {ANY_OF}"),
    ('alerts.cpu.of = ["host", "host"]', f'alerts.cpu.of = ["host", "host"]: {ANY_OF}'),
    ('alerts.network.of = "slice"', 'alerts.network.of = "slice": expected "agent" or "host": slice has no network'),
    ('alerts.oom_kill.of = ["agent", "host"]', 'alerts.oom_kill.of = ["agent", "host"]: expected "agent" or "slice": host has no oom_kill'),
    # What should never happen.
    ("alerts.oom_kill.warning = 1", 'alerts.oom_kill.warning = 1: expected "severity" or "keep_firing_for": oom_kill should never happen'),
    ('alerts.oom_kill.duration = "5s"', 'alerts.oom_kill.duration = "5s": expected "severity" or "keep_firing_for": oom_kill should never happen'),
    ("alerts.drift.hysteresis = 0", 'alerts.drift.hysteresis = 0: expected "severity", "duration", "cooldown" or "keep_firing_for": drift should never happen'),
    ('alerts.drift.severity = "warnin"', 'alerts.drift.severity = "warnin": expected a severity, did you mean "WARNING"?'),
    ('alerts.drift.severity = "X"', f'alerts.drift.severity = "X": expected a severity: {SEVERITIES}'),
    ("alerts.drift.severity = 3", f"alerts.drift.severity = 3: expected a severity: {SEVERITIES}"),
    ('[alerts.x]\nresource = "oom_kill"', "alerts.x: expected a severity: oom_kill should never happen"),
    ('alerts.cpu.severity = "INFO"', 'alerts.cpu.severity = "INFO": expected "info", "warning", "critical" or "emergency": cpu has thresholds'),
    # New rules.
    ("alerts.memroy.enabled = false", f'alerts.memroy: expected a key "resource", {NOT_BUILT_IN}, did you mean "memory"?'),
    ("alerts.mine.warning = 3", f'alerts.mine: expected a key "resource", {NOT_BUILT_IN}'),
    ('alerts.x.resource = "memroy"', 'alerts.x.resource = "memroy": expected a resource, did you mean "memory"?'),
    ("alerts.x.resource = 7", "alerts.x.resource = 7: expected a resource: " + ", ".join(f'"{name}"' for name in list(RESOURCES)[:-1]) + f' or "{list(RESOURCES)[-1]}"'),
    ('alerts.x.resource = "swap"', 'alerts.x: expected a threshold: "info", "warning", "critical" or "emergency"'),
    ('[alerts."my rule"]\nresource = "swap"', f'alerts."my rule": {NAME}'),
    ('[alerts."x\\u2028y"]\nresource = "swap"', f'alerts."x\\u2028y": {NAME}'),
    # Handlers.
    ('handlers.x.severity = "INFO"', f'handlers.x: expected a key "type", {NOT_BUILT_IN}'),
    ('handlers.termnal.severity = "INFO"', f'handlers.termnal: expected a key "type", {NOT_BUILT_IN}, did you mean "terminal"?'),
    ('handlers.x.type = "webhok"', 'handlers.x.type = "webhok": expected a type of handler, did you mean "webhook"?'),
    ("handlers.x.type = 5", f"handlers.x.type = 5: expected a type of handler: {TYPES}"),
    ('[handlers."x\\ny"]\ntype = "journal"', f'handlers."x\\ny": {NAME}'),
    ("handlers.terminal.timeout = 0", f"handlers.terminal.timeout = 0: {TIMEOUT}"),
    ('handlers.terminal.timeout = "301s"', f'handlers.terminal.timeout = "301s": {TIMEOUT}'),
    ("handlers.terminal.queue = 0", f"handlers.terminal.queue = 0: {QUEUE}"),
    ("handlers.terminal.queue = 10001", f"handlers.terminal.queue = 10001: {QUEUE}"),
    ("handlers.terminal.queue = 1.0", f"handlers.terminal.queue = 1.0: {QUEUE}"),
    ("handlers.terminal.queue = true", f"handlers.terminal.queue = true: {QUEUE}"),
    ('handlers.terminal.severity = "LOUD"', f'handlers.terminal.severity = "LOUD": expected a severity: {SEVERITIES}'),
    ("handlers.terminal.enabled = 0", "handlers.terminal.enabled = 0: expected true or false"),
    # Commands.
    ('handlers.x.type = "command"', 'handlers.x: expected a key "command"'),
    ('handlers.x = { type = "command", command = "ls -l" }', f'handlers.x.command = "ls -l": {ARGV}'),
    ('handlers.x = { type = "command", command = [] }', f"handlers.x.command = []: {ARGV}"),
    ('handlers.x = { type = "command", command = [""] }', 'handlers.x.command = [""]: expected text'),
    ('handlers.x = { type = "command", command = ["sh", 3] }', 'handlers.x.command = ["sh", 3]: expected text'),
    ('handlers.x = { type = "command", command = ["sh", "\\u0000"] }', 'handlers.x.command = ["sh", "\\u0000"]: expected text'),
    ('handlers.x = { type = "command", command = ["no-such"] }', 'handlers.x.command = ["no-such"]: expected an executable, and no-such is none in PATH (/bin:/usr/bin)'),
    ('handlers.x = { type = "command", command = ["/no/such"] }', 'handlers.x.command = ["/no/such"]: expected an executable, and /no/such is none'),
    ('handlers.x = { type = "command", command = ["/etc/passwd"] }', 'handlers.x.command = ["/etc/passwd"]: expected an executable, and /etc/passwd is none'),
    ('handlers.x = { type = "command", command = ["./sh"] }', 'handlers.x.command = ["./sh"]: expected an absolute path, or a name that PATH has'),
    # Webhooks.
    ('handlers.x.type = "webhook"', 'handlers.x: expected a key "url"'),
    *(
        (f'handlers.x = {{ type = "webhook", url = "{url}" }}', f'handlers.x.url = "{url}": {URL}')
        for url in (
            *("ftp://example.org", "file:///etc/passwd", "example.org", "http://", "https:///x"),
            *("https://user:pw@example.org", "https://example.org/a b", "https://example.org/ä"),
            *("http://example.org:99999", "http://example.org:0", "http://[::1"),
        )
    ),
    ('handlers.x = { type = "webhook", url = 3 }', "handlers.x.url = 3: expected text"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", format = "alertmanger" }', 'handlers.x.format = "alertmanger": expected a format, did you mean "alertmanager"?'),
    ('handlers.x = { type = "webhook", url = "http://[::1]", retries = 11 }', "handlers.x.retries = 11: expected a whole number, 0 to 10"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", retries = -1 }', "handlers.x.retries = -1: expected a whole number, 0 to 10"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = 3 }', 'handlers.x.headers: expected a table such as { Authorization = "Bearer TOKEN" }'),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { A = 3 } }', "handlers.x.headers: expected one line of printable ASCII as A"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { A = "b\\nsecret" } }', "handlers.x.headers: expected one line of printable ASCII as A"),
    ('handlers.x = { type = "webhook", url = "http://[::1]", headers = { "A B" = "secret" } }', 'handlers.x.headers: expected names as RFC 9110 has them, not "A B"'),
    # Python.
    ('handlers.x.type = "python"', 'handlers.x: expected either callable = "package.module:function" or entry_point'),
    ('handlers.x = { type = "python", callable = "json:dumps", entry_point = "y" }', 'handlers.x: expected either callable = "package.module:function" or entry_point'),
    ('handlers.x = { type = "python", callable = "json.dumps" }', 'handlers.x.callable = "json.dumps": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "json:" }', 'handlers.x.callable = "json:": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = ".json:dumps" }', 'handlers.x.callable = ".json:dumps": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "os:system(\'x\')" }', 'handlers.x.callable = "os:system(\'x\')": expected "package.module:function"'),
    ('handlers.x = { type = "python", callable = "no_such:f" }', "handlers.x.callable = \"no_such:f\": expected no_such:f, and importing it failed: ModuleNotFoundError: No module named 'no_such'"),
    ('handlers.x = { type = "python", callable = "json:f" }', "handlers.x.callable = \"json:f\": expected json:f, and importing it failed: AttributeError: module 'json' has no attribute 'f'"),
    ('handlers.x = { type = "python", callable = "math:pi" }', 'handlers.x.callable = "math:pi": expected a callable, and math:pi is of type float'),
    ('handlers.x = { type = "python", entry_point = "y" }', 'handlers.x.entry_point = "y": expected an entry point of agentres.alert_handlers, and there is none'),
]  # fmt: skip  # a table


@pytest.mark.usefixtures("entry_points")
@pytest.mark.parametrize(("text", "line"), REFUSED, ids=lambda text: ascii(text)[:60])
def test_what_makes_no_sense_is_refused_in_one_line(
    write_config: Write, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    path = write_config(text)
    with pytest.raises(ConfigError) as refused:
        load([path], host)
    assert str(refused.value) == f"{path}: {line}"
    assert isinstance(refused.value, UsageError)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a = ", "1:5: invalid value"),
        ("\n[alerts", "2:8: expected ']' at the end of a table declaration"),
        ("a = 1\na = 2", "2:6: cannot overwrite a value"),
        ('a = "', "1:6: unterminated string"),
        ("a = [1,\n", "2:1: invalid value"),
        ("[x]\n[x]", "2:3: cannot declare ('x',) twice"),
    ],
)
def test_toml_that_is_none_has_a_line_and_a_column(
    write_config: Write, text: str, where: str
) -> None:
    path = write_config(text)
    with pytest.raises(ConfigError) as refused:
        load([path])
    assert str(refused.value) == f"{path}:{where}"


def test_a_huge_number_and_deep_nesting_are_refused(write_config: Write) -> None:
    for text in ("a = " + "9" * 5000, "a = " + "[" * 5000 + "]" * 5000):
        path = write_config(text)
        with pytest.raises(ConfigError, match=rf"^{re.escape(path)}: .*$"):
            load([path])


@pytest.mark.parametrize(
    ("data", "where"), [(b"\xff", "1:1"), (b"a = 1\n# \xe9\n", "2:3"), (b"\n\n\xc3", "3:1")]
)
def test_a_file_is_utf_8(tmp_path: Path, data: bytes, where: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load([str(path)])
    assert str(refused.value) == f"{path}:{where}: expected UTF-8"


def test_two_entry_points_of_one_name_are_refused(
    write_config: Write, entry_points: list[EntryPoint]
) -> None:
    entry_points += [EntryPoint("y", f"{m}:dumps", "agentres.alert_handlers") for m in ("json", "marshal")]  # fmt: skip
    path = write_config('handlers.x = { type = "python", entry_point = "y" }')
    with pytest.raises(ConfigError, match=r"and there are json:dumps and marshal:dumps$"):
        load([path])


def test_a_module_that_raises_is_refused_with_its_first_line(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write_config('print("hello")\nraise SystemExit("no\\nway")', "raises_system_exit.py")
    path = write_config('handlers.x = { type = "python", callable = "raises_system_exit:f" }')
    with pytest.raises(ConfigError) as refused:
        load([path])
    assert str(refused.value).endswith("and importing it failed: SystemExit: no")
