# `make help` lists what there is. TORCH= chooses the build of torch, for instance
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
EXPERTS := efficientnet xfeat daisy simdepth
EPISODES ?= 88
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help install features demo compact report figures test test-long lab docs gallery record proof-data calibrated teacher simdepth tables proof bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##/  make \1\t/' | expand -t 18

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip

$(VENV)/core: pyproject.toml constraints.txt requirements-nodeps.txt | $(BIN)/python
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e '.[encoders]'
	$(BIN)/pip install -q --no-deps -r requirements-nodeps.txt
	@touch $@

$(VENV)/tests: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[encoders,backbones,import,deploy,hub,sim,loop,rerun,docs,test]'
	@touch $@

$(VENV)/sim: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[encoders,sim,loop]'
	@touch $@

install: $(VENV)/core  ## the project and its expert encoders, into .venv

features: $(VENV)/core  ## extract the sample's expert packs and teacher files, once
	$(BIN)/python tools/extract_teacher.py --workspace data/sample.toml
	$(BIN)/python tools/extract_features.py --workspace data/sample.toml --encoder $(EXPERTS)

demo: features  ## the main job: train and judge students on the sample, held out
	$(BIN)/python tools/judge.py

$(VENV)/compact: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[encoders,backbones,deploy,sim]'
	@touch $@

FRAMES := data/cache/compact_frames
SMALL := $(BIN)/python tools/train_compact.py --run runs/judge/weighted-seed0 --steps 200 --save_dir runs/compact
compact: $(VENV)/compact demo  ## distil a judged student into one small network, judge it and export it
	$(BIN)/python tools/record_sim.py --out $(FRAMES) --episodes 24 --first_seed 3000 --steps 8
	test -f runs/compact/own-frames/summary.json || $(SMALL)/own-frames
	test -f runs/compact/more-frames/summary.json || $(SMALL)/more-frames --more_rgb $(FRAMES)/rgb
	$(BIN)/python tools/judge_compact.py runs/compact/own-frames runs/compact/more-frames

report: features  ## one HTML page about the judged runs, for sharing: runs/report.html
	$(BIN)/python tools/report.py --notebook runs/report.ipynb

figures: report  ## put what notebooks, report and `make tables` made last into figures/, which README and pages show
	cp runs/figures/*.png runs/figures/*.json $(wildcard $(addprefix runs/loop$(N)/,*.png closed_loop.json films.json)) runs/report.ipynb figures/
	for judged in proof calibrated; do for kind in png json; do \
		test ! -f runs/$$judged/judgement.$$kind || cp runs/$$judged/judgement.$$kind figures/$$judged.$$kind; done; done

lab: features  ## open the notebooks
	$(BIN)/jupyter lab --notebook-dir=.

$(VENV)/docs: $(VENV)/core
	$(BIN)/pip install -q -c constraints.txt -e '.[encoders,docs]'
	@touch $@

docs: $(VENV)/docs  ## the documentation, as pages that need no network: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

gallery: compact $(VENV)/docs  ## execute the notebooks, so that `make docs` shows their results
	$(BIN)/python docs/gallery.py

test: $(VENV)/tests features  ## the tests (a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not long"

test-long: $(VENV)/tests features  ## those of some minutes each: every widget driven in Chromium, the sample judged
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m long

bench: $(VENV)/core  ## benchmarks: ratios against their targets (a smaller run: BENCH="--episodes 10")
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/run.py $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_large_batch.py

record: $(VENV)/sim  ## record the sample's episodes anew, into data/cache/recorded
	$(BIN)/python tools/record_sim.py --out data/cache/recorded

proof-data: $(VENV)/sim  ## record and extract the episodes behind the tables (half an hour, 11 GB; a part of it: EPISODES=8)
	$(BIN)/python tools/record_sim.py --out data/cache/proof --episodes $(EPISODES) --first_seed 5000 --randomise mostly
	$(BIN)/python tools/extract_teacher.py --workspace data/proof.toml
	$(BIN)/python tools/extract_features.py --workspace data/proof.toml --encoder $(EXPERTS)

TASKS := drawer-open door-open assembly hammer peg-insert-side window-open button-press-topdown bin-picking pick-place push \
	faucet-open lever-pull shelf-place plate-slide handle-press coffee-button basketball box-close dial-turn stick-push
OTHER_SEEDS := $(BIN)/python tools/record_sim.py --tasks $(TASKS) --out data/cache/other_seeds --randomise mostly \
	--first_seed 1000 --episodes 40
teacher: $(VENV)/sim  ## record clouds of other seeds and train the teacher anew, into data/cache/teacher (20 minutes)
	$(OTHER_SEEDS)
	$(BIN)/python tools/train_teacher.py

simdepth: $(VENV)/sim  ## train the geometry expert anew on the same recordings, into data/cache/simdepth (35 minutes)
	$(OTHER_SEEDS)
	$(BIN)/python tools/train_simdepth.py

# how many steps, and where to: more episodes have folders of their own, as their students are others
STEPS ?= 1000
STUDENTS ?= --steps $(STEPS) --set pooling=attention student_tokens=128
N := $(if $(filter-out 88,$(EPISODES)),-$(EPISODES))
calibrated: proof-data
	$(BIN)/python tools/extract_rays.py --workspace data/calibrated.toml
	$(BIN)/python tools/judge.py --workspace data/calibrated.toml --out runs/calibrated$(N) $(STUDENTS) expert_drop=0

tables: calibrated  ## the tables of "What works": students judged and settings compared on `make proof-data` (3 hours)
	$(BIN)/python tools/ablate.py --workspace data/calibrated.toml --out runs/ablations$(N) --steps 800 --set pooling=attention expert_drop=0
	$(BIN)/python tools/judge.py --workspace data/proof.toml --out runs/proof$(N) --seeds 2 $(STUDENTS)

LOOP := $(BIN)/python tools/proof.py $(if $(QUICK),--quick,--workspace data/calibrated.toml --runs runs/calibrated$(N) \
	--out runs/loop$(N) $(STUDENTS) expert_drop=0) $(LOOP_FLAGS)
proof: $(if $(QUICK),features $(VENV)/sim,calibrated)  ## the closed loop: roll out policies on every representation (4 to 5 hours; EPISODES=264 STEPS=2500: the pages' first table; QUICK=1: 5 minutes)
	$(LOOP)

clean:  ## remove what was derived: caches, runs and the site
	rm -rf data/cache runs site
