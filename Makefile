# `make repro` and `make test` do everything from nothing; the rest are for those who change the code.
PYTHON ?= python3
JOBS ?= 1
KILLS ?= 100
BIN := .venv/bin
# Threads that wait must not spin: tests run beside each other.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

repro: .venv/installed  ## install, then run the pipeline: the report is report.html
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "done: open report.html"

test: .venv/installed  ## install, then run the test suite
	$(PYTEST)

check: .venv/installed  ## lint, formatting and types, then the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(PYTEST)

ablations frontier comparison final recovery controls: .venv/installed  ## run a sweep of hsae/sweeps, JOBS experiments at a time, and collect it
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m hsae.sweep $@ --jobs $(JOBS)

search: .venv/installed  ## search for the settings of all kinds on known hierarchies, JOBS processes at a time
	$(BIN)/python -m hsae.search --jobs $(JOBS)

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: hsae needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

bench: .venv/installed .peers/installed  ## time training beside SAELens, dictionary_learning and sparsify, and all else
	.peers/bin/python -m benchmarks.training benchmarks/training.json plots/benchmark.png
	$(BIN)/python -m benchmarks.levels benchmarks/levels.json
	$(BIN)/python -m benchmarks.information benchmarks/information.json
	$(BIN)/python -m benchmarks.study benchmarks/study.json
	$(BIN)/python -m benchmarks.explorer benchmarks/explorer.json
	$(BIN)/python -m benchmarks.checkpoints benchmarks/checkpoints.json
	$(BIN)/python -m benchmarks.determinism benchmarks/determinism.json
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m benchmarks.pipeline benchmarks/pipeline.json plots/pipeline.png

test-interop: .peers/installed  ## test against SAELens, dictionary_learning, sparsify and SAEBench themselves
	.peers/bin/python -m pytest tests/test_interchange.py tests/test_saebench.py tests/test_peers.py

torture: .venv/installed  ## kill trainings KILLS times at random, and see whether each ends as if it had been let alone
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m tests.torture $(KILLS) benchmarks/torture.json

.peers/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet torch==2.13.0
	.peers/bin/python -m pip install --quiet --requirement requirements.lock
	.peers/bin/python -m pip install --quiet --constraint requirements.lock $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"])')
	.peers/bin/python -m pip install --quiet --no-deps --editable .
	-.peers/bin/python -m pip uninstall --quiet --yes torchvision
	@# Its pins exclude ours; its core evaluation runs with ours all the same.
	.peers/bin/python -m pip install --quiet --no-deps sae-bench==0.6.0
	@touch $@

lock:  ## write requirements.lock anew from pyproject.toml (torch first: later packages must not pull another build)
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet torch==2.13.0
	.lock/bin/python -m pip install --quiet $$($(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; o = p["optional-dependencies"]; print(*p["dependencies"], *o["s3"], *o["dev"])')
	.lock/bin/python -m pip freeze | sed 's/^torch==.*/torch==2.13.0/' > requirements.lock
	rm -rf .lock
	$(MAKE) versions

versions:  ## write versions/ anew from requirements.lock: what can change a number is a dep of stages
	mkdir -p versions
	grep -E '^(networkx|numpy|scikit-learn|scipy|torch)==' requirements.lock > versions/numerics.lock
	grep -E '^(gguf|tokenizers|transformers)==' requirements.lock > versions/text.lock

readme: .venv/installed  ## make the results table of README.md equal to metrics/
	$(BIN)/python -m hsae.readme

.PHONY: repro test check ablations frontier comparison final recovery controls search bench test-interop torture lock versions readme
