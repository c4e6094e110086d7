"""Keeps a process that stays small: no second heap for a thread, no huge page for a handful of small ones.

Each would be up to a megabyte or two that nothing uses.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable

from agentres.kernel.libc import LIBC

_M_ARENA_MAX = -8  # mallopt(3)
_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
_PR_SET_THP_DISABLE = 41  # PR_SET_THP_DISABLE(2const)


def one_heap() -> None:
    """Have all threads share the first heap."""
    if mallopt := getattr(LIBC, "mallopt", None):  # glibc's; musl has but one
        mallopt(_M_ARENA_MAX, 1)


def huge_pages(allowed: bool) -> None:
    """Whether this process, and what it starts from now on, may have transparent huge pages."""
    # An old kernel that refuses costs memory only.
    LIBC.prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0)


def let_go(modules: Iterable[str]) -> None:
    """Have the memory of modules that are not needed for long: what is loaded next takes it.

    Who wants one later imports it anew; nobody may keep a function of theirs.
    """
    for name in modules:
        if sys.modules.pop(name, None) is not None:
            package, _, own = name.rpartition(".")
            delattr(sys.modules[package], own)
    gc.collect()  # functions and their module refer to each other


def forget_docs() -> None:
    """Have the memory of the docstrings of all modules and classes that are loaded: what is loaded next takes it."""
    for module in list(sys.modules.values()):
        for each in [module, *vars(module).values()]:
            is_ours = isinstance(each, type) and not each.__flags__ & _IMMUTABLE
            if (is_ours or each is module) and isinstance(vars(each).get("__doc__"), str):
                each.__doc__ = None


def give_back() -> None:
    """Give the kernel back what is free in the heap: what only loading modules and beginning has used."""
    if trim := getattr(LIBC, "malloc_trim", None):  # glibc's
        trim(0)
