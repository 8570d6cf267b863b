"""Every CUDA kernel and template instance compiles for A100 and H100 with enough registers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcgnn.kernels.cuda.launch import OPTIONS, source
from hpcgnn.kernels.cuda.shapes import instances

ARCHITECTURES = ["sm_80", "sm_90"]
MOST_SPILLED = 96  # bytes of registers that a thread may store to memory
_FUNCTION = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores")


def resources(log: str) -> dict[tuple[str, str], int]:
    """Return the bytes spilled by each compiled kernel, by mangled name and architecture."""
    spilled, function = {}, ("", "")
    for line in log.splitlines():
        if match := _FUNCTION.search(line):
            function = match[1], match[2]
        elif match := _SPILLS.search(line):
            spilled[function] = int(match[1])
    return spilled


@pytest.fixture(scope="module")
def compilations(pytestconfig) -> Iterator[dict[str, Future[str]]]:
    """Return the output of nvcc for each source, compiled on all cores, the longest first."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    folder = pytestconfig.cache.mkdir("nvcc")
    longest = sorted(instances(), key=lambda name: -len(instances()[name]))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {name: pool.submit(compile_source, folder, name) for name in longest}


def compile_source(folder: Path, name: str) -> str:
    """Compile a source for both architectures, which share the code before registers are assigned.

    The output is kept for the same compiler and code, since few changes touch the sources.
    """
    taken = ",\n".join(f"(void*)&{expression}" for expression in instances()[name])
    text = f"{source(name)}\n__device__ void* every_instance[] = {{{taken}}};\n"
    command = ["nvcc", *OPTIONS, "-fatbin", "-Werror=all-warnings", "-Xptxas=-v"]
    command += [f"-gencode=arch=compute_80,code={architecture}" for architecture in ARCHITECTURES]
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256("\n".join([text, *command, version]).encode()).hexdigest()[:24]
    said = folder / f"{name}-{key}.txt"
    if not said.exists():
        with tempfile.TemporaryDirectory() as place:
            code = Path(place, f"{name}.cu")
            code.write_text(text)
            command += ["-o", str(code.with_suffix(".fatbin")), str(code)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        made = said.with_suffix(f".{os.getpid()}")
        made.write_text(result.stderr)
        made.replace(said)
    return said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(instances()))
def test_compiles_without_warnings_and_large_spills(name, compilations):
    assert "__CUDA_ARCH__" not in source(name)
    spilled = resources(compilations[name].result())
    assert len(spilled) == len(instances()[name]) * len(ARCHITECTURES)
    assert {architecture for _, architecture in spilled} == set(ARCHITECTURES)
    assert max(spilled.values()) <= MOST_SPILLED, {k: v for k, v in spilled.items() if v}


def test_every_source_is_listed():
    from hpcgnn.kernels.cuda.launch import FOLDER

    assert {path.stem for path in FOLDER.glob("*.cu")} == set(instances())
