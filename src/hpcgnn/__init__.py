"""Full-batch training of graph neural networks on graphs larger than one machine, over MPI."""

__version__ = "0.1.0"
