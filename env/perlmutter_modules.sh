# shellcheck shell=bash
# Sourced with the argument gpu or cpu: the modules to build and run hpcgnn on Perlmutter.
module load PrgEnv-gnu cray-hdf5-parallel python
if [ "$1" = gpu ]; then
    module load cudatoolkit craype-accel-nvidia80
else
    module load craype-accel-host
fi
