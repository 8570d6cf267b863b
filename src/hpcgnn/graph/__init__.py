"""One rank's part of a graph."""
