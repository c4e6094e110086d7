"""What things are: limits, figures, units, errors.  The standard library only; pure, but for
``action`` and ``clock``, which ask the time, and ``paths``, which asks for files and homes.  Everything else knows it.
"""
