"""The release, which is `hpcgnn.__version__`."""

__version__ = "0.1.0"
