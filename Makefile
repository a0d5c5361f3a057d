PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench trust study audit lint format clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

# Made anew only when the requirements or the pins change. torch first, so that pip never weighs another version of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --constraint constraints.txt torch torchvision
	$(BIN)/pip install --constraint constraints.txt --editable ".[all,dev]"
	touch $@

demo: .venv/installed ## train on real images for minutes, print the table, write runs/demo/report.html
	$(BIN)/python recipes/demo.py

test: .venv/installed ## run the whole suite
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4

test-slow: .venv/installed ## run what takes long: kills, load, Ray, a real browser (Chromium must be there)
	$(BIN)/pip install --constraint constraints.txt --editable ".[all,dev,slow]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --numprocesses 2 --dist loadfile

# One after the other: two at a time would slow each other.
bench: .venv/installed ## measure speed and memory beside peers, half an hour on an idle machine: benchmarks/results
	$(BIN)/pip install --constraint constraints.txt --editable ".[all,dev,bench]"
	for name in encode training memory growth limit bits; do $(BIN)/python benchmarks/$$name.py || exit 1; done

trust: .venv/installed ## count what tests/trust tries, with five minutes of load each: benchmarks/trust.json
	$(BIN)/pip install --constraint constraints.txt --editable ".[all,dev,slow]"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trust.py

study: .venv/installed ## ask what is not answered yet of recipes/study, two minutes a run: studies/README.md
	$(BIN)/python recipes/study.py recipes/study/*.yaml

audit: .venv/installed ## look for known vulnerabilities in the pins
	$(BIN)/python tests/trust/audit.py

lint: .venv/installed ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what builds and runs leave behind
	rm -rf .venv build dist unime.egg-info runs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
