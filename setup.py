"""Builds the C++ kernels into one shared library beside the Python package."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
KERNELS = Path("src/hpcgnn/kernels/cpu")


class BuildKernels(build_ext):
    """Names the library plainly: it is loaded with ctypes and is no Python module."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


setup(
    ext_modules=[
        Extension(
            "hpcgnn.kernels.libhpcgnn_cpu",
            sources=sorted(str(path) for path in KERNELS.glob("*.cpp")),
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-Wall"],
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
