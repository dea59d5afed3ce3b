# Two commands work on a fresh clone: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PEERS  := .venv-peers

.PHONY: demo test test-ray check fix parity bench bench-loading bench-peers bench-extract goldens clean help

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.ready  ## features of a real photo, one backbone of each family; then of a folder
	$(BIN)/trunkline features examples/cat.jpg --backbone resnet50 --out demo/resnet50.safetensors
	$(BIN)/trunkline features examples/cat.jpg --backbone dla34 --out demo/dla34.safetensors
	$(BIN)/trunkline features examples/cat.jpg --backbone regnet-y-040 --out demo/regnet-y-040.safetensors
	$(BIN)/trunkline extract examples demo/features.parquet --backbone resnet18 --runtime onnxruntime
	$(BIN)/trunkline extract verify demo/features.parquet

test: $(VENV)/.ready  ## the whole test suite, two workers
	$(BIN)/python -m pytest -n 2 -q

test-ray: $(VENV)/.ready  ## what takes long on a Ray cluster: resuming, stopping, errors of actors
	$(BIN)/python -m pytest -q -m cluster tests/extraction/test_on_ray.py

check: $(VENV)/.ready  ## format, lint, types, generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/model_table.py

fix: $(VENV)/.ready  ## format, mend what the linter can, write generated pages
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python tools/model_table.py --update

# torchvision and timm do not import beside the pinned CPU build of torch, so peers have their own.
$(PEERS)/.ready: tools/peers.txt pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r tools/peers.txt -e '.[all]'
	touch $@

parity: $(PEERS)/.ready  ## live comparison with timm, torchvision and transformers (about 6 GB)
	$(PEERS)/bin/python -m pytest -q -m parity tests/parity

goldens: $(PEERS)/.ready  ## write tests/goldens anew from the peers
	$(PEERS)/bin/python tools/goldens.py --update

bench: $(PEERS)/.ready  ## speed against timm, interleaved in one process
	$(PEERS)/bin/python benchmarks/eager.py

bench-loading: $(PEERS)/.ready  ## time and memory of loading a file, against timm and torchvision
	$(PEERS)/bin/python benchmarks/loading.py

bench-peers: $(PEERS)/.ready  ## deployed speed against timm and hand-made engines: docs/benchmarks.md
	$(PEERS)/bin/python benchmarks/deploy.py --write docs/benchmarks.md
	$(PEERS)/bin/python benchmarks/startup.py --write docs/benchmarks.md

bench-extract: $(PEERS)/.ready  ## images per second of extract, against timm with a DataLoader
	$(PEERS)/bin/python benchmarks/extract.py --write docs/extract-benchmarks.md

clean:  ## remove both environments and what the demo wrote
	rm -rf $(VENV) $(PEERS) demo
