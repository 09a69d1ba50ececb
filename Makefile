# make demo        what the demo needs goes into .venv, then it renders data, trains two models and compares them
# make test        everything the tests need goes into .venv, then the tests run, but for the slow ones
# make test-slow   the tests that kill, stop and distribute whole runs
# make test-extras what .venv cannot run: tests with TensorFlow, with jax2onnx, and on Python 3.12 with the newest JAX
# make lint        ruff and pyright
# make docs        the documentation as a site, in site/; a link that leads nowhere is an error
# make lock        writes the versions that a fresh install takes today into requirements/
#
# PYTHON=python3.12 chooses the interpreter, PYTEST_ARGS="tests/commands/test_cli.py -x" what pytest runs, DEMO_ARGS="--workdir=elsewhere" where
# the demo goes. The tests run on the CPU unless JAX_PLATFORMS says otherwise.

recent = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(1))
PYTHON ?= $(or $(foreach name,python3 python3.12 python3.11 python3.13 python3.14,$(call recent,$(name))),none)
PYTHON := $(firstword $(PYTHON))
ifeq ($(call recent,$(PYTHON)),)
$(error Python 3.11 or newer is needed, but PYTHON is $(PYTHON): say `make PYTHON=/path/to/python3 ...`)
endif

# Python 3.11 ends at older jax and flax releases, so there are two lists of versions; a Python newer than both takes the newest.
SERIES := $(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")')
LOCK := requirements/$(SERIES).lock
# A list without torch (large outside the CPU builds) leaves out the tests that compare with PyTorch.
EXTRA ?= $(if $(shell grep '^torch==' $(LOCK)),dev,test)
BIN := .venv/bin
RUNNABLE := .venv/runnable-$(SERIES)
# Versions that `make lock` does not raise to the newest.
HELD := torch==2.13.0
INSTALLED := .venv/installed-$(SERIES)
DOCUMENTING := .venv/documenting-$(SERIES)
# Python compiles what it imports; pip would compile all there is, which takes it longer than anything else.
PIP_INSTALL = python -m pip install -qq --disable-pip-version-check --no-compile

COMPILED := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# A step on a CPU takes its memory anew, which huge pages make a quarter faster (docs/performance.md).
HUGE_PAGES := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# One thread per worker and library: the workers share the cores already.
TEST_ENV := OMP_NUM_THREADS=1 $(COMPILED)

PYTEST_OF = JAX_PLATFORMS=$${JAX_PLATFORMS-cpu} $(TEST_ENV) $(1)/bin/python -m pytest -n 2
PYTEST := $(call PYTEST_OF,.venv)

# TensorFlow and jax2onnx, in an environment that sees .venv and holds only what is not there.
EXTRAS := .cache/extras
EXTRAS_LOCK := requirements/extras/$(SERIES).lock
EXTRAS_TESTS := $(addprefix tests/,export/test_export.py tfds_builder/test_pascal_context_tfds.py)
# The newest JAX, on a Python that pyenv hides unless it is asked for. These tests alone run what users run: programs
# that XLA optimizes, which take long to compile (tests/conftest.py).
PYTHON312 ?= env PYENV_VERSION=3.12 python3.12
NEWEST := .cache/newest
NEWEST_LOCK := requirements/py312.lock
NEWEST_TESTS := $(addprefix tests/,models/test_golden_model.py distributed/test_sharding.py \
  train/test_step.py train/test_checkpoints.py)

.PHONY: demo test test-slow test-extras test-packages test-newest lint docs lock

demo: $(RUNNABLE)
	$(HUGE_PAGES) $(COMPILED) $(BIN)/python -m mtlora_jax.demo $(DEMO_ARGS)

# In the order of tests/conftest.py, so that no long file is left to one worker at the end.
test: $(INSTALLED)
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m 'not slow' $(PYTEST_ARGS)

test-slow: $(INSTALLED)
	$(PYTEST) --dist loadgroup -m slow $(PYTEST_ARGS)

# Side by side, since each of the two waits at times: for downloads, or for its longest test.
test-extras: $(INSTALLED)
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-packages test-newest

ifneq ($(wildcard $(EXTRAS_LOCK)),)
test-packages: $(EXTRAS)/installed
	$(call PYTEST_OF,$(EXTRAS)) --dist loadfile -k 'onnx or tfds' $(EXTRAS_TESTS) $(PYTEST_ARGS)
else
test-packages:
	@echo "Left out: the tests with TensorFlow and jax2onnx, for which there is no $(EXTRAS_LOCK)"
endif

# The newest versions come without PyTorch, which opens the golden checkpoints: .venv converts them.
ifneq ($(and $(filter py311,$(SERIES)),$(shell $(PYTHON312) --version 2>/dev/null)),)
test-newest: $(NEWEST)/installed $(INSTALLED)
	rm -rf .cache/golden
	for name in mtlora mtlora_plus swin_multitask; do \
	  $(BIN)/python -m mtlora_jax.convert tests/golden/$$name/checkpoint.pth .cache/golden/$$name || exit 1; done
	XLA_FLAGS=--xla_backend_optimization_level=3 GOLDEN_MODELS=.cache/golden $(call PYTEST_OF,$(NEWEST)) --dist loadfile -m 'not slow' $(NEWEST_TESTS) $(PYTEST_ARGS)
else
test-newest:
	@echo "Left out: the newest JAX beside .venv, which has it already, or there is no Python 3.12 ($(PYTHON312))"
endif

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

docs: $(DOCUMENTING)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -W --keep-going -E -d .cache/doctrees -c docs . site
	@echo "Written: site/index.html"

$(RUNNABLE): pyproject.toml setup.py $(LOCK)
	@echo "Installing into .venv (some minutes the first time)"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/$(PIP_INSTALL) --constraint $(LOCK) setuptools
	$(BIN)/$(PIP_INSTALL) --constraint $(LOCK) --no-build-isolation --editable '.[plots]'
	@touch $@

$(INSTALLED): $(RUNNABLE)
	@echo "Installing what the tests need"
	$(BIN)/$(PIP_INSTALL) --constraint $(LOCK) --no-build-isolation --editable '.[$(EXTRA)]'
	@touch $@

$(DOCUMENTING): $(RUNNABLE)
	@echo "Installing what the documentation needs"
	$(BIN)/$(PIP_INSTALL) --constraint $(LOCK) --no-build-isolation --editable '.[docs]'
	@touch $@

# Without asking what they require: all of it is in the lists, and jax2onnx asks for an older orbax-checkpoint
# (docs/export.md). A package that cannot be imported must fail here, for its tests would only be skipped.
$(EXTRAS)/installed: $(INSTALLED) $(EXTRAS_LOCK)
	$(PYTHON) -m venv --clear $(EXTRAS)
	below=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])') && \
	  echo "import site; site.addsitedir('$$below')" > $$(echo $(EXTRAS)/lib/python3*/site-packages)/below.pth
	$(EXTRAS)/bin/$(PIP_INSTALL) --no-deps --requirement $(EXTRAS_LOCK)
	$(EXTRAS)/bin/python -c 'import tensorflow, dill, jax2onnx, onnx, onnxruntime'
	@touch $@

$(NEWEST)/installed: pyproject.toml setup.py $(NEWEST_LOCK)
	$(PYTHON312) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/$(PIP_INSTALL) --constraint $(NEWEST_LOCK) setuptools
	$(NEWEST)/bin/$(PIP_INSTALL) --constraint $(NEWEST_LOCK) --no-build-isolation --editable . pytest pytest-xdist
	@touch $@

# What torch brings along for one vendor's devices, and local build names, would tie the list to one machine.
lock:
	$(PYTHON) -m venv --clear .cache/lock
	echo '$(HELD)' > .cache/lock/held.txt
	.cache/lock/bin/$(PIP_INSTALL) --upgrade setuptools
	.cache/lock/bin/$(PIP_INSTALL) --constraint .cache/lock/held.txt --no-build-isolation --editable '.[$(EXTRA),docs]'
	.cache/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed -E '/^(nvidia|cuda|triton)/d; s/\+.*//' > $(LOCK)
