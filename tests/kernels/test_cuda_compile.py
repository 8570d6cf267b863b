"""Every CUDA kernel and template instance compiles for A100 and H100, with registers to spare."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcgnn.kernels.cuda.launch import OPTIONS, source
from hpcgnn.kernels.cuda.shapes import instances

ARCHITECTURES = ["sm_80", "sm_90"]
MOST_SPILLED = 96  # bytes of registers that a thread may store to memory
_FUNCTION = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores")


def resources(log: str) -> dict[str, int]:
    """Bytes spilled by each compiled kernel, by mangled name."""
    spilled, function = {}, ""
    for line in log.splitlines():
        if match := _FUNCTION.search(line):
            function = match[1]
        elif match := _SPILLS.search(line):
            spilled[function] = int(match[1])
    return spilled


@pytest.fixture(scope="module")
def compilations(tmp_path_factory) -> Iterator[dict[tuple[str, str], Future[str]]]:
    """What nvcc says of each source and architecture, on all cores, the longest first."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("cuda")
    longest = sorted(instances(), key=lambda name: -len(instances()[name]))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {
            (name, architecture): pool.submit(compile_source, folder, name, architecture)
            for name in longest
            for architecture in ARCHITECTURES
        }


def compile_source(folder: Path, name: str, architecture: str) -> str:
    taken = ",\n".join(f"(void*)&{expression}" for expression in instances()[name])
    code = folder / f"{name}-{architecture}.cu"
    code.write_text(f"{source(name)}\n__device__ void* every_instance[] = {{{taken}}};\n")
    command = ["nvcc", *OPTIONS, "-cubin", f"-arch={architecture}", "-Werror=all-warnings"]
    command += ["-Xptxas=-v", "-o", str(code.with_suffix(".cubin")), str(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(instances()))
def test_compiles_without_warnings_and_large_spills(name, architecture, compilations):
    spilled = resources(compilations[name, architecture].result())
    assert len(spilled) == len(instances()[name])
    assert max(spilled.values()) <= MOST_SPILLED, {k: v for k, v in spilled.items() if v}


def test_every_source_is_listed():
    from hpcgnn.kernels.cuda.launch import FOLDER

    assert {path.stem for path in FOLDER.glob("*.cu")} == set(instances())
