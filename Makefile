# make demo: install, then the whole path on a small generated corpus.
# make test: install, then lint, types and tests.
# make bench: install, then every benchmark, and its figures into docs/performance.md: about half an hour.
# make test-faults: install, then kills, power cuts, full disks and hostile files by the hundred: about ten minutes.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-faults bench lint install clean

demo: install
	$(BIN)/mfhca demo

# Two at a time, a file to a process: most tests wait, or keep one core busy.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-faults: install
	$(BIN)/python -m pytest -m faults

# One after the other: two at a time would measure each other.
BENCHMARKS := limits reading metadata train extract end_to_end memory
bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --json build/bench/$$name.json; done
	$(BIN)/python benchmarks/record.py build/bench docs/performance.md

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mfhca_cache cli

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mfhca-cache needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
