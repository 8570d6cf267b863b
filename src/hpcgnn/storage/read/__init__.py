"""Checked readers of our files."""
