"""A fake CUDA device in host memory, which refuses operations that mix host and device memory.

Its tensors say `cuda:0`, hold host memory and refuse operations with tensors of the CPU. Kernels
are the CUDA sources, run by the emulator. Streams and events take no time, so what it can't show is
missing synchronisation. `python -m tests.fake_device.main` is `hpcgnn` on it, for a torch without
CUDA.
"""
