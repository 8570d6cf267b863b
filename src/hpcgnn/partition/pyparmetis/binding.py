"""Binding of ParMETIS through its C interface: the routines of a loaded build, and their rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcgnn.comm.mpi_library import MPI
from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.native import address
from hpcgnn.partition.routing import Array, Int64

OTHERWISE = "or choose --method kaminpar, streaming, random or block"
INSTALL = "build it with env/install_parmetis.sh, set HPCGNN_PARMETIS to a libparmetis.so"
OK = 1
_COUNT_LIMIT = 2**31 - 1
_COUPLED, _UNCOUPLED = 1, 2


@dataclass(frozen=True)
class Rows:
    """The rows of a symmetric graph without self-loops on one of the calling ranks.

    Attributes:
        vtxdist: `[ranks + 1]`, first row of each rank, then the number of rows.
        xadj, adjncy: `[n + 1]` and `[e]`, row pointer of this rank's rows, and their neighbours by
            number in the whole graph.
        vertex_weights: integers `[n]` or `[n, constraints]`, each balanced; None: all 1.
        edge_weights: integers above 0 `[e]`, the same in both directions; None: all 1.
        vertex_sizes: integers `[n]`, cost of moving a row (for `adaptive_repart`); None: all 1.
        coordinates: `[n, 2]` or `[n, 3]` (for `part_geom_kway`).
        expendable: whether the library may work in these arrays and change them, if they have its
            integer width; otherwise it is given copies.
    """

    vtxdist: Int64
    xadj: Int64
    adjncy: Array
    vertex_weights: Array | None = None
    edge_weights: Array | None = None
    vertex_sizes: Array | None = None
    coordinates: Array | None = None
    expendable: bool = False

    @property
    def num_rows(self) -> int:
        return len(self.xadj) - 1

    @property
    def constraints(self) -> int:
        weights = self.vertex_weights
        return 1 if weights is None or np.ndim(weights) == 1 else np.shape(weights)[1]

    def problem(self, rank: int, ranks: int) -> str:
        """Return what is wrong with these rows, "" if nothing.

        The library would read out of the bounds of wrong ones.
        """
        xadj, adjncy, count = np.asarray(self.xadj), np.asarray(self.adjncy), self.num_rows
        bounds = np.asarray(self.vtxdist)
        if len(bounds) != ranks + 1:
            return f"vtxdist must have {ranks + 1} numbers on {ranks} ranks, found {len(bounds)}"
        if count < 1 or bounds[rank + 1] - bounds[rank] != count:
            return f"vtxdist gives rank {rank} {bounds[rank + 1] - bounds[rank]} rows, xadj {count}"
        if xadj[0] != 0 or (np.diff(xadj) < 0).any() or xadj[-1] != len(adjncy):
            return "xadj must ascend from 0 to the length of adjncy"
        if len(adjncy) and not 0 <= adjncy.min() <= adjncy.max() < bounds[-1]:
            return f"adjncy must lie in 0 .. {bounds[-1] - 1}"
        for name, values, length in (
            ("vertex_weights", self.vertex_weights, count),
            ("edge_weights", self.edge_weights, len(adjncy)),
            ("vertex_sizes", self.vertex_sizes, count),
            ("coordinates", self.coordinates, count),
        ):
            if values is not None and len(values) != length:
                return f"{name} must have {length} rows, found {len(values)}"
        if self.coordinates is not None and np.shape(self.coordinates)[1:] not in ((2,), (3,)):
            return "coordinates must have 2 or 3 columns"
        return ""


@dataclass(frozen=True)
class ParMETIS:
    """A loaded build. `scotch`: PT-Scotch's implementation, which has `part_kway` only."""

    path: Path
    handle: ctypes.CDLL
    index_bytes: int
    real_bytes: int

    @property
    def scotch(self) -> bool:
        return hasattr(self.handle, "SCOTCH_numSizeof")

    @property
    def can_refine(self) -> bool:
        return hasattr(self.handle, "ParMETIS_V3_RefineKway")

    @property
    def can_repartition(self) -> bool:
        return hasattr(self.handle, "ParMETIS_V3_AdaptiveRepart")

    @property
    def can_use_coordinates(self) -> bool:
        return hasattr(self.handle, "ParMETIS_V3_PartGeomKway")

    @property
    def can_balance_several(self) -> bool:
        """Whether rows may have more than one weight each."""
        return not self.scotch

    def __str__(self) -> str:
        name = "PT-Scotch's ParMETIS interface" if self.scotch else "ParMETIS"
        return f"{name}, {8 * self.index_bytes}-bit indices, {self.path}"

    def part_kway(
        self, mpi: MPI.Comm, rows: Rows, num_parts: int, *, imbalance: float = 1.05, seed: int = 0
    ) -> Array:
        """Cut the graph; return the part of each row, int32 `[n]`. Each calling rank needs rows.

        Raises:
            InputError: sizes overflow the library's counts (raised before the call).
            HpcgnnError: the library failed.
        """
        return self._run("PartKway", mpi, rows, num_parts, imbalance, (1, 0, seed), None)

    def refine_kway(
        self,
        mpi: MPI.Comm,
        rows: Rows,
        part: Array,
        num_parts: int,
        *,
        imbalance: float = 1.05,
        seed: int = 0,
    ) -> Array:
        """Return an improvement of a given partition: int32 `[n]`."""
        options = (1, 0, seed, _UNCOUPLED)
        return self._run("RefineKway", mpi, rows, num_parts, imbalance, options, part)

    def adaptive_repart(
        self,
        mpi: MPI.Comm,
        rows: Rows,
        part: Array,
        num_parts: int,
        *,
        imbalance: float = 1.05,
        seed: int = 0,
        exchange_to_move: float = 1000.0,
    ) -> Array:
        """Return a new partition near the given one: int32 `[n]`.

        `exchange_to_move` is the weight of the time of exchanges relative to that of moving rows,
        whose costs are `rows.vertex_sizes`.
        """
        options = (1, 0, seed, _UNCOUPLED)
        extra = exchange_to_move
        return self._run("AdaptiveRepart", mpi, rows, num_parts, imbalance, options, part, extra)

    def part_geom_kway(
        self, mpi: MPI.Comm, rows: Rows, num_parts: int, *, imbalance: float = 1.05, seed: int = 0
    ) -> Array:
        """As `part_kway`, but start from the rows' coordinates, which is faster: int32 `[n]`."""
        return self._run("PartGeomKway", mpi, rows, num_parts, imbalance, (1, 0, seed), None)

    def _run(
        self,
        routine: str,
        mpi: MPI.Comm,
        rows: Rows,
        num_parts: int,
        imbalance: float,
        options: tuple[int, ...],
        part: Array | None,
        exchange_to_move: float | None = None,
    ) -> Array:
        function = getattr(self.handle, f"ParMETIS_V3_{routine}", None)
        if function is None:
            raise InputError(f"has no ParMETIS_V3_{routine}", file=self.path)
        check_rows(mpi, rows, num_parts, part, geometry=routine == "PartGeomKway")
        constraints = rows.constraints
        check_sizes(mpi, rows, constraints, self.index_bytes)
        result = np.zeros(rows.num_rows, self.integer) if part is None else self._integers(part)
        weighted = (0 if rows.edge_weights is None else 1) + 2 * (rows.vertex_weights is not None)
        geometry: list[Array | None] = []
        if routine == "PartGeomKway":
            xyz = np.array(rows.coordinates, self._real, order="C")
            geometry = [self._integers([xyz.shape[1]]), xyz]
        adaptive = exchange_to_move is not None
        arguments = [
            self._integers(rows.vtxdist),
            self._integers(rows.xadj),
            self._given(rows, rows.adjncy),
            self._given(rows, rows.vertex_weights),
            *([self._given(rows, rows.vertex_sizes)] if adaptive else []),
            self._given(rows, rows.edge_weights),
            self._integers([weighted]),
            self._integers([0]),
            *geometry,
            self._integers([constraints]),
            self._integers([num_parts]),
            np.full(num_parts * constraints, 1 / num_parts, self._real),
            np.full(constraints, imbalance, self._real),
            *([np.array([exchange_to_move], self._real)] if adaptive else []),
            self._integers(options),
            self._integers([0]),
            result,
        ]
        status = call_library(function, mpi, arguments)
        if status != OK:
            raise HpcgnnError(f"ParMETIS_V3_{routine} failed with status {status}", file=self.path)
        if len(result) and not 0 <= result.min() <= result.max() < num_parts:
            raise HpcgnnError(
                f"ParMETIS_V3_{routine} returned a part outside 0 .. {num_parts - 1}",
                file=self.path,
            )
        return result.astype(np.int32)

    def _given(self, rows: Rows, values: Array | None) -> Array | None:
        if values is None:
            return None
        usable = values.dtype == self.integer and values.flags.c_contiguous and values.size
        return values if rows.expendable and usable else self._integers(values)

    @property
    def integer(self) -> str:
        """The dtype of the library's integers."""
        return f"i{self.index_bytes}"

    @property
    def _real(self) -> str:
        return f"f{self.real_bytes}"

    def _integers(self, values: Array | list[int] | tuple[int, ...]) -> Array:
        # The library may renumber its arguments, so it gets a copy, which is never empty.
        copy = np.array(values, self.integer, order="C")
        return copy if copy.size else np.zeros(1, self.integer)


