"""Keeps a long-running process small: no second heap for a thread, no huge page in place of a few small ones.

Each would waste up to a megabyte or two.
"""

from __future__ import annotations

import gc
import sys

from agentres.kernel.libc import LIBC
from agentres.model.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_M_ARENA_MAX = -8  # mallopt(3)
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_PR_SET_THP_DISABLE = 41  # PR_SET_THP_DISABLE(2const)


def one_heap() -> None:
    """Have all threads share the first heap."""
    if mallopt := getattr(LIBC, "mallopt", None):  # glibc only: musl has one heap
        mallopt(_M_ARENA_MAX, 1)


def huge_pages(allowed: bool) -> None:
    """Allow or forbid transparent huge pages for this process and those that it starts from now on."""
    # An old kernel may refuse: that only costs memory.
    LIBC.prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0)


def let_go(modules: Iterable[str]) -> None:
    """Unload modules that are not needed for long, so that what is loaded next can use their memory.

    A later user imports them anew.  Nobody may keep a reference to one of their functions.
    """
    for name in modules:
        if sys.modules.pop(name, None) is not None:
            package, _, own = name.rpartition(".")
            delattr(sys.modules[package], own)
    gc.collect()  # functions and their module refer to each other


def forget_docs() -> None:
    """Drop the docstrings of all loaded modules and classes, so that what is loaded next can use their memory."""
    for module in list(sys.modules.values()):
        for each in [module, *vars(module).values()]:
            is_ours = isinstance(each, type) and not each.__flags__ & _IMMUTABLE
            if (is_ours or each is module) and isinstance(vars(each).get("__doc__"), str):
                each.__doc__ = None


def give_back() -> None:
    """Return the heap's free memory to the kernel: only loading modules and the start needed it."""
    if trim := getattr(LIBC, "malloc_trim", None):  # glibc only
        trim(0)
