"""Builds the C++ kernels, ordering of nodes and fingerprints into libraries beside
the modules that call them.

Each kernel is compiled once per instruction set; the choice is made when the library is loaded.
"""

from __future__ import annotations

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

KERNELS = Path("src/hpcgnn/kernels/cpu/src")
LAYOUT = Path("src/hpcgnn/partition/layout/src")
STORAGE = Path("src/hpcgnn/storage/src")
ONCE = (KERNELS / "isa.cpp", *LAYOUT.glob("*.cpp"), *STORAGE.glob("*.cpp"))  # for the baseline only
INSTRUCTION_SETS = {"baseline": (16, [])}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["avx2"] = (32, ["-mavx2", "-mfma"])
    AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
    INSTRUCTION_SETS["avx512"] = (64, ["-mavx2", "-mfma", *AVX512, "-mprefer-vector-width=512"])
# Servers have had AVX2 since 2013: the baseline's kernels, rarely run, compile in half the time.
LEVELS = {"baseline": "-O1"} if len(INSTRUCTION_SETS) > 1 else {}
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
FLAGS += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
LINK_FLAGS: list[str] = []
if os.environ.get("HPCGNN_SANITIZE"):  # instruction sets, see env/sanitize.sh
    INSTRUCTION_SETS = {
        name: INSTRUCTION_SETS[name] for name in os.environ["HPCGNN_SANITIZE"].split()
    }
    # Python's own -fwrapv would define overflow, so that none would be reported.
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-wrapv"]
    # Address checks as calls, without those that AddressSanitizer makes anyway: inlined in
    # every loop they would take the compiler many minutes.
    CALLS = ["--param=asan-instrumentation-with-call-threshold=0"]
    CALLS += ["-fno-sanitize=null,alignment,object-size"]
    FLAGS = ["-Og" if flag == "-O3" else flag for flag in FLAGS] + SANITIZE + CALLS
    LEVELS = {}
    LINK_FLAGS += SANITIZE


class BuildKernels(build_ext):
    """Compiles for every instruction set; the library has a plain name, since it is no module."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        headers = max((Path(header).stat().st_mtime for header in ext.depends), default=0.0)

        def compile_one(task: tuple[Path, str]) -> str:
            source, isa = task
            width, flags = INSTRUCTION_SETS[isa]
            level = [LEVELS[isa]] if isa in LEVELS and source not in ONCE else []
            folder = Path(self.build_temp) / isa
            target = folder / source.with_suffix(".o")
            newest = max(source.stat().st_mtime, headers, Path(__file__).stat().st_mtime)
            if not self.force and target.exists() and target.stat().st_mtime > newest:
                return str(target)
            defines = [("HPCGNN_ISA", isa), ("HPCGNN_VECTOR_BYTES", str(width))]
            return self.compiler.compile(
                [str(source)],
                output_dir=str(folder),
                macros=defines,
                extra_postargs=[*ext.extra_compile_args, *flags, *level],
            )[0]

        sources = [Path(source) for source in ext.sources]
        sources.sort(key=lambda source: -source.stat().st_size)  # these take longest
        tasks = [(s, isa) for s in sources for isa in INSTRUCTION_SETS if s not in ONCE]
        tasks += [(s, "baseline") for s in sources if s in ONCE]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = list(pool.map(compile_one, tasks))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=ext.extra_link_args,
            target_lang="c++",
        )


class BuildPackage(build_py):
    """Copies the job scripts into the package, from which `hpcgnn jobs` copies them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("jobs", Path(self.build_lib) / "hpcgnn" / "jobs", dirs_exist_ok=True)


setup(
    ext_modules=[
        Extension(
            "hpcgnn.kernels.cpu.libhpcgnn_cpu",
            sources=sorted(str(path) for path in KERNELS.glob("*.cpp")),
            depends=sorted(str(path) for path in KERNELS.parent.parent.rglob("*.h")),
            language="c++",
            extra_compile_args=[*FLAGS, "-fopenmp"],
            extra_link_args=[*LINK_FLAGS, "-fopenmp"],
        ),
        *(
            Extension(
                name,
                sources=sorted(str(path) for path in folder.glob("*.cpp")),
                language="c++",
                extra_compile_args=FLAGS,
                extra_link_args=LINK_FLAGS,
            )
            for name, folder in (
                ("hpcgnn.partition.layout.libhpcgnn_layout", LAYOUT),
                ("hpcgnn.storage.libhpcgnn_storage", STORAGE),
            )
        ),
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPackage},
)
