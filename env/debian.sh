#!/usr/bin/env bash
# System packages for Debian 12 from apt, all optional. Needs root.
#
#     sudo env/debian.sh PART...
#
# tools    g++, make, and Python with venv and headers: all that `make demo` needs
# openmpi  Open MPI 4.1                then: make demo VENV=.venv-system MPI=system
# scotch   PT-Scotch's implementation of ParMETIS's interface, for Open MPI
#                                      then: make demo VENV=.venv-system MPI=system PARMETIS=none
# hdf5     HDF5 on Open MPI            then: HDF5_DIR=/usr/lib/x86_64-linux-gnu/hdf5/openmpi \
#                                            make demo VENV=.venv-system MPI=system HDF5=parallel
# slurm    Slurm's daemons, which the tests start privately (apt may start its own as services:
#          systemctl disable --now slurmd slurmctld munge)
set -euo pipefail

packages=()
for part in "$@"; do
    case $part in
        tools) packages+=(g++ make python3 python3-venv python3-dev) ;;
        openmpi) packages+=(libopenmpi-dev openmpi-bin) ;;
        scotch) packages+=(libscotchparmetis-dev libptscotch-dev) ;;
        hdf5) packages+=(libhdf5-openmpi-dev pkg-config) ;;
        slurm) packages+=(slurm-wlm munge) ;;
        *)
            echo "debian.sh: $part: tools, openmpi, scotch, hdf5 or slurm" >&2
            exit 2
            ;;
    esac
done
if [ ${#packages[@]} -eq 0 ]; then
    sed -n '2,/^set/{/^#/p}' "$0" | sed 's/^# \{0,1\}//'
    exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get install --yes --quiet --no-install-recommends "${packages[@]}" ||
    { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends "${packages[@]}"; }
