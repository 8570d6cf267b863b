"""The MPI library, loaded and initialised with the settings this package needs.

Importing this module raises InputError when there is none.
"""

from __future__ import annotations

import warnings

from hpcgnn.errors import InputError

__all__ = ["MPI"]

try:
    import mpi4py

    # Autograd may run the backward pass, and with it MPI, in a thread of its own.
    mpi4py.rc(thread_level="serialized")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it suspects of mpiexec, world.start says better
        from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    raise InputError(
        f"no MPI library can be loaded ({error}): install one with `pip install mpi4py mpich`, "
        "load the site's MPI module, or name the library in MPI4PY_LIBMPI"
    ) from None
