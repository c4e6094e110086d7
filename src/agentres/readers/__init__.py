"""What verbs read and show: figures, curves, metrics, pictures, what a host can enforce."""
