"""Liveness and location of each rank, and how a job ends."""
