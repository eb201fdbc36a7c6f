# Everything a developer types. A person's own environment is left alone: these targets use .venv.
PYTHON ?= python3
VENV ?= .venv
# A matching pair: torchvision, the oracle of the tests, imports only beside its own torch.
TORCH ?= 2.14.1
TORCHVISION ?= 0.29.1
BIN := $(VENV)/bin

.PHONY: demo test slow build gpu-check lint format bench torch-matrix clean

# A Mask R-CNN learns real nuclei on this machine: install, train, evaluate, predict.
demo: build
	$(BIN)/mrcnn train --out runs/demo-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/mrcnn evaluate
	$(BIN)/mrcnn predict mrcnn_cli/data/sample/val --out predictions
	@echo "The pictures are in predictions/, the run with its curves in runs/latest/"

test: build
	$(BIN)/python -m pytest -m "not slow and not gpu"

slow: build
	$(BIN)/python -m pytest -m "slow and not gpu" --durations=15

build: $(VENV)/ready

$(VENV)/ready: setup.py pyproject.toml $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=70.1" wheel
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)" "torchvision==$(TORCHVISION)" numpy ninja "pybind11>=2.12"
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[test,pretrained]'
	touch $@

# With the machine's own python and torch. A missing GPU is an error here, not a skip.
SANITIZER := $(shell command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
WATCHED := -m pytest -q -m gpu -k "cuda_equals_cpu and (float32 or dtype1)" tests/ops -p no:cacheprovider
# The other folders hold no tests for a GPU, and import packages that its machine may lack.
ON_GPU := -m gpu tests/ops tests/engine
gpu-check:
	$(PYTHON) -c "import torch, sys; sys.exit(None if torch.cuda.is_available() else 'error: no CUDA device here')"
	MRCNN_CUDA=1 MRCNN_CUDA_ARCHS="$(or $(MRCNN_CUDA_ARCHS),90)" $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m pytest $(ON_GPU)
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool memcheck --error-exitcode 1 $(PYTHON) $(WATCHED)
	$(SANITIZER) --tool racecheck --error-exitcode 1 $(PYTHON) $(WATCHED)
	$(PYTHON) -m mrcnn_cli gradcheck --device cuda
	mkdir -p benchmarks/results
	$(PYTHON) -m mrcnn_cli bench kernels --device cuda \
		--out "benchmarks/results/$$($(PYTHON) -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))').json"

lint:
	$(BIN)/python -m pip install --quiet -e '.[lint]' --no-build-isolation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cpp')

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/*.h' 'tests/*.cpp')

bench:
	$(BIN)/mrcnn bench kernels

# The same operator library under another torch: built once, tested twice.
torch-matrix: build
	$(BIN)/python -m pytest tests/test_torch_matrix.py -m slow

clean:
	rm -rf build dist *.egg-info $(VENV) mrcnn_cli/*.so
