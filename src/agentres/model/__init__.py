"""What things are: limits, figures, units, errors.  Pure, the standard library only; everything else knows it."""
