"""What a run directory shows."""
