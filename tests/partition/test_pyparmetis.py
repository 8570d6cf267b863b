"""The ParMETIS binding: builds of every index width, unusable builds, sizes that overflow."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hpcgnn.errors import HpcgnnError, InputError
from hpcgnn.partition.pyparmetis import binding, builds, shared_library
from tests.partition.slabs import grid_edges, slab_of

# Refuses input and reports cuts as ParMETIS does, for one part only.
STAND_IN = """
#include <stdint.h>
int ParMETIS_V3_PartKway(IDX *vtxdist, IDX *xadj, IDX *adjncy, IDX *vwgt, IDX *adjwgt,
    IDX *wgtflag, IDX *numflag, IDX *ncon, IDX *nparts, REAL *tpwgts, REAL *ubvec, IDX *options,
    IDX *edgecut, IDX *part, void *comm)
{
    if (vtxdist[1] - vtxdist[0] < 1 || *ncon != 1 || *nparts != 1) return -4;
    if (tpwgts[0] < 0.999 || tpwgts[0] > 1.001 || ubvec[0] <= 1) return -4;
    for (IDX i = 0; i < vtxdist[1] - vtxdist[0]; i++) part[i] = 0;
    *edgecut = 0;
    return 1;
}
"""


def compile_library(folder: Path, code: str, *flags: str, name: str = "libparmetis.so") -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, target = folder / f"{name}.c", folder / name
    source.write_text(code)
    command = [compiler, "-shared", "-fPIC", "-o", target, source, "-Wl,--no-as-needed", *flags]
    subprocess.run(command, check=True)
    return target


def mgmetis(pattern: str) -> Path:
    """A real build inside the package mgmetis."""
    package = importlib.util.find_spec("mgmetis")
    if package is None:
        pytest.skip("mgmetis is not installed")
    folder = Path(next(iter(package.submodule_search_locations))) / "_cython"
    return next(folder.glob(pattern))


@pytest.fixture(params=["found", "32 bits"])
def library(comm, request):
    if request.param == "32 bits":
        return builds.open_library(mgmetis("parmetis.*.so"))
    try:
        return builds.load(comm)
    except InputError as error:
        pytest.skip(str(error))


def grid_rows(comm, width=30, weights=None):
    """Return the rows of a grid that this rank passes."""
    n = width * width
    bounds = n * np.arange(comm.size + 1) // comm.size
    low, high = bounds[comm.rank], bounds[comm.rank + 1]
    slab = slab_of(*grid_edges(width, width), low, high)
    chosen = None if weights is None else np.full((high - low, 1), weights)
    return binding.Rows(bounds, slab.indptr, slab.indices, chosen)


def cut_of(comm, part, width=30):
    part = np.concatenate(comm.allgather(part))
    source, target = grid_edges(width, width)
    return (part[source] != part[target]).sum() // 2, np.bincount(part)


@pytest.mark.mpi
def test_a_grid_is_cut_well(comm, library):
    rows = grid_rows(comm)
    before = rows.adjncy.copy(), rows.xadj.copy()
    part = library.part_kway(comm.mpi, rows, 2)
    assert part.dtype == np.int32
    cut, sizes = cut_of(comm, part)
    assert 30 <= cut <= 45 and sizes.max() <= 480
    assert np.array_equal(rows.adjncy, before[0]) and np.array_equal(rows.xadj, before[1])


@pytest.mark.mpi
def test_refinement_and_repartitioning(comm, library):
    rows = grid_rows(comm, weights=3)
    stripes = (np.arange(rows.vtxdist[comm.rank], rows.vtxdist[comm.rank + 1]) // 15 % 2).astype(
        int
    )
    start, _ = cut_of(comm, stripes)
    for name, able in (("refine_kway", "can_refine"), ("adaptive_repart", "can_repartition")):
        if not getattr(library, able):
            with pytest.raises(InputError, match="has no ParMETIS_V3_"):
                getattr(library, name)(comm.mpi, rows, stripes, 2)
            continue
        cut, sizes = cut_of(comm, getattr(library, name)(comm.mpi, rows, stripes, 2))
        assert cut <= start and sizes.max() <= 500


@pytest.mark.mpi
def test_wrong_input_raises_instead_of_crashing(comm, library):
    with pytest.raises(HpcgnnError, match="failed with status"):
        library.part_kway(comm.mpi, grid_rows(comm), 2, imbalance=0.5)


@pytest.mark.parametrize("name", ["parmetis64*.so", "parmetis.*.so"])
def test_index_widths_of_real_builds(name):
    found = builds.open_library(mgmetis(name))
    assert (found.index_bytes, found.real_bytes) == (8 if "64" in name else 4, 4)
    assert found.can_refine and found.can_repartition and not found.scotch


@pytest.mark.parametrize("index", [32, 64])
@pytest.mark.parametrize("real", ["float", "double"])
def test_index_widths_are_detected_without_a_hint(tmp_path, index, real, capfd):
    path = compile_library(tmp_path, STAND_IN, f"-DIDX=int{index}_t", f"-DREAL={real}")
    found = builds.open_library(path)
    assert (found.index_bytes, found.real_bytes) == (index // 8, {"float": 4, "double": 8}[real])
    assert not found.can_refine
    assert capfd.readouterr().out == ""


def test_a_library_that_fails_with_every_width_is_refused(tmp_path):
    code = "int ParMETIS_V3_PartKway(void) { return -4; }"
    with pytest.raises(InputError, match="neither with 32- nor with 64-bit"):
        builds.open_library(compile_library(tmp_path, code))


def test_a_library_of_another_kind_is_refused(tmp_path, monkeypatch):
    other = compile_library(tmp_path, "int nothing(void) { return 0; }")
    with pytest.raises(InputError, match="no ParMETIS_V3_PartKway"):
        builds.open_library(other)
    text = tmp_path / "libparmetis.txt"
    text.write_text("not a library")
    monkeypatch.setenv("HPCGNN_PARMETIS", str(text))
    with pytest.raises(InputError, match="not a shared library for this machine"):
        builds.find()
    cut_off = tmp_path / "cut_off.so"
    cut_off.write_bytes(other.read_bytes()[:500])
    with pytest.raises(InputError, match="not a shared library for this machine"):
        builds.open_library(cut_off)


@pytest.fixture
def foreign(tmp_path):
    """A ParMETIS linked to another MPI than this process runs."""
    ours = shared_library.loaded_mpi()
    if not ours:
        pytest.skip("no MPI library is loaded under a usual name")
    soname = "libmpi.so.40" if "libmpi.so.40" not in ours else "libmpi.so.12"
    compile_library(tmp_path, "", f"-Wl,-soname,{soname}", name=soname)
    flags = ["-DIDX=int64_t", "-DREAL=float", f"-L{tmp_path}", f"-l:{soname}"]
    return compile_library(tmp_path, STAND_IN, *flags), soname


def test_another_mpi_is_refused_and_both_are_named(foreign, monkeypatch):
    path, soname = foreign
    monkeypatch.setenv("HPCGNN_PARMETIS", str(path))
    with pytest.raises(InputError) as caught:
        builds.find()
    line = str(caught.value)
    expected = "Open MPI" if soname == "libmpi.so.40" else "MPICH"
    running = "MPICH" if expected == "Open MPI" else "Open MPI"
    assert f"built for {expected} ({soname})" in line and f"this process runs {running}" in line
    assert line.startswith(f"{path}: ") and "\n" not in line


def test_another_mpi_behind_a_dependency_is_refused(foreign, tmp_path):
    """As for PT-Scotch, where only libptscotch may need MPI."""
    path, soname = foreign
    path.rename(tmp_path / "libinner.so")
    flags = ["-DIDX=int64_t", "-DREAL=float", f"-L{tmp_path}", "-l:libinner.so"]
    outer = compile_library(tmp_path, STAND_IN, *flags)
    with pytest.raises(InputError, match=f"built for .* \\({soname}\\)"):
        builds.check_mpi(outer)


def test_a_usable_build_is_preferred_to_one_for_another_mpi(foreign, tmp_path, monkeypatch):
    (tmp_path / "good").mkdir()
    good = compile_library(tmp_path / "good", STAND_IN, "-DIDX=int64_t", "-DREAL=float")
    monkeypatch.delenv("HPCGNN_PARMETIS", raising=False)
    monkeypatch.setattr(shared_library, "parmetis_candidates", lambda **_: iter([foreign[0], good]))
    assert builds.find() == good


def test_a_missing_library_is_reported_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("HPCGNN_PARMETIS", raising=False)
    monkeypatch.setattr(shared_library, "parmetis_candidates", lambda **_: iter([]))
    with pytest.raises(InputError, match=r"was not found: .*install_parmetis.*--method kaminpar"):
        builds.find()
    monkeypatch.setenv("HPCGNN_PARMETIS", str(tmp_path / "nowhere.so"))
    with pytest.raises(InputError, match=r"nowhere\.so: no such library"):
        builds.find()


def test_candidates_follow_the_environment(tmp_path, monkeypatch):
    place = tmp_path / "parmetis" / "lib" / "libparmetis.so"
    place.parent.mkdir(parents=True)
    place.touch()
    for name in ("PARMETIS_DIR", "CRAY_PARMETIS_PREFIX_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "parmetis"))
        assert place in list(shared_library.parmetis_candidates())
        monkeypatch.delenv(name)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{place.parent}")
    assert place in list(shared_library.parmetis_candidates())


def test_libraries_in_the_current_folder_are_not_loaded(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "lib", tmp_path / "mgmetis" / "_cython"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "libparmetis.so").touch()
        (folder / "parmetis64.so").touch()
    (tmp_path / "mgmetis" / "__init__.py").touch()
    before = set(shared_library.parmetis_candidates()) - set(
        shared_library.environment_candidates()
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("PARMETIS_DIR", "EBROOTPARMETIS", "CRAY_TPSL_PREFIX_DIR", "LIBRARY_PATH"):
        for value in ("", ".", "lib"):
            monkeypatch.setenv(name, value)
            assert set(shared_library.parmetis_candidates()) == before
    monkeypatch.setenv("LD_LIBRARY_PATH", f"lib::{os.environ.get('LD_LIBRARY_PATH', '')}:.")
    assert set(shared_library.parmetis_candidates()) == before
    monkeypatch.setenv("HPCGNN_PARMETIS", "lib/libparmetis.so")
    with pytest.raises(InputError, match="must be an absolute path"):
        builds.find()


def test_libraries_that_others_can_write_are_not_loaded(tmp_path, monkeypatch):
    place = tmp_path / "libparmetis.so"
    place.touch()
    shared_library.check_place(place)
    (tmp_path / "link.so").symlink_to(place)
    for part, mode in ((place, 0o666), (tmp_path, 0o777), (tmp_path, 0o1777)):
        former = part.stat().st_mode & 0o7777
        part.chmod(mode)
        for name in (place, tmp_path / "link.so"):
            with pytest.raises(InputError, match="isn't loaded, since other users can write"):
                shared_library.check_place(name, group=True)
        part.chmod(former)
    monkeypatch.setattr(
        shared_library.grp, "getgrgid", lambda group: SimpleNamespace(gr_name="many")
    )
    status = SimpleNamespace(st_mode=0o100775, st_uid=os.getuid(), st_gid=1234)
    assert shared_library._others_can_write(status, None, group=False)
    assert not shared_library._others_can_write(status, None, group=True)


def test_sizes_beyond_the_counts_are_refused_with_a_rank_count_that_fits():
    """20 billion edges overflow on 16 ranks, but not on the number of ranks in the message."""
    edges, nodes = 20 * 10**9, 10**9

    def sizes(ranks):
        return [(nodes // ranks, edges // ranks, 30 * nodes // ranks)] * ranks

    with pytest.raises(InputError, match=r"start at least [0-9]+ ranks") as caught:
        binding.refuse_overflow(sizes(16), 1, 8)
    ranks = int(str(caught.value).split("start at least ")[1].split()[0])
    binding.refuse_overflow(sizes(ranks), 1, 8)
    with pytest.raises(InputError, match="overflow"):
        binding.refuse_overflow(sizes(ranks - 2), 1, 8)


def test_counts_beyond_32_bits_are_refused():
    binding.refuse_overflow([(10, 2**29, 5)] * 3, 1, 4)
    with pytest.raises(InputError, match=r"32-bit indices: .* \(IDXTYPEWIDTH 64\)"):
        binding.refuse_overflow([(10, 2**29, 5)] * 4, 1, 4)
    with pytest.raises(InputError, match="32-bit indices"):
        binding.refuse_overflow([(10, 10, 2**31)], 1, 4)
