"""The pipeline from graph.h5 to a partition file, on all ranks."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcgnn.comm.agreement import agreed, require_same
from hpcgnn.comm.communicator import Communicator
from hpcgnn.display import SILENT, Display
from hpcgnn.errors import InputError, OutputError, counted
from hpcgnn.loading import refuse_while_loading
from hpcgnn.partition.edges import SlabEdges
from hpcgnn.partition.kaminpar import kaminpar_lacks, kaminpar_parts
from hpcgnn.partition.layout import assembly
from hpcgnn.partition.layout.memory import check_layout, check_parts
from hpcgnn.partition.layout.sources import FileSource
from hpcgnn.partition.options import METHODS, PartitionOptions
from hpcgnn.partition.parmetis import MemoryNeed, is_narrow, parmetis_parts
from hpcgnn.partition.problem import Problem
from hpcgnn.partition.pyparmetis import binding, builds
from hpcgnn.partition.quality import random_numbers
from hpcgnn.partition.refine import refine_volume
from hpcgnn.partition.routing import Array, Int64
from hpcgnn.partition.simple import block_parts, random_parts, streaming_parts
from hpcgnn.settings import check_path
from hpcgnn.storage.read.graph_file import GraphFile
from hpcgnn.storage.read.partition_file import MAX_PARTS, Part, write_parts
from hpcgnn.storage.schema import PARTITION, TRAIN
from hpcgnn.storage.write.atomic import check_output_together

FOLDER = Path("partitions")
_FEWEST = 4  # nodes per part below which partitioners leave parts empty


def partition_graph(
    comm: Communicator,
    path: str | Path,
    parts: int | None = None,
    method: str = "auto",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    options: PartitionOptions | None = None,
    compress: bool = False,
    force: bool = False,
    command: str = "partition",
    display: Display = SILENT,
) -> dict[str, Any]:
    """Cut a graph file into parts and write the partition file. Collective.

    Args:
        path: graph.h5.
        parts: number of parts, independent of the number of ranks (default: one per rank).
        method: one of METHODS.
        out: the partition file (default: partitions/NAME.pP.h5); its folder is made.
        seed: seed of the method, and of the random partition for comparison; ignored with
            `options`.
        compress: gzip the datasets.
        force: replace an existing partition file.
        command: the calling verb, stored in the file.
        display: shows the progress.

    Returns:
        The report stored in the file, with `file`, `seconds` and `memory_bytes` (the sum of all
        ranks' peaks) added.

    Raises:
        InputError: the graph is damaged, the method unknown, a library can't be used, or `out`
            exists and isn't replaced.
        OutputError: the file can't be written.
    """
    began = time.monotonic()
    refuse_while_loading("partition_graph")
    comm = comm if isinstance(comm, Communicator) else Communicator.of(comm)
    check_path(path, "partition_graph", "path")
    path = Path(path)
    num_parts = comm.size if parts is None else parts
    out = default_file(path, num_parts) if out is None else Path(out)
    options = PartitionOptions(seed=seed) if options is None else options
    _check(method, num_parts)
    check_output_together(comm, out, PARTITION, force=force, inputs=[path], make_folder=True)
    made, header = _assembled(comm, path, num_parts, method, options, display)
    settings = {"command": command, "graph": str(path), "parts": num_parts, **vars(options)}
    header["config"] = settings | header["config"]
    with agreed(comm, "make the folder"):
        _make_folder(comm, out)
    with comm.at("write the partition file"), display.stage(f"write {out.name}"):
        write_parts(out, comm, made, header, compress=compress, graph=path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report: dict[str, Any] = header["report"]
    return report | {
        "file": str(out),
        "seconds": time.monotonic() - began,
        "memory_bytes": comm.allreduce(peak),
    }


def _assembled(
    comm: Communicator,
    path: Path,
    num_parts: int,
    method: str,
    options: PartitionOptions,
    display: Display,
) -> tuple[list[Part], dict[str, Any]]:
    """Return this rank's parts of a graph file, and the header of the partition file."""
    with _opened(comm, path, num_parts) as graph:
        facts = {"fingerprint": graph.fingerprint, **graph.counts.attributes()}
        require_same(comm, facts, "graphs", file=path)
        low, high = slab_bounds(graph, comm.rank, comm.size)
        cut = _cut(comm, graph, (low, high), num_parts, method, options, display)
        with agreed(comm, "read the names of types"):
            kinds = graph.kinds()
        with comm.at("lay out the parts"), display.stage("lay out the parts"):
            source = FileSource(graph, low, high, cut.indptr)
            made, numbers = assembly.build(comm, source, cut.owner, num_parts, graph.num_nodes)
    report = {
        "method": cut.method,
        "parts": num_parts,
        "notes": comm.broadcast(cut.notes),
        **numbers.summary(),
        "random": cut.random,
    }
    header = {
        **graph.counts.attributes(),
        "symmetric": int(bool(numbers.symmetric)),
        "method": cut.method,
        "graph_fingerprint": graph.fingerprint,
        "config": kinds.stored(),
        "report": report,
    }
    return made, header


@dataclass(frozen=True)
class _Cut:
    """The part of each row of this rank's slab, and how it was found.

    `random`: the numbers of a random partition, for comparison; `indptr`: of the rows, from 0.
    """

    method: str
    owner: Array
    random: dict[str, Any]
    notes: list[str]
    indptr: Int64


def _opened(comm: Communicator, path: Path, num_parts: int) -> GraphFile:
    """Open the graph on all ranks, after a check that it has a node for each part."""
    with agreed(comm, "open the graph"):
        graph = GraphFile(path)
        if num_parts > graph.num_nodes:
            raise InputError(
                f"{num_parts} parts of {counted(graph.num_nodes, 'node')} would leave parts empty: "
                f"use at most {counted(graph.num_nodes, 'part')}",
                file=path,
            )
    return graph


def _cut(
    comm: Communicator,
    graph: GraphFile,
    rows: tuple[int, int],
    num_parts: int,
    method: str,
    options: PartitionOptions,
    display: Display,
) -> _Cut:
    """Read the edges of this rank's rows, and find the parts."""
    low, high = rows
    with agreed(comm, "read the edges"), display.stage("read the edges"):
        indptr = graph.read_indptr(low, high)
        indptr -= indptr[0]
        share = graph.fingerprint_of(low, high)
        train = _train_mask(graph, low, high)
    graph.compare(sum(comm.allgather(share, where="fingerprint of the graph")))
    cost = options.node_cost + options.edge_cost * np.diff(indptr)
    edges = SlabEdges(low, high, indptr, graph.read_sources)
    problem = Problem(edges, graph.num_nodes, num_parts, cost, train, options)
    with comm.at("estimate the memory"):
        check_layout(comm, graph, problem, method)
    with comm.at(f"method {method}"), display.stage(f"method {method}"):
        if method == "auto":
            method, reason = choose(comm, problem)
            problem.notes.append(reason)
        owner = assign(comm, method, problem)
    if options.refine == "volume":
        with comm.at("refine"), display.stage("refine"):
            owner = refine_volume(comm, problem, owner)
    compared = "random partition for comparison"
    with comm.at(compared), display.stage(compared):
        random, out_edges = random_numbers(comm, problem, owner)
    with comm.at("estimate the memory"):
        check_parts(comm, graph, problem, method, owner, out_edges)
    return _Cut(method, owner, random.summary(), problem.notes, indptr)


def default_file(graph: str | Path, num_parts: int) -> Path:
    """Return the default file of a graph's partition: partitions/NAME.pP.h5."""
    return FOLDER / f"{Path(graph).stem}.p{num_parts}.h5"


def choose(comm: Communicator, problem: Problem) -> tuple[str, str]:
    """Return the method that `auto` takes and a line with the reason, the same on all ranks.

    It is ParMETIS if that is installed and fits the memory, then KaMinPar, then streaming.
    PT-Scotch's implementation of ParMETIS comes after KaMinPar: it is slow on power-law graphs.
    Collective.
    """
    if problem.num_parts == 1 or problem.num_nodes < _FEWEST * problem.num_parts:
        return "block", "auto takes block: with one part or few nodes there is nothing to optimise"
    if problem.options.balance_train:
        return "parmetis", "auto takes parmetis: only it balances the training nodes"
    missing = scotch = ""
    try:
        library = builds.load(comm, narrow=is_narrow(comm, problem))
        short = MemoryNeed.of(comm, problem, library.index_bytes).shortage(comm, comm.size)
        if library.scotch:
            scotch = missing = "only PT-Scotch's ParMETIS is installed"
        elif short is not None:
            missing = f"ParMETIS would need about {short}"
        else:
            return "parmetis", f"auto takes parmetis: it is installed and fits ({library})"
    except InputError as error:
        reason = str(error).removesuffix(f", {binding.OTHERWISE}")
        missing = f"ParMETIS can't be used ({reason})"
    lacks = kaminpar_lacks(comm, problem)
    if not lacks:
        return "kaminpar", f"auto takes kaminpar: {missing}"
    if scotch:
        return "parmetis", f"auto takes parmetis: {lacks}, and {scotch}"
    return "streaming", f"auto takes streaming: {missing}, and {lacks}"


def assign(comm: Communicator, method: str, problem: Problem) -> Array:
    """Return the part of each row of this rank's slab by a method other than auto: int32.

    Collective.
    """
    ids = np.arange(problem.edges.lo, problem.edges.hi)
    if problem.num_parts == 1:
        return np.zeros(len(ids), np.int32)
    if method == "random":
        return random_parts(ids, problem.num_nodes, problem.num_parts, problem.options.seed)
    if method == "block" or problem.num_nodes < _FEWEST * problem.num_parts:
        return block_parts(ids, problem.num_nodes, problem.num_parts)
    looking = {"parmetis": parmetis_parts, "kaminpar": kaminpar_parts, "streaming": streaming_parts}
    return looking[method](comm, problem)


def slab_bounds(graph: GraphFile, rank: int, size: int) -> tuple[int, int]:
    """Return the rows that rank `rank` of `size` reads: about equal numbers of rows and edges."""

    def first_row(share: int) -> int:
        if share == size:
            return graph.num_nodes
        wanted = (graph.num_nodes + graph.num_edges) * share // size
        low, high = 0, graph.num_nodes
        while low < high:
            middle = (low + high) // 2
            if middle + int(graph.read_indptr(middle, middle)[0]) < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    return first_row(rank), first_row(rank + 1)


def _train_mask(graph: GraphFile, low: int, high: int) -> Array:
    split = graph.read_nodes(low, high, ["split"]).split
    return np.zeros(high - low, bool) if split is None else split[:, 0] == TRAIN


def _check(method: str, num_parts: int) -> None:
    if method not in METHODS:
        raise InputError(f"--method must be one of {', '.join(METHODS)}", value=method)
    if not 1 <= num_parts <= MAX_PARTS:
        raise InputError(f"--parts must be in 1 .. {MAX_PARTS}", value=num_parts)


def _make_folder(comm: Communicator, out: Path) -> None:
    if comm.rank == 0:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't be made: {error.strerror}", file=out.parent) from error
