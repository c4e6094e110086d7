"""Keeps a process that stays small: no second heap for a thread, no huge page for a handful of small ones.

Each would be up to a megabyte or two that nothing uses.
"""

from __future__ import annotations

from agentres.kernel.libc import LIBC

_M_ARENA_MAX = -8  # mallopt(3)
_PR_SET_THP_DISABLE = 41  # PR_SET_THP_DISABLE(2const)


def one_heap() -> None:
    """Have all threads share the first heap."""
    if mallopt := getattr(LIBC, "mallopt", None):  # glibc's; musl has but one
        mallopt(_M_ARENA_MAX, 1)


def huge_pages(allowed: bool) -> None:
    """Whether this process, and what it starts from now on, may have transparent huge pages."""
    # An old kernel that refuses costs memory only.
    LIBC.prctl(_PR_SET_THP_DISABLE, int(not allowed), 0, 0, 0)
