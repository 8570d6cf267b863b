"""Measurements of hpcgnn beside its peers: ratios from one run, medians of alternating turns."""
