# Both commands make the environment first, if it is not there, and start at once the next time.
PYTHON ?= python3
BIN := .venv/bin
# Two notebooks run at a time, so each kernel gets one thread: two threads each would fight for two cores.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TQDM_DISABLE=1
WORKERS ?= 2
# In a container one often is root, which JupyterLab refuses unless told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test notebooks progress lint bench clean

lab: .venv/ready
	$(BIN)/python -m jupyterlab --ip=127.0.0.1 $(AS_ROOT) notebooks/00_start_here.ipynb

test: .venv/ready
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

notebooks: .venv/ready
	$(BIN)/python -m tlhelpers.recipes.pages

# What you have solved, also as a table for an instructor.
progress: .venv/ready
	cd notebooks && ../$(BIN)/python -m tlhelpers progress
	cd notebooks && ../$(BIN)/python -m tlhelpers progress --csv ../progress.csv

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# About ten minutes on one core; the alternatives that it compares with stay in an environment of their own.
bench: .venv-bench/ready
	$(TEST_ENV) .venv-bench/bin/python -m benchmarks

clean:
	rm -rf .venv .venv-bench build *.egg-info

# uv installs the same set as pip in a fifth of the time.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[lab,test]"
	touch $@

.venv-bench/ready: .venv/ready benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-bench
	$(BIN)/uv pip install --quiet --python .venv-bench/bin/python --constraint constraints.txt --editable . -r benchmarks/requirements.txt
	touch $@
