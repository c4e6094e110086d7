"""The command line of `scripts/vm`."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from . import box, host, image
from .clone import Clone, choose
from .config import EXIT_FAILURE, VmError
from .guest import guest_path
from .kernel import ensure_kernel, forget_failure
from .layout import USERS

_EXIT_DOWN = 3


class _Parser(argparse.ArgumentParser):
    """Exits as the script's own failures do, where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_FAILURE, f"vm: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    options = _parser().parse_args(arguments)
    host.end_on_signals()
    try:
        status: int = options.run(options)
        return status
    except (VmError, OSError) as error:
        host.say(str(error))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _up(options: argparse.Namespace) -> int:
    clone = Clone()
    with clone.locked():
        state = clone.up()
        clone.synchronise()
    host.say(f"up ({state.accelerator}, pid {state.pid})")
    return 0


def _exec(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise VmError("exec needs a command: scripts/vm exec [--user NAME] -- CMD...")
    clone = _ready_clone(options.user, sync=not options.no_sync)
    return clone.execute(command, options.user, options.tty)


def _ssh(options: argparse.Namespace) -> int:
    return _ready_clone(options.user).guest.shell(options.user)


def _push(options: argparse.Namespace) -> int:
    guest = _ready_clone(options.user).guest
    guest.copy(options.source, guest_path(options.target), options.user)
    return 0


def _pull(options: argparse.Namespace) -> int:
    guest = _ready_clone(options.user).guest
    guest.copy(guest_path(options.source), options.target, options.user)
    return 0


def _ready_clone(user: str, sync: bool = True) -> Clone:
    """Get this clone with its machine up, its sources current and the user connected."""
    clone = Clone()
    with clone.locked():
        state = clone.up()
        if state.image != clone.recipe.key:
            host.say("the image's recipe has changed: `scripts/vm down` and `up` to get the new")
        if sync:
            clone.synchronise()
        clone.guest.connect(user)
    return clone


def _down(_options: argparse.Namespace) -> int:
    host.say("down" if Clone().down() else "was not up")
    return 0


def _build(options: argparse.Namespace) -> int:
    clone = Clone()
    forget_failure()
    built = image.ensure_image(clone.recipe, clone.settings, force=options.force)
    kind = choose(built, clone.settings)
    if kind.name == "uml" and options.force:
        ensure_kernel(clone.settings, force=True)
    print(built.folder)
    return 0


def _box(options: argparse.Namespace) -> int:
    clone = Clone()
    made = box.ensure_box(image.ensure_image(clone.recipe, clone.settings), force=options.force)
    if options.output:
        box.copy(made, options.output)
    print(options.output or made)
    return 0


def _status(options: argparse.Namespace) -> int:
    clone = Clone()
    state = clone.state
    facts: dict[str, object] = {"state": "up" if state else "down", "recipe": clone.recipe.key}
    if state:
        facts |= asdict(state) | {"uptime": round(time.time() - state.started)}
    facts["folder"] = str(clone.folder)
    if options.json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    return 0 if state else _EXIT_DOWN


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scripts/vm",
        description="The VM in which the project's kernel tests run; see docs/vm.md.",
        epilog=f"The script's own failures exit with {EXIT_FAILURE}.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    command("up", _up, "start the VM unless it runs, and install the source tree in it")

    execute = command("exec", _exec, "run a command in the VM, started when needed")
    _add_user(execute)
    execute.add_argument("--tty", action="store_true", help="give the command a terminal")
    execute.add_argument("--no-sync", action="store_true", help="leave the guest's sources alone")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")

    push = command("push", _push, "copy a file or folder into the VM, as `scp -rp` does")
    pull = command("pull", _pull, "copy a file or folder out of the VM, as `scp -rp` does")
    for copy in (push, pull):
        _add_user(copy)
        copy.add_argument("source", metavar="SRC")
        copy.add_argument("target", metavar="DST")

    _add_user(command("ssh", _ssh, "log in"))
    status = command("status", _status, f"tell the VM's state; exits {_EXIT_DOWN} when it is down")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    command("down", _down, "stop the VM and forget what was written in it")
    build = command(
        "build",
        _build,
        "build the image, and the kernel where one is needed, unless they are there; print the image's folder",
    )
    build.add_argument(
        "--force", action="store_true", help="build both anew, from what Debian has now"
    )
    boxed = command(
        "box", _box, "build a Vagrant box of the image, unless it is there; print its path"
    )
    boxed.add_argument("--output", type=Path, metavar="FILE", help="have it at FILE")
    boxed.add_argument("--force", action="store_true", help="build the box anew")
    return parser


def _add_user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", choices=USERS, default="root", help="default: %(default)s")
