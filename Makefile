PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: install quickstart test kill fuzz lint bench table1 docs requirements

# A virtual environment with everything that the other targets need.
install: $(VENV)/.installed

$(VENV)/.installed: requirements-dev.txt requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

# Trains on generated photographs, scores held-out ones and says where the pictures lie; then outlines
# a few more with the released weights.
quickstart: install
	$(PY) launch.py --config=configs/quickstart.py --workdir=runs/quickstart
	$(PY) launch.py --mode=evaluate --workdir=runs/quickstart
	$(PY) launch.py --mode=prepare --config=configs/quickstart.py --config.data.root=runs/generated \
	  --config.data.synthetic.num_train=4 --config.data.synthetic.num_val=4 \
	  --config.data.synthetic.num_test=16
	$(PY) launch.py --mode=predict --input=runs/generated/images --output=runs/outlined

# Two processes: most tests keep one core busy. A file stays in one, which shares what it compiled.
test: install
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Kills a hundred runs of the reduced network at random instants, and compares how they end.
kill: install
	PYTHONPATH=.:tests $(PY) -W ignore tests/slow/kill_runs.py --kills=100 --network=reduced --precision=float32

# Ten times the hostile and broken inputs that the tests try, and every hostile command line.
fuzz: install
	FUZZ_INPUTS=3000 $(PY) -m pytest tests/test_fuzz.py

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache

# Forward pass and training step against the machine's own rates and plain convolutions.
bench: install
	$(PY) launch.py --mode=benchmark

# Every network under one recipe on DATA, a folder with images/, masks/ and splits.csv: hours to days.
# OPTIONS are those of the script, as "--networks=unet,medlitenet --seeds=3".
table1: install
	$(PY) examples/table1.py $(or $(DATA),$(error give DATA=FOLDER)) runs/table1 $(OPTIONS)

# The pages of docs/ as a site in build/site; a warning is an error. The site's tools have an
# environment of their own, for they need neither JAX nor the package. Material for MkDocs is kept up
# until May 2027; the variable leaves out its notice of that.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "open build/site/index.html"

.venv-docs/.installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Pins anew what pyproject.toml asks for; the tests need the optional formats too.
requirements: install
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --no-header --no-annotate pyproject.toml --output-file requirements.txt
	(echo "-r requirements.txt"; $(PY) -m uv pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --no-header --no-annotate --constraint requirements.txt \
	  --extra dev --extra heic --extra dicom pyproject.toml | grep -vxFf requirements.txt) > requirements-dev.tmp
	mv requirements-dev.tmp requirements-dev.txt
	(echo "# The site of docs/ alone; needs nothing of requirements.txt."; $(PY) -c \
	  'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  | $(PY) -m uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --no-header --no-annotate --constraint requirements-dev.txt -) > requirements-docs.tmp
	mv requirements-docs.tmp requirements-docs.txt
	sed -i "s/^jax\[cuda12\]==.*/jax[cuda12]==$$(sed -n 's/^jax==//p' requirements.txt)/" \
	  requirements-cuda12.txt
