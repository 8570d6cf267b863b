# make demo    install, then generate, partition, train and predict a small graph on 2 ranks
# make test    install what the tests need, then run checks, and tests on 1 rank and on RANKS
# make test-quick    for quick feedback: style, types, and the quick tests on 1 rank and on 2
# make setup   install only
# make test-parallel-hdf5    the pipeline and the storage tests in a second environment whose h5py is
#              built on parallel HDF5; skipped, with the reason, if that is not available
# make test-cuda   compile every CUDA kernel for A100 and H100, if nvcc is installed
# make test-gpu    the tests that need a GPU, in an environment made with CUDA=12 or 13
# make test-sanitized    the C++ kernels' tests under AddressSanitizer and UBSan
# Variables (VENV, PYTHON, TORCH, MPI, HDF5, PARMETIS ...) are explained in env/install.sh.

VENV ?= .venv
RANKS ?= 2 3 4 7

unexport CDPATH  # else `cd` prints where it went
export VENV PYTHON CUDA TORCH TORCH_INDEX MPI HDF5 PARMETIS
# Open MPI only: more ranks than cores, and root in a container.
export OMPI_MCA_rmaps_base_oversubscribe := 1
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1

.PHONY: demo setup test test-quick test-cuda test-gpu test-parallel-hdf5 test-sanitized

demo: setup
	@jobs/demo.sh

setup:
	@env/install.sh

test:
	@env/install.sh --test
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" env/test.sh $(RANKS)

test-quick:
	@env/install.sh --test
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" env/test.sh --quick

test-cuda:
	@env/install.sh --test
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" python -m pytest tests/kernels/test_cuda_compile.py -q -rs

test-gpu:
	@env/install.sh --test
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" python -m pytest tests -m gpu -q -rs

test-parallel-hdf5:
	@env/install.sh --test
	@env/test_parallel_hdf5.sh

test-sanitized:
	@env/install.sh --test
	@PATH="$$(cd "$(VENV)/bin" && pwd):$$PATH" env/sanitize.sh
