# shellcheck shell=bash
# Sourced with the argument gpu or cpu: the modules to build and run hpcgnn on Perlmutter.
strict=$-
set +u  # the module command fails on unset variables
module load PrgEnv-gnu cray-hdf5-parallel python
if [ "$1" = gpu ]; then
    module load cudatoolkit craype-accel-nvidia80
else
    module load craype-accel-host
fi
[[ $strict != *u* ]] || set -u
