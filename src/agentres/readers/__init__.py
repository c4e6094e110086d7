"""What looks, and ends: figures, curves, metrics, what a host can do."""
