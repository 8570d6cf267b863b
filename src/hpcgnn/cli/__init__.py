"""One file per verb of the command `hpcgnn`."""

from hpcgnn.system import choose_sorts

choose_sorts()  # for the command only, and before any of its modules loads NumPy
