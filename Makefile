# What a person runs; `.ci/run` runs the same. `make help` lists the targets.
PYTHON ?= python3
ENGINES ?= hf,vllm,sglang
VENV := .venv
PY := $(VENV)/bin/python
# Two processes, a file at a time: an engine keeps about one core busy.
PYTEST := $(PY) -m pytest --numprocesses 2 --dist loadfile
comma := ,
OTHER_ENGINES := $(filter-out hf,$(subst $(comma), ,$(ENGINES)))

# A virtual environment can't be moved, so its stamps carry the folder's name: a copied or moved clone makes its own.
PLACE := $(shell printf %s '$(CURDIR)' | cksum | cut -d' ' -f1)
DEPS := $(VENV)/.deps-$(PLACE)
INSTALLED := $(VENV)/.installed-$(PLACE)
NATIVE := $(wildcard CMakeLists.txt csrc/cuda/CMakeLists.txt rocm/CMakeLists.txt csrc/*.cpp csrc/*.h csrc/cuda/*)
# Sources beside the package that are typed as strictly.
TYPED := engines demo benchmarks matrix $(wildcard docs/*.py)
FORMATTED := $(wildcard csrc/*.cpp csrc/*.h csrc/cuda/*.cpp csrc/cuda/*.h csrc/cuda/*.cu rocm/*.h tests/native/*.cpp tests/native/*.h)
# What test-all also runs with earlier releases, if their environments are built (`python -m engines build vllm==0.31.0`).
EARLIER := ranks lora hybrid latent fp8 failures reuse hicache
FUZZ_SECONDS ?= 600
SOAK_MINUTES ?= 15

# Two makes at once in one clone wait for each other where there is flock; the second then finds its work done.
LOCKED := $(if $(shell command -v flock),flock .make.lock) $(MAKE) --no-print-directory

# A virtual environment or an import path of the caller's would leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup _setup _why_no_library check check-native check-cpus check-kernels kernels-report gpu-check fuzz format test test-all test-fast soak engines matrix engines-clean site demo clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: ## make .venv with everything development needs (again only when something changed)
	@$(LOCKED) _setup

_setup: $(INSTALLED)
	@:

$(DEPS): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kvlingua needs Python 3.11 or newer, %s is %s; name another: make PYTHON=python3.12" % (sys.executable, sys.version.split()[0]))'
	@echo "setup: installing what requirements-dev.txt names into $(VENV) (PyTorch is the largest part; this takes minutes)"
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip install -qq --requirement requirements-dev.txt
	@touch $@

# Without build isolation the tools in .venv build it: nothing is downloaded, so it works offline.
$(INSTALLED): $(DEPS) pyproject.toml src/kvlingua/__init__.py $(NATIVE)
	@echo "setup: building the native library, installing kvlingua for development"
	@$(PY) -m pip install -qq --no-build-isolation --editable .
	@test -n "$$(find $(VENV)/lib -name libkvlingua_cpu.so)" || $(MAKE) --no-print-directory _why_no_library
	@PATH="$$PATH:$${CUDA_HOME:-/usr/local/cuda}/bin:$${ROCM_PATH:-/opt/rocm}/bin"; for one in nvcc:cuda hipcc:hip; do \
	    ! command -v $${one%%:*} >/dev/null || test -n "$$(find $(VENV)/lib -name libkvlingua_$${one##*:}.so)" || \
	    echo "setup: libkvlingua_$${one##*:}.so is MISSING although $${one%%:*} is there; why: cmake -S . -B build/cmake/why && cmake --build build/cmake/why"; \
	done
	@touch $@

# A wheel without its library is right where there is no compiler (conversion then runs through torch), but a mistake where there is one.
_why_no_library:
	@if command -v $(CXX) >/dev/null; then \
	    PATH="$(CURDIR)/$(VENV)/bin:$$PATH"; cmake -S . -B build/cmake/why && cmake --build build/cmake/why; \
	    echo "setup: the native library could not be built although $(CXX) is there: the reason stands above"; exit 1; \
	else echo "setup: no C++ compiler ($(CXX)): conversions will run through torch, which is slow"; fi

check: setup ## style, types, import direction, and what importing loads
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --package kvlingua
	$(VENV)/bin/mypy $(TYPED)
	$(VENV)/bin/clang-format --dry-run -Werror $(FORMATTED)
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m pytest -q tests/house/test_import.py
	$(PY) docs/make_layouts.py --check

check-native: setup ## the native library under sanitizers: its tests once more, fuzzing, builds without a warning
	$(PY) -m tests.native.check native

check-cpus: setup ## the native library on aarch64 and on an x86-64 without AVX, emulated (where qemu is installed)
	$(PY) -m tests.native.check cpus

check-kernels: setup ## the kernels for GPUs, compiled for every architecture that a compiler here knows
	$(PY) -m tests.native.kernels

kernels-report: setup ## the same, with registers, spills and shared memory of each
	@$(PY) -m tests.native.kernels --report

gpu-check: ## on a machine with an NVIDIA GPU, torch and nvcc, offline: build, test, measure, write the result
	PYTHONPATH=. $(PYTHON) -m tests.gpu.check $(if $(WHEELS),--wheels $(WHEELS)) $(if $(PARTS),--parts $(PARTS))

fuzz: setup ## fuzz the native library for FUZZ_SECONDS (600)
	$(PY) -m tests.native.check fuzz --seconds $(FUZZ_SECONDS)

format: setup ## rewrite the sources in the project's style
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED)

test: check engines site ## make check, half a minute of fuzzing under sanitizers, kernels for all GPUs, all tests, real engines
	$(if $(shell command -v $(CXX)),$(PY) -m tests.native.check fuzz --seconds 30,@echo "no C++ compiler: nothing to fuzz")
	$(PY) -m tests.native.kernels
	$(PYTEST) -m 'not engine'
	$(PYTEST) --numprocesses 3 -m 'engine and not thorough'

test-all: test ## and the tests of engines' further ways, which don't fit into half an hour
	$(PYTEST) --numprocesses 3 -m thorough
	TEST_VLLM=vllm==0.31.0 TEST_SGLANG=sglang==0.5.22 $(PYTEST) --numprocesses 3 $(wildcard $(EARLIER:%=tests/engines/*/test_%.py))
	TEST_VLLM=vllm==0.28.0 $(PYTEST) $(wildcard $(EARLIER:%=tests/engines/vllm/test_%.py))

test-fast: check ## make check and the tests that start no engine
	$(PYTEST) -m 'not engine'

matrix: setup ## run the cells of matrix/ that these sources haven't run (CELLS="vllm*->*sglang": only those), builds what they need
	$(PY) -m matrix run $(if $(CELLS),'$(CELLS)')

soak: engines site ## SOAK_MINUTES (15) of load on three servers and one store, with kills and damage
	$(PY) -m tests.soak --minutes $(SOAK_MINUTES)

engines: setup ## build the environments of vLLM and SGLang in the user's cache folder
	@$(PY) -m engines build

engines-clean: setup ## remove those environments, for all clones
	@$(PY) -m engines clean

site: setup ## install this clone into build/site, which engines get as PYTHONPATH
	@$(PY) -m engines site

demo: setup ## the main job, with real engines (ENGINES=hf for fewer)
	@$(if $(OTHER_ENGINES),$(PY) -m engines build $(OTHER_ENGINES) && $(PY) -m engines site)
	@$(VENV)/bin/kvlingua demo --engines $(ENGINES)

clean: ## remove what was built in this clone, .venv included
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .make.lock
