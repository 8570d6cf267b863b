"""The kernels in CUDA."""