def call_library(function: Callable[..., int], mpi: MPI.Comm, arguments: list[Array | None]) -> int:
    """Call a routine with pointers to the arrays, NULL for None; return its status."""
    pointers = [None if a is None else address(a) for a in arguments]
    return int(function(*pointers, ctypes.c_void_p(MPI._addressof(mpi))))


def check_rows(
    mpi: MPI.Comm, rows: Rows, num_parts: int, part: Array | None, *, geometry: bool
) -> None:
    """Check the rows, since the library would read out of the bounds of wrong ones. Collective.

    Raises:
        InputError: on all calling ranks, about the lowest rank whose rows are wrong.
    """
    text = rows.problem(mpi.Get_rank(), mpi.Get_size())
    if not text and part is not None and len(part) != rows.num_rows:
        text = f"part must have {rows.num_rows} numbers, found {len(part)}"
    if not text and part is not None and not 0 <= np.min(part) <= np.max(part) < num_parts:
        text = f"part must lie in 0 .. {num_parts - 1}"
    if not text and geometry and rows.coordinates is None:
        text = "coordinates are needed"
    if num_parts < 1:
        text = f"num_parts must be at least 1, found {num_parts}"
    for rank, found in enumerate(mpi.allgather(text)):
        if found:
            raise InputError(f"ParMETIS can't take the rows of rank {rank}: {found}")


