"""What things are: limits, figures, units, errors; everything else knows it.

The standard library only.  Pure, but for ``action`` and ``clock``, which ask the time, and ``paths``, which asks for files and homes.
"""
