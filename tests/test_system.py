"""Detection of the process's environment."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from hpcgnn import system


@pytest.mark.parametrize(
    ("vendor", "family", "given", "expected"),
    [
        ("AuthenticAMD", 25, None, "X86_V4 AVX512_SKX AVX512_ICL AVX512_SPR"),
        ("AuthenticAMD", 25, "AVX2", "AVX2"),
        ("AuthenticAMD", 26, None, None),
        ("GenuineIntel", 6, None, None),
    ],
)
def test_slow_numpy_sorts_are_disabled_on_affected_processors(
    monkeypatch, vendor, family, given, expected
):
    facts = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: avx512f\n\n"
    monkeypatch.setattr(system, "_read", {"/proc/cpuinfo": 2 * facts}.get)
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", str(given))
    if given is None:
        monkeypatch.delenv("NPY_DISABLE_CPU_FEATURES")
    system.choose_sorts()
    assert os.environ.get("NPY_DISABLE_CPU_FEATURES") == expected


def test_sorts_are_chosen_before_numpy_is_loaded():
    program = "import sys, hpcgnn.cli; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no setting")
def test_arrays_are_reused_only_where_this_is_asked_for():
    program = """
import resource
import numpy as np
from hpcgnn import system

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(1 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

system.set_up()
with system.reusing_arrays():
    reused = faults()
assert 4 * reused < faults(), reused
"""
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "HPCGNN_ALLOCATION")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([sys.executable, "-c", program], check=True, env=kept)


def test_processes_are_found_with_their_parents_and_memory():
    with subprocess.Popen(["sleep", "60"]) as child:
        found = system.processes()
        child.kill()
    assert found[child.pid].parent == os.getpid() and found[os.getpid()].parent == os.getppid()
    assert system.resident_memory_of(child.pid) is None
    assert 10 << 20 < system.resident_memory() <= system.most_resident_memory()


@pytest.mark.parametrize("before", [True, False])
def test_garbage_is_not_searched_while_libraries_are_loaded(before):
    """Also where loading fails."""
    collects = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(ImportError), system.loading():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == before
    finally:
        (gc.enable if collects else gc.disable)()