def check_sizes(mpi: MPI.Comm, rows: Rows, constraints: int, index_bytes: int) -> None:
    """Check that the sizes don't overflow the library's counts. Collective.

    Raises:
        InputError: on all calling ranks; it names the number of ranks that would suffice.
    """
    weights = (rows.vertex_weights, rows.edge_weights, rows.vertex_sizes)
    sums = [np.sum(w, axis=0, dtype=np.int64).max() for w in weights if w is not None]
    heaviest = int(max(sums, default=0))
    local = (rows.num_rows, len(rows.adjncy), heaviest)
    everyone = mpi.allgather(local)
    refuse_overflow(everyone, constraints, index_bytes)


def refuse_overflow(sizes: list[tuple[int, int, int]], constraints: int, index_bytes: int) -> None:
    """Raise InputError if `sizes` (rows, edges, total weight of each rank) overflow the counts."""
    totals = [sum(column) for column in zip(*sizes, strict=True)]
    if index_bytes == 4 and max(totals) > _COUNT_LIMIT:
        raise InputError(
            f"this build of ParMETIS has 32-bit indices: {totals[0]} nodes with {totals[1]} "
            f"neighbours and weight {totals[2]} need one with 64 (IDXTYPEWIDTH 64); {INSTALL}, "
            f"{OTHERWISE}"
        )
    # ParMETIS sends rows as (3 + constraints) numbers each and 2 per neighbour, with
    # counts that are C ints.
    volumes = [(3 + constraints) * rows + 2 * edges for rows, edges, _ in sizes]
    if max(volumes) > _COUNT_LIMIT:
        fits = max(-(-max(volumes) * len(sizes) // _COUNT_LIMIT), len(sizes) + 1)
        raise InputError(
            f"{max(volumes)} numbers on one rank overflow ParMETIS's counts (2^31 - 1): start at "
            f"least {fits} ranks, {OTHERWISE}"
        )
