# Every target is one command that also works alone; where there is no make, type that.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= python3

COMPETITIONS := $(patsubst competitions/%/__init__.py,%,$(wildcard competitions/*/__init__.py))
TARGETS := $(subst _,-,$(COMPETITIONS))

FUZZ ?= 700  # inputs a parser

SUBMITS := $(TARGETS:%=submit-%)
DOWNLOADS := $(TARGETS:%=download-%)

.PHONY: help contenders setup test fuzz check certify audit bench bench-cpu format list doctor leaderboard clean $(TARGETS) \
	$(SUBMITS) $(DOWNLOADS)

help:  ## this list
	@echo "make setup          .venv with everything; all other targets do it when needed"
	@echo "make test           the tests;  make check  format, lint, types, tests"
	@echo "make certify        kill short runs again and again: do they end with the same bytes?"
	@echo "make fuzz           hostile inputs for every parser, and the branches that they take"
	@echo "make bench-cpu      other trainers side by side; make bench  the same on a GPU"
	@echo "make audit          known vulnerabilities of the pinned packages"
	@echo "make NAME           train, score and write the submission of: $(TARGETS)"
	@echo "make download-NAME  Kaggle's files;  make submit-NAME  the best run, once, and its score"
	@echo "make list doctor leaderboard"

setup: $(READY)

# uv is taken where it is installed, else fetched once into a folder of its own; bytecode is compiled
# here, so that no first command waits for it
$(READY): pyproject.toml constraints.txt
	@UV=$$(command -v uv || echo $(VENV)-uv/bin/uv); \
	if [ ! -x "$$UV" ]; then $(PYTHON) -m venv $(VENV)-uv && $(VENV)-uv/bin/pip install -q uv; fi; \
	"$$UV" venv -q --allow-existing --python "$(PYTHON)" $(VENV) && \
	"$$UV" pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' && touch $@

$(TARGETS): setup
	$(BIN)/kagglekit train $(subst -,_,$@)

# ARGS=--yes sends without asking, as a script has to
$(SUBMITS): setup
	$(BIN)/kagglekit submit $(subst -,_,$(@:submit-%=%)) --wait $(ARGS)

$(DOWNLOADS): setup
	$(BIN)/kagglekit download $(subst -,_,$(@:download-%=%)) $(ARGS)

# a file's tests stay together: what they share is made once
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

test: setup
	$(PYTEST)

# first the fuzz alone, then what the parsers' own tests add
FUZZED := .coverage-fuzz
PARSERS := config tables files images pictures submission leaderboard folds run network scoring \
	answering blend estimator problem pipeline checkpoint backbones

fuzz: setup
	KAGGLEKIT_FUZZ=$(FUZZ) COVERAGE_FILE=$(FUZZED) $(BIN)/coverage run --branch --source=kagglekit \
		-m pytest -s tests/test_hostile.py
	COVERAGE_FILE=$(FUZZED) $(BIN)/coverage json -q -o $(FUZZED).json
	$(BIN)/python tests/parsers.py $(FUZZED).json
	COVERAGE_FILE=$(FUZZED) $(BIN)/coverage run --append --branch --source=kagglekit \
		-m pytest $(PARSERS:%=tests/test_%.py)
	COVERAGE_FILE=$(FUZZED) $(BIN)/coverage json -q -o $(FUZZED).json
	@echo "the fuzz and the parsers' own tests together:"
	$(BIN)/python tests/parsers.py $(FUZZED).json

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

KILLS ?= 20  # of each recipe

certify: setup
	$(BIN)/kagglekit certify fit_1d neural --kills $(KILLS)
	$(BIN)/kagglekit certify fit_1d blend --kills $(KILLS)
	$(BIN)/kagglekit certify fit_5d gp --kills $(KILLS)
	$(BIN)/kagglekit certify mics_mnist cnn_small --kills $(KILLS)
	$(BIN)/kagglekit certify mics_mnist cnn_small data=streamed workers=2 --kills $(KILLS)

# the other trainers, in the same environment
contenders: setup
	@UV=$$(command -v uv || echo $(VENV)-uv/bin/uv); \
	"$$UV" pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,bench]'

bench-cpu: contenders
	$(BIN)/python -m benchmarks.compare cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.streaming
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/checkpoints.py

bench: contenders
	$(BIN)/python -m benchmarks.compare gpu
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.streaming --only training --model resnet50

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# strict: a pin that could not be looked up is no pin without vulnerabilities
audit: setup  ## known vulnerabilities of the pins
	@UV=$$(command -v uv || echo $(VENV)-uv/bin/uv); \
	"$$UV" tool run pip-audit --strict --disable-pip --no-deps -r constraints.txt

list doctor leaderboard: setup
	$(BIN)/kagglekit $@

clean:  ## caches of tools; runs, data and submissions stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist .coverage*
