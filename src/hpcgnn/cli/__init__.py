"""One file per verb of the command `hpcgnn`."""

from hpcgnn.system import choose_sorts

choose_sorts()  # of the command alone, and before one of its modules loads NumPy
