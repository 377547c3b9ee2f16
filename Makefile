# `make demo`: set everything up, run the default workflow, print the result.  `make shipped`: the same on a model that people ship.
# `make test`: set everything up, test what matters most.  `make test-all`: all tests.  `make check`: format, lint, types, imports.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what it imports, once for hundreds of processes; pip would compile everything, which takes longer
# than the rest of an installation.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(PIP) install --quiet --no-compile
SNAKEMAKE := $(BIN)/python -m snakemake --cores all
# Two processes share the tests, a file at a time, since tests of a file share what they set up.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo shipped test test-all check environment cluster bench report snakemake-report screenshots tables why dist clean

SUMMARY := PYTHONPATH=. $(BIN)/python workflow/scripts/print_summary.py --tables results/tables --report results/report.html --configuration

demo: $(VENV)/core.stamp
	$(SNAKEMAKE)
	@$(SUMMARY) config.yaml

# A model that people ship, one compression and its repair; config/shipped.yaml has the whole of it.
SHIPPED := config/shipped.yaml config/shipped_quick.yaml
shipped: $(VENV)/core.stamp
	$(SNAKEMAKE) --configfile $(SHIPPED)
	@$(SUMMARY) $(SHIPPED)

# The report, and whatever it shows that has not run yet; a plain run makes it as well. Of what has run: `make tables`.
report: $(VENV)/core.stamp
	$(SNAKEMAKE) results/report.html

# Snakemake's own report: the same captions, and the command of every job.
snakemake-report: $(VENV)/core.stamp
	$(SNAKEMAKE) --quiet all --report results/snakemake-report.html

# The README's pictures, from a finished run.
screenshots: $(VENV)/development.stamp
	$(BIN)/python docs/screenshots.py

# results/tables/*.csv of what is there, at any time, and the summary as Markdown, as it stands in the README.
tables: $(VENV)/core.stamp
	@PYTHONPATH=. $(BIN)/python workflow/scripts/print_tables.py --results results --grid .snakemake/aird.grid.json

# Why each job would run, in words; runs nothing.
why: $(VENV)/core.stamp
	@PYTHONPATH=workflow/plugins $(SNAKEMAKE) --dry-run --logger why

# Every unit test, one whole run of a tiny model with a real vLLM server, and what reruns after the main kinds of change.
test: $(VENV)/development.stamp
	$(PYTEST)

# After those, the rest: kills, Slurm, storage, checkpoints of every format, a browser, every kind of change.
test-all: test
	$(PYTEST) -m thorough

check: $(VENV)/development.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m snakefmt --check --compact-diff Snakefile rules workflow/Snakefile
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python workflow/lint.py

environment: $(VENV)/core.stamp

# What profiles/kubernetes and profiles/object-storage need on top.
cluster: $(VENV)/core.stamp
	$(INSTALL) -r envs/core.lock.txt -r envs/cluster.lock.txt

# Time and memory, measured on this machine: benchmarks/results.md.
bench: $(VENV)/core.stamp
	$(BIN)/python -m benchmarks

$(VENV)/core.stamp: envs/core.lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -r envs/core.lock.txt
	@touch $@

$(VENV)/development.stamp: $(VENV)/core.stamp envs/cluster.lock.txt envs/development.lock.txt
	$(INSTALL) --no-deps -r envs/cluster.lock.txt -r envs/development.lock.txt
	@touch $@

# The package as a wheel and a source distribution, in dist/. A commit gives the same wheel everywhere.
dist: $(VENV)/development.stamp
	rm -rf build dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct || date +%s) $(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('dist')" > /dev/null
	@ls dist

clean:
	rm -rf results/[!R]* .snakemake
