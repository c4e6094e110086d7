"""The cgroup v2 control files as typed attributes, on cgroupspy's interface descriptors.

cgroupspy was written for v1.  We use only its descriptors (``BaseFileInterface`` and its subclasses), which
do not depend on a tree: they call ``get_property``/``set_property`` of their object, which
:class:`agentres.kernel.cgroup.Cgroup` has.  ``cgroupspy.interfaces`` imports the standard
library only, so the supervisor may load it.  Files, formats and names: the kernel's
Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import _collections_abc
import sys

from agentres.model.record import TYPE_CHECKING

# cgroupspy wants one name of collections.abc, and the package around that is a thirtieth of a launch.  It is lent the
# module that has the name, for so long: up to Python 3.12 a later `import collections.abc` must find its own.
_lent = "collections.abc" not in sys.modules
if _lent:
    sys.modules["collections.abc"] = _collections_abc

from cgroupspy.interfaces import BaseFileInterface  # noqa: E402 -- see above

if _lent:
    del sys.modules["collections.abc"]

if TYPE_CHECKING:
    from typing import Generic, TypeVar

    T = TypeVar("T")

    class ControlFile(BaseFileInterface, Generic[T]):  # type: ignore[misc]  # cgroupspy is untyped
        """One control file, read and written as a ``T``."""

        def __get__(self, instance: object, owner: type | None = None) -> T: ...

        def __set__(self, instance: object, value: T) -> None: ...

else:

    class ControlFile(BaseFileInterface):
        """One control file; the type in brackets is only for the type checker."""

        def __class_getitem__(cls, _item: object) -> type:
            return cls


class FlagFile(ControlFile[bool]):
    """``1`` or ``0``."""

    def sanitize_get(self, value: str) -> bool:
        return value.strip() == "1"

    def sanitize_set(self, value: bool) -> str:
        return str(int(value))


class WordsFile(ControlFile["list[str]"]):
    """Words separated by blanks or newlines: ``cgroup.controllers``, ``cgroup.procs``.

    A write to ``cgroup.procs`` takes one word, to ``cgroup.subtree_control`` all of them: joining with
    blanks serves both.
    """

    def sanitize_get(self, value: str) -> list[str]:
        return value.split()

    def sanitize_set(self, value: list[str]) -> str:
        return " ".join(value)


class Controllers:
    """The control files that agentres uses by name.

    Limits are not here: they are data (:meth:`agentres.model.limits.Limits.lines`), written and read
    back by file name in one loop.
    """

    controllers = WordsFile("cgroup.controllers", readonly=True)
    subtree_control = WordsFile("cgroup.subtree_control")
    procs = WordsFile("cgroup.procs")
    freeze = FlagFile("cgroup.freeze")
    kill = FlagFile("cgroup.kill", writeonly=True)
