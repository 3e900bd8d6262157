# Both commands make the environment first, if it is not there, and start at once the next time.
PYTHON ?= python3
BIN := .venv/bin
# Two notebooks run at a time, so each kernel gets one thread: two threads each would fight for two cores.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TQDM_DISABLE=1
WORKERS ?= 2
# In a container one often is root, which JupyterLab refuses unless told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test test-browser test-wheel test-faults test-seeds audit site slides student notebooks progress lint bench clean

lab: .venv/ready
	$(BIN)/python -m jupyterlab --ip=127.0.0.1 $(AS_ROOT) notebooks/00_start_here.ipynb

test: .venv/ready
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

# Every page alone in an empty folder, with nothing but the wheel, twice: with the tested versions and with Colab's.
# About a quarter of an hour; where there is no Python 3.13, and none to be had, Colab's versions run on this one.
COLAB_PYTHON ?= 3.13
test-wheel: WHEEL = build/wheel/*.whl nbclient ipykernel
test-wheel: .venv/ready
	rm -rf build/wheel
	$(BIN)/uv build --quiet --wheel --out-dir build/wheel
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/wheel-env
	$(BIN)/uv pip install --quiet --python build/wheel-env/bin/python --constraint constraints.txt $(WHEEL)
	$(BIN)/uv venv --quiet --clear --python $(COLAB_PYTHON) build/colab-env || \
	  $(BIN)/uv venv --quiet --clear --python $(BIN)/python build/colab-env
	$(BIN)/uv pip install --quiet --python build/colab-env/bin/python $(WHEEL) --requirement tests/colab.txt
	$(TEST_ENV) TLHELPERS_WHEEL_PYTHON=$(CURDIR)/build/wheel-env/bin/python \
	  TLHELPERS_COLAB_PYTHON=$(CURDIR)/build/colab-env/bin/python $(BIN)/python -m pytest tests/test_wheel.py -m wheel -n $(WORKERS)

# Faults put in on purpose, long runs and damaged files; keeps the table in docs/faults.md.
test-faults: .venv/ready
	$(TEST_ENV) HYPOTHESIS_PROFILE=large $(BIN)/python -m pytest tests -n $(WORKERS) --dist loadscope \
	  -m "faults or fault_table" --fault-table docs/faults.md

# Every page with five seeds, a quarter of an hour: which claims hold by luck?  Keeps the table in docs/margins.md.
test-seeds: .venv/ready
	$(TEST_ENV) HF_HUB_OFFLINE=1 $(BIN)/python -m tools.seeds --jobs $(WORKERS) --table docs/margins.md

# Opens every page and the static site in Chromium; screenshots in build/browser/.
test-browser: .venv/ready
	command -v chromium chromium-browser google-chrome || { apt-get update && apt-get install --yes chromium; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[browser,site]"
	$(TEST_ENV) $(BIN)/python -m pytest tests/test_site.py tests/test_browser.py -m "browser or site" -n $(WORKERS) --dist worksteal

# Known vulnerabilities of the tested versions; asks a service on the network.
audit: .venv/ready
	$(BIN)/uv tool run pip-audit --requirement constraints.txt --no-deps --disable-pip

# The pages with their saved outputs as a site that needs no network: open build/site/index.html.
site: .venv/site
	$(BIN)/python -m sphinx -E -W --keep-going -q -c docs -D html_extra_path=index.html . build/site

# Reveal slides of every page, which need no network: open build/slides/*.html; S shows the speaker's notes.
slides: .venv/site
	$(BIN)/python -m tools.kit slides

# Copies for a class: no outputs, no solutions.
student: .venv/ready
	$(BIN)/python -m tools.kit student

.venv/site: .venv/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable ".[site]"
	touch $@

notebooks: .venv/ready
	$(BIN)/python -m tools.pages
	$(BIN)/python -m tools.kit guide

# What you have solved, also as a table for an instructor.
progress: .venv/ready
	cd notebooks && ../$(BIN)/python -m tlhelpers progress
	cd notebooks && ../$(BIN)/python -m tlhelpers progress --csv ../progress.csv

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

# About ten minutes on one core; the alternatives that it compares with stay in an environment of their own.
bench: .venv-bench/ready
	$(TEST_ENV) .venv-bench/bin/python -m benchmarks

clean:
	rm -rf .venv .venv-bench build *.egg-info

# uv installs the same set as pip in a fifth of the time.  Compiled once here, torch and its first optimizer
# take 5 s of CPU less in every kernel where Python is told not to write bytecode (containers often are).
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[lab,test]"
	touch $@

.venv-bench/ready: .venv/ready benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv-bench
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-bench/bin/python --constraint constraints.txt --editable . -r benchmarks/requirements.txt
	touch $@
