"""The basic types: limits, figures, units, errors.  Every other package imports this one.

Standard library only.  Pure, except ``action`` and ``clock``, which read the time, and ``paths``, which looks up files and homes.
"""
