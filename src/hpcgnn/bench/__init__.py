"""Measurements beside peers: ratios from one run, medians of alternating repetitions."""
