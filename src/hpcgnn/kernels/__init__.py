"""The hot loops: one Python face for the C++ and the CUDA sources."""
