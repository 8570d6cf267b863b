"""Every CUDA kernel and template instance compiles for A100 and H100, with registers to spare."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from hpcgnn.kernels.launch import OPTIONS, source
from hpcgnn.kernels.shapes import instances

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


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", sorted(instances()))
def test_compiles_without_warnings_and_large_spills(name, architecture, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    expressions = instances()[name]
    taken = ",\n".join(f"(void*)&{expression}" for expression in expressions)
    code = tmp_path / f"{name}.cu"
    code.write_text(f"{source(name)}\n__device__ void* every_instance[] = {{{taken}}};\n")
    command = ["nvcc", *OPTIONS, "-cubin", f"-arch={architecture}", "-Werror=all-warnings"]
    command += ["-Xptxas=-v", "-o", str(tmp_path / "out.cubin"), str(code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    spilled = resources(result.stderr)
    assert len(spilled) == len(expressions)
    assert max(spilled.values()) <= MOST_SPILLED, {k: v for k, v in spilled.items() if v}


def test_every_source_is_listed():
    from hpcgnn.kernels.launch import FOLDER

    assert {path.stem for path in FOLDER.glob("*.cu")} == set(instances())
