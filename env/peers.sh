#!/usr/bin/env bash
# Makes the environment of the peers that `hpcgnn bench --peers FOLDER/bin/python` measures: PyTorch, DGL
# and PyTorch Geometric for CPUs. pip only, nothing outside the folder, nothing of hpcgnn in it.
#
#     env/peers.sh [FOLDER]            default: .venv-peers
#
# DGL 1.1.3 is the last release whose wheel runs with torch 2.13; it needs pkg_resources, which
# setuptools has up to 69. PYTHON (python3) is the Python it is made from. A second call installs what
# is missing.
set -euo pipefail

folder=${1:-.venv-peers}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1

[ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/python" -m pip "$@"; }

pip install torch==2.13.0 dgl==1.1.3 torch-geometric==2.8.1 numpy scipy psutil packaging pandas tqdm
# Separately: torch requires a newer setuptools, which it needs to compile but not to run.
pip install --no-deps 'setuptools<70'
"$folder/bin/python" - <<'PYTHON'
import os

os.environ["DGLBACKEND"] = "pytorch"
import dgl
import torch
import torch_geometric

print(f"torch {torch.__version__}, DGL {dgl.__version__}, PyG {torch_geometric.__version__}")
PYTHON
