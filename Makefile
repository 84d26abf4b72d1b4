# `make demo` and `make test` do all their own set-up, in .venv. Variables, given as `make NAME=value`:
#   PYTHON  interpreter that .venv is made from, 3.11 or newer; to change it, `make clean` first
#   DEVICE  cpu or cuda: which fbgemm is installed
#   TORCH   requirement for torch. Plain `torch==2.13.0` from a public registry is a CUDA build of several GB; with
#           PIP_EXTRA_INDEX_URL set to PyTorch's own CPU index, TORCH=torch==2.13.0+cpu is a tenth of that.
# pip reads its usual environment variables and configuration.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEVICE ?= cpu
TORCH ?= torch==2.13.0
VENV ?= .venv

BIN := $(abspath $(VENV))/bin
LOG := $(VENV)/install.log
INSTALLED := $(VENV)/installed-$(DEVICE)

SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# $(call stage,what is done,command): one line; on failure the end of the log and its path.
stage = @echo "$(1)"; { $(2); } >>$(LOG) 2>&1 </dev/null || { tail -n 5 $(LOG); echo "failed: $(1); see $(LOG)"; exit 1; } >&2

.DELETE_ON_ERROR:
.PHONY: help venv test test-gpu test-nodes test-services test-faults demo docs lint types lock clean

help:
	@echo "make demo   train on MovieLens-100K in two processes and show how good the model is"
	@echo "make test   run the tests"
	@echo "make test-gpu DEVICE=cuda   check and measure the head on a GPU; says so where there is none"
	@echo "make test-nodes   as root: jobs over two network namespaces, on a Slurm of their own, and with ranks that stop"
	@echo "make test-services   data and checkpoints on an object store, runs on an MLflow server, both started here"
	@echo "make docs   the documentation as a site, links checked"
	@echo "make test-faults   half an hour: kills at any moment, damaged checkpoints, full disks; goes on where it was cut off"
	@echo "make lint types lock clean venv"

venv: $(INSTALLED)

$(INSTALLED): requirements/$(DEVICE).txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Python 3.11 or newer is needed, found '$(PYTHON)'; name one: make PYTHON=python3.11" >&2; exit 1; }
	@# Two builds of fbgemm share a folder: another device means another environment.
	@for other in $(VENV)/installed-*; do [ ! -e $$other ] || [ $$other = $@ ] || rm -rf $(VENV); done
	@mkdir -p $(VENV) && : >$(LOG)
	$(call stage,creating $(VENV),[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV))
	$(call stage,installing $(TORCH),$(BIN)/python -m pip install '$(TORCH)')
	$(call stage,installing requirements/$(DEVICE).txt,$(BIN)/python -m pip install --no-deps -r requirements/$(DEVICE).txt)
	$(call stage,installing rankmixer,$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .)
	@touch $@

# TorchX starts python by name; the rest of the recipes name their programs in full.
test test-gpu test-nodes test-services test-faults demo: export PATH := $(BIN):$(PATH)

# One process a core, a test file in one of them; ranks are processes too, so each computes in one thread.
test: export OMP_NUM_THREADS := 1
test: $(INSTALLED)
	$(BIN)/python -m pytest -q --numprocesses logical --dist loadfile

test-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu

# Installs nothing in the system: where Slurm is missing, its tests are skipped and name Debian's packages.
test-nodes: $(INSTALLED)
	$(BIN)/python -m pytest -q -rs -m "nodes or long"

# Installs nothing in the system and changes nothing in .venv: what MLflow and s3fs need goes into a folder of its own.
# Where Ceph is missing, its tests are skipped and name Debian's packages.
test-services: export OMP_NUM_THREADS := 1
test-services: export PYTHONPATH := $(abspath $(VENV))/services
test-services: $(VENV)/services/installed
	$(BIN)/python -m pytest -q -rs -m services tests

$(VENV)/services/installed: requirements/services.txt $(INSTALLED)
	@rm -rf $(@D)
	$(call stage,installing requirements/services.txt,$(BIN)/python -m pip install --no-deps --target $(@D) -r requirements/services.txt)
	@touch $@

# Mounts small disks, as root; without it those cases are skipped. What was tried is kept in .cache/faults.
test-faults: $(INSTALLED)
	$(BIN)/python -m benchmarks.faults

data/ml-100k: | $(INSTALLED)
	$(BIN)/rankmixer data ml-100k --out $@

demo: $(INSTALLED) data/ml-100k
	rm -rf runs/ml-100k
	$(BIN)/torchx --log_level WARNING run -s local_cwd rankmixer.train -j 1x2 --config configs/ml-100k.yaml
	$(BIN)/rankmixer report runs/ml-100k

# The variable: mkdocs-material tells of its successor at every build.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site: $(CURDIR)/site/index.html"

lint: $(INSTALLED)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/lint-imports --no-logo

types: $(INSTALLED)
	$(BIN)/mypy

# common.in is resolved beside torch; then torch and its CUDA libraries (installed first) and pip (brings itself) are
# taken out, and torchrec and fbgemm put in: torchrec's own metadata would bring an fbgemm that does not load.
lock: $(INSTALLED)
	@echo '$(TORCH)' >$(VENV)/torch.txt
	$(BIN)/pip-compile --quiet --strip-extras --allow-unsafe --no-header --no-emit-options --annotation-style=line \
	    --constraint=$(VENV)/torch.txt --output-file=$(VENV)/lock.txt requirements/common.in
	@for device in cpu cuda; do \
	  { echo "# Made by \`make lock\` from common.in and $$device.in; installed after torch, with --no-deps."; \
	    cat $(VENV)/lock.txt requirements/$$device.in | grep -E '^[a-z]' | \
	      grep -vE '^(torch|pip|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' | LC_ALL=C sort; \
	  } >$(VENV)/$$device.txt && mv $(VENV)/$$device.txt requirements/$$device.txt; done

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
