"""Checked reading of our files."""
