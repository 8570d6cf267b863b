"""Writers of our files: temporary names, checksums, one writer at a time."""
