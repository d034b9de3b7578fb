# A newcomer wants `make demo`, a contributor `make quick`; every target installs into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: demo quick test check bench install clean label-studio

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

demo: install
	$(BIN)/misfire demo

# What only tests need. moto's server stands in for S3, and has a step of its own: one resolve with the rest
# does not end. TensorRT-RTX parses and builds exported graphs without a GPU; it is for Linux on x86 alone.
# CVAT's client: names and parameters of what is called. MLflow logs into a folder.
$(VENV)/.services: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'moto[server]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tensorrt-check,cvat,mlflow]'
	touch $@

# For the tests of `misfire labels`: a real Label Studio in a venv of its own (1 GB; its libraries are others),
# and its database, whose first migration takes as long as the install. Tests skip if it is not here.
LABEL_STUDIO ?= .label-studio

label-studio: $(LABEL_STUDIO)/data/label_studio.sqlite3

$(LABEL_STUDIO)/data/label_studio.sqlite3: fleet/proving_ground/label_studio.txt
	test -x $(LABEL_STUDIO)/bin/python || $(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	rm -f $@
	MISFIRE_LABEL_STUDIO=$(abspath $(LABEL_STUDIO)) PYTHONPATH=fleet $(PYTHON) -m proving_ground.label_studio

# Two workers, each with whole files: fixtures that are dear (a trained network, a database) serve a file.
WORKERS ?= 2
MARKED ?=

test: install $(VENV)/.services
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(if $(MARKED),-m "$(MARKED)")

# What a contributor runs before each commit: all checks, and the tests that are not marked slow. Under three
# minutes on two cores once mypy has its cache.
quick: check $(VENV)/.services
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The short form of every benchmark, and a table of what passed; `python -m benchmarks` lists them.
bench: install
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf $(VENV) $(LABEL_STUDIO) dist build
