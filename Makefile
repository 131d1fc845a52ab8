# make bench    install, then pretrain, probe and tabulate on the embedded digits, in a store of its own
# make test     install what tests need, then run them
# make engines  install detectron2 and mmsegmentation too; nothing but their own tests needs them
PYTHON ?= python3
VENV ?= .venv
# Which faiss: cpu, or gpu on a machine with an NVIDIA GPU.
FAISS ?= cpu
# setup.cfg's ranges decide the versions, except where pip is set up with a folder of wheels (find-links): such a folder
# may offer a torch without the torchvision that belongs to it, so there the pair in constraints.txt is taken.
# CONSTRAINTS= lifts it, CONSTRAINTS=FILE sets it anywhere.
CONSTRAINTS ?= $(if $(PIP_FIND_LINKS)$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null),constraints.txt)
PIP = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet $(addprefix -c ,$(CONSTRAINTS))
RUN = $(VENV)/bin/python
BENCH = runs/bench

.PHONY: install install-dev engines bench test test-engines lint types records reference ablations benchmarks clean

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev
engines: $(VENV)/installed-engines

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 6 GB where torch comes with CUDA, a minute or two"
	$(PIP) -e '.[$(FAISS)]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[$(FAISS),dev]'
	@touch $@

# As listed and hashed in transfer/engines/requirements, without looking for dependencies: those would bring a second
# OpenCV. detectron2 is taken from its source distribution, without the C++ sources that are missing there.
LISTS = transfer/engines/requirements
HASHED = --require-hashes --no-deps --no-build-isolation
SDIST = $(VENV)/pb1-detectron2
$(VENV)/installed-engines: $(wildcard $(LISTS)/*.txt) transfer/engines/sdist.py $(VENV)/installed
	@echo "installing detectron2 and mmsegmentation into $(VENV): about 400 MB, a minute"
	$(PIP) $(HASHED) -r $(LISTS)/setuptools.txt
	$(PIP) $(HASHED) -r $(LISTS)/engines.txt
	$(RUN) -c 'import cv2; cv2.ximgproc' 2>/dev/null || $(PIP) $(HASHED) -r $(LISTS)/opencv.txt
	@rm -rf $(SDIST) && mkdir $(SDIST)
	$(RUN) -m pip download --disable-pip-version-check --quiet $(HASHED) --no-binary :all: -d $(SDIST) -r $(LISTS)/detectron2.txt
	tar -xzf $(SDIST)/*.tar.gz --strip-components 1 -C $(SDIST)
	$(RUN) -m transfer.engines.sdist $(SDIST)
	$(PIP) --no-deps --no-build-isolation $(SDIST)
	@rm -rf $(SDIST)
	@touch $@

# The main job, from nothing to tables. --force: it always runs. Its records and tables stay out of the committed ones.
bench: install
	@rm -rf $(BENCH) && mkdir -p $(BENCH)
	$(RUN) -m results --missing --tier digits --seeds 0 --store $(BENCH)/records --runs $(BENCH) > $(BENCH)/jobs.sh
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh -ex $(BENCH)/jobs.sh
	$(RUN) -m results.tables digits_linear digits_knn digits_clustering --seeds 0 \
		--store $(BENCH)/records --out $(BENCH)/tables --print
	@echo "records in $(BENCH)/records, tables in $(BENCH)/tables (md, csv, tex)"

test: install-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

test-engines: install-dev engines
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile tests/engines tests/test_transfer_scores.py tests/test_proposals.py \
		tests/test_voc_combinations.py tests/test_voc_detection.py

lint: install-dev
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

types: install-dev
	$(RUN) -m mypy

# Run what the committed tables of the digits tier lack (seeds 0, 1, 2), then rebuild all tables.
records: install
	@mkdir -p runs
	$(RUN) -m results --missing --tier digits > runs/records.sh
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh -ex runs/records.sh
	$(RUN) -m results.tables

# Train the two small checkpoints in git again, from their presets.
reference: install
	$(RUN) -m pretrain.deepcluster --force --out zoo/reference/deepcluster-alexnet32-digits-s0.safetensors
	$(RUN) -m pretrain.mmdc --force --out zoo/reference/mmdc-small_vgg-digits-s0.safetensors

# Run what the ablation tables lack, then rebuild all tables: an hour on two cores.
ablations: install
	$(RUN) -m pretrain.ablate all --jobs 2
	$(RUN) -m results.tables

# Leave the machine to it: half an hour on two cores, 5 GB of memory.
benchmarks: install
	@mkdir -p benchmarks/results
	$(RUN) -m benchmarks.epoch > benchmarks/results/epoch.md
	$(RUN) -m benchmarks.epoch --method mmdc > benchmarks/results/epoch_mmdc.md
	$(RUN) -m benchmarks.whitening > benchmarks/results/whitening.md
	$(RUN) -m benchmarks.reading > benchmarks/results/reading.md
	$(RUN) -m benchmarks.pic > benchmarks/results/pic.md
	$(RUN) -m benchmarks.memory > benchmarks/results/memory.md
	$(RUN) -m benchmarks.memory --methods deepcluster --clustering gmm --images 10000 40000 > benchmarks/results/memory_gmm.md
	$(RUN) -m benchmarks.memory --methods deepcluster --clustering pic --images 10000 40000 > benchmarks/results/memory_pic.md
	$(RUN) -m benchmarks.scale > benchmarks/results/scale.md
	$(RUN) -m benchmarks.linear_layers > benchmarks/results/linear_layers.md
	$(RUN) -m benchmarks.linear_layers --backbone alexnet > benchmarks/results/linear_layers_alexnet.md
	$(RUN) -m benchmarks.linear_layers --jpegs 400 --epochs 10 > benchmarks/results/linear_layers_jpegs.md
	$(RUN) -m benchmarks.linear_layers --jpegs 400 --epochs 2 --backbone alexnet-sobel > benchmarks/results/linear_layers_jpegs_alexnet.md

clean:
	rm -rf cache runs/bench .pytest_cache .hypothesis .mypy_cache .ruff_cache
