# The newest Python that Bitseam is tested with. Each is run, as a name on the PATH may stand for nothing, and needs venv.
SUPPORTED := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all equality interop fuzz fuzz-files faults mutants check proto vectors tour clean

demo: $(VENV)/ready
	$(BIN)/bitseam demo

test: $(VENV)/ready interop/node_modules/ready
	$(BIN)/python -m pytest

test-all: $(VENV)/ready interop/node_modules/ready
	$(BIN)/python -m pytest -m ''

# Every language model and tower of the campaign, tiny, against transformers: docs/results/equality.json.
equality: $(VENV)/ready
	$(BIN)/python benchmarks/equality.py --out docs/results/equality.json

# A client in JavaScript, written from the protocol's pages alone, against a real server: docs/results/interop.json.
interop: $(VENV)/ready interop/node_modules/ready
	$(BIN)/python tests/interop/node_client.py docs/results/interop.json

# A million inputs, some minutes; what breaks the invariant is kept in tests/fuzz/found and run by the tests.
fuzz: $(VENV)/ready
	$(BIN)/python tests/fuzz/fuzz_campaign.py runs/faults/fuzz.json

# 200,000 images, rows, recipes and tokenizer folders, some ten minutes; likewise, in tests/fuzz/found/files.
fuzz-files: $(VENV)/ready
	$(BIN)/python tests/fuzz/fuzz_files.py runs/faults/fuzz_files.json

# Kills, broken links, hostile and many clients; some 15 minutes, after the million inputs of `make fuzz`.
faults: fuzz
	$(BIN)/python benchmarks/faults.py

# Whether tests notice small changes of what they test: docs/results/mutants.json. Hours; goes on where it was stopped.
# `make mutants ROOMS="quant wire"` runs some rooms. What no test noticed: runs/mutants/ROOM/survivors.txt.
mutants: $(VENV)/ready
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/mutants/campaign.py $(ROOMS)

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The generated module is committed, so that users need no compiler; a test compares it with the .proto.
proto: $(VENV)/ready
	$(BIN)/python -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src src/bitseam/wire/messages.proto

# Test vectors for other implementations, vectors/*.json; tests hold them against the code in both directions.
vectors: $(VENV)/ready
	$(BIN)/python tests/vectors/write_vectors.py

# docs/tour.ipynb is run and saved with its outputs, which a test holds against those of another run.
tour: $(VENV)/ready
	$(BIN)/python tests/api/tour.py

$(VENV)/ready: pyproject.toml constraints.txt
	$(if $(PYTHON),,$(error Bitseam needs Python 3.11, 3.12 or 3.13 with its venv module, and none is on the PATH. \
		Install one, or name it: make PYTHON=/path/to/python3))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the JavaScript client needs, as pinned.
interop/node_modules/ready: interop/package-lock.json | $(VENV)/ready
	cd interop && ../$(BIN)/npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info interop/node_modules
