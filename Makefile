# SPDX-License-Identifier: Apache-2.0
# make demo   builds the fork in .venv and speaks a sentence        make test   builds it and runs the tests
# make build  only builds                                           make lint   style and types
# make nightly-tests    runs the tests that take too long for every change
# make upstream-tests   runs upstream's own tests on the fork
# make wheel  builds a wheel in dist/                                make wheel-demo  tries it in an environment of its own
# make release-tests    runs the fork on the other upstream releases that it supports
#
# PYTHON=python3.12     the Python to make .venv with (3.11 or newer)
# TORCH="torch==..."    what pip installs as torch; its build decides the device of the fork
# VENV=path             another place for the virtual environment

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv

bin := $(VENV)/bin
pip := $(bin)/python -m pip -qq --disable-pip-version-check --no-input
pip_install := $(pip) install --progress-bar off

fork_inputs := setup.py CMakeLists.txt pyproject.toml upstream.toml requirements/dev.txt \
	$(wildcard tools/fork/*.py) $(wildcard csrc/*/*) $(wildcard patches/*/*.patch)

.PHONY: build demo wheel wheel-demo test nightly-tests upstream-tests release-tests lint format cuda-objects clean
.DELETE_ON_ERROR:

build: $(VENV)/.overlay-linked

$(VENV)/.torch-installed: requirements/build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON")'
	@test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH)"
	@$(pip_install) "$(TORCH)" -r requirements/build.txt
	@touch $@

# torchvision, torchaudio and torchcodec built for another device break "import transformers"; nothing here needs them.
$(VENV)/.fork-installed: $(VENV)/.torch-installed $(fork_inputs)
	@echo "building and installing the fork"
	@$(pip_install) --no-build-isolation --editable '.[dev]'
	@$(pip) uninstall --yes torchvision torchaudio torchcodec 2>/dev/null
	@touch $@

# An edit of a linked file needs no step; a new file may need a link. pip compiles what it copies, but not what it
# links: without bytecode each start of the command would compile a thousand files.
$(VENV)/.overlay-linked: $(VENV)/.fork-installed $(shell find vllm -type d -not -name __pycache__)
	@$(bin)/python -m tools.fork link >/dev/null
	@$(bin)/python -m compileall -qq -j 0 build/development/vllm || true
	@touch $@

# What the demonstrations say; make demo sentence="..." says another.
sentence := The road to the village was closed by the snow.
demo: build
	@$(bin)/vllm speak "$(sentence)" --output demo.wav
	@$(bin)/vllm transcribe demo.wav

wheel: $(VENV)/.torch-installed
	@rm -rf dist
	@$(pip) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@ls dist/*.whl

# As somebody would who has the wheel alone: in a new environment, and outside of the repository.
wheel-demo: wheel
	@rm -rf build/wheel-demo
	@$(PYTHON) -m venv build/wheel-demo
	@build/wheel-demo/bin/python -m pip install -qq --disable-pip-version-check "$(TORCH)" dist/*.whl
	@cd build/wheel-demo && bin/vllm speak "$(sentence)" --output demo.wav && bin/vllm transcribe demo.wav | tee heard.txt
	@test "$$(cat build/wheel-demo/heard.txt)" = "$(sentence)"

# One worker per core; tests/support/parallel.py says which tests a worker gets.
test nightly-tests: pytest := $(bin)/python -m pytest -n logical --maxprocesses=4

test: build
	@$(pytest) -m "not nightly" tests

nightly-tests: build
	@$(pytest) -m nightly tests

# Upstream's own tests on the fork: those that pass on the unpatched release have to pass.
upstream-tests: build
	@$(bin)/python -m tests.upstream.run

# The fork on the releases of upstream.toml that are not installed.
release-tests: build
	@$(bin)/python -m tests.releases.run

lint: build
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/mypy --strict vllm/unison
	@$(bin)/python -S tools/import_layers.py

format: build
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

# Compiles the CUDA sources for every architecture; needs nvcc, but no GPU.
cuda-objects: build
	@$(bin)/python -m tools.fork cuda-objects

clean:
	rm -rf build $(VENV)
