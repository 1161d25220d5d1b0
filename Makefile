# Every target sets up what it needs: from a fresh clone only make and python3 (3.10 or newer) must be there.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

EXPERIMENT ?= demo
CONFIG ?= experiments/$(EXPERIMENT).yaml
SEED ?= 0
CKPT ?= newest
TRACKS ?= 2000
TEST_TRACKS ?= 512
N ?=
BENCH ?= all
PORT ?= 8000
ARGS ?=
# The order in which the parts of the embedded bundle need each other.
STAGES ?= clap vae tagger vocoder decoder audiomae clap_second teacher
BUNDLE_TRACKS ?= 6000
# What experiments/stages/base.yaml reads: a corpus beside the demo's, which `make train` may complete as it needs. It is not
# among the experiment's demo_corpora: `make train` would write it with TRACKS tracks.
BUNDLE_CORPUS := data/bundle-corpus
PACK = $(BIN)/musiccm pack --from data/bundle-work --to src/musiccm/bundles/tiny --corpus $(BUNDLE_CORPUS) \
  --trained-on experiments/stages/teacher.yaml $(ARGS)
# The embedded student: consistency first, then distribution matching; what a GPU does in minutes takes two cores a night.
STUDENT_TEST_TRACKS ?= 2048
STUDENT_START = $$(ls -td lightning_logs/demo_long/version_* | head -n 1)/checkpoints/last.ckpt
STUDENT_RUN = $$(ls -td lightning_logs/student_dmd2/version_* | head -n 1)
ON_CPU = --trainer.precision 32-true --trainer.max_steps 4000 --trainer.val_check_interval 8000 \
  --data.init_args.batch_size 16 --model.init_args.optimization.lr 5e-5 --model.init_args.matching.critic_lr 1e-4
FIRST_ON_GPU = --data.init_args.batch_size 256 --trainer.max_steps 4000 --trainer.precision bf16-mixed \
  --model.init_args.optimization.lr 5e-4
HAS_GPU = $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'

# The bundle of TANGO's kind borrows musiccm-tiny's autoencoder, vocoder, decoder and evaluators.
TANGO_CORPUS := data/events-corpus
TANGO_TRACKS ?= 8000
TANGO_STAGES ?= text sections teacher
PACK_TANGO = $(BIN)/musiccm pack --from data/bundle-tango --to src/musiccm/bundles/tiny-tango --name musiccm-tiny-tango --base ../tiny \
  --corpus $(TANGO_CORPUS) --stages experiments/tta/stages $(ARGS)
TANGO_RUN = $$(ls -td lightning_logs/student_tango/version_* | head -n 1)

# The bundle of MeLoDy's kind borrows musiccm-tiny's CLAP and evaluators, and is of the same music.
MELODY_CORPUS := data/melody-corpus
MELODY_STAGES ?= audio_vae semantic_tokens semantic_lm dual_path audio_decoder decoder
PACK_MELODY = $(BIN)/musiccm pack --from data/bundle-melody --to src/musiccm/bundles/tiny-melody --name musiccm-tiny-melody --base ../tiny \
  --corpus $(MELODY_CORPUS) --stages experiments/melody/stages $(ARGS)
MELODY_RUN = $$(ls -td lightning_logs/student_melody/version_* | head -n 1)

.PHONY: help setup app train eval bundle bundle-tango bundle-melody student student-tango student-melody smoke test test-all test-gpu test-wheel lint docs bench clean

help:  ## show this help
	@echo "usage: make TARGET [NAME=value ...]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "  EXPERIMENT=$(EXPERIMENT)  which experiments/NAME.yaml    SEED=$(SEED)       of the training"
	@echo "  CKPT=$(CKPT)      checkpoint to evaluate         TRACKS=$(TRACKS)  clips of the demo corpus"
	@echo "  N=                clips that 'make eval' scores  TEST_TRACKS=$(TEST_TRACKS)  of the demo corpus"
	@echo "  BENCH=$(BENCH)        which benchmark                ARGS=        passed on to 'musiccm fit' or pytest"

setup: $(READY)  ## make the virtual environment (the other targets do it by themselves)

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); 3.10 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments here; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) -m venv $(VENV) failed, see above" >&2; exit 1; }
	@echo "installing the dependencies into $(VENV) (about 5 GB, some minutes, once)"
	@$(PIP) install -e ".[dev]"
# Their declared dependencies cannot be built on Python 3 and are not needed; what is, stands in setup.cfg under `eval`.
	@$(PIP) install --no-deps "audioldm_eval==0.0.3" "ssr-eval==0.0.7"
	@touch $@

app: $(READY)  ## serve the page to make music on, with the embedded student and teacher: PORT=8000, ARGS="--host ..."
	$(BIN)/musiccm serve --model musiccm-tiny-student --model musiccm-tiny --port $(PORT) --folder out/served $(ARGS)

train: $(READY)  ## corpus (the demo's is written), latents, distillation and its table
	$(BIN)/musiccm prepare corpus --config $(CONFIG) --tracks $(TRACKS) --test-tracks $(TEST_TRACKS) --seed 0
	$(BIN)/musiccm prepare latents --config $(CONFIG) --split train --overwrite
	$(if $(filter melody/%,$(EXPERIMENT)),$(BIN)/musiccm prepare tokens --config $(CONFIG) --split train --overwrite)
	$(if $(filter objectives/cmt,$(EXPERIMENT)),$(BIN)/musiccm prepare trajectories --config $(CONFIG))
	$(BIN)/musiccm fit --config $(CONFIG) --seed_everything $(SEED) $(ARGS)
	$(BIN)/musiccm test --config $(CONFIG) --ckpt_path newest

eval: $(READY)  ## figures of the newest checkpoint, or CKPT=FILE, then tables 1 to 3 of the paper
	$(BIN)/musiccm test --config $(CONFIG) --ckpt_path $(CKPT) $(if $(N),--n $(N))
	$(BIN)/musiccm tables --config $(CONFIG)

bundle: $(READY)  ## train every part of the embedded bundle in order (hours; goes on where it stopped)
# The stages hold clips of train/ out, as they did for the shipped weights.
	$(BIN)/musiccm prepare demo --world music_paraphrased --out $(BUNDLE_CORPUS) --tracks $(BUNDLE_TRACKS) --test-tracks 1000 --validation-tracks 0 --seed 0
	@mkdir -p out/bundle
	@for stage in $(STAGES); do \
	  if [ -e out/bundle/$$stage.done ]; then echo "$$stage: done already"; continue; fi; \
	  echo "$$stage: see out/bundle/$$stage.log"; \
	  { case $$stage in teacher) $(BIN)/musiccm prepare latents --config experiments/stages/teacher.yaml --overwrite;; \
	    clap_second) $(BIN)/musiccm prepare demo --world music_paraphrased --out data/second-corpus --tracks 3000 --test-tracks 16 --validation-tracks 0 --seed 1;; esac && \
	    $(BIN)/musiccm fit --config experiments/stages/$$stage.yaml --ckpt_path auto; } >> out/bundle/$$stage.log 2>&1 \
	    || { tail -n 5 out/bundle/$$stage.log >&2; exit 1; }; \
	  touch out/bundle/$$stage.done; \
	done
	$(BIN)/musiccm pack words --to data/bundle-work --config experiments/stages/teacher.yaml
	$(PACK)
	@$(MAKE) student
	$(PACK) --results $(STUDENT_RUN)/results.json

bundle-tango: $(READY)  ## train and pack text encoder and teacher of the bundle that reads tokens (hours; goes on where it stopped)
	$(BIN)/musiccm prepare demo --world events --out $(TANGO_CORPUS) --tracks $(TANGO_TRACKS) --test-tracks 2048 --validation-tracks 256 --seed 0
	$(BIN)/musiccm prepare bundle --base musiccm-tiny --out data/bundle-tango
	@mkdir -p out/bundle-tango
	@for stage in $(TANGO_STAGES); do \
	  if [ -e out/bundle-tango/$$stage.done ]; then echo "$$stage: done already"; continue; fi; \
	  echo "$$stage: see out/bundle-tango/$$stage.log"; \
	  { case $$stage in teacher) $(BIN)/musiccm prepare latents --config experiments/tta/stages/teacher.yaml --overwrite;; esac && \
	    $(BIN)/musiccm fit --config experiments/tta/stages/$$stage.yaml --ckpt_path auto; } >> out/bundle-tango/$$stage.log 2>&1 \
	    || { tail -n 5 out/bundle-tango/$$stage.log >&2; exit 1; }; \
	  touch out/bundle-tango/$$stage.done; \
	done
	$(BIN)/musiccm pack words --to data/bundle-tango --config experiments/tta/stages/teacher.yaml
	$(PACK_TANGO)

bundle-melody: $(READY)  ## train and pack audio VAE, tokens, language model and renderer of MeLoDy's kind (hours; goes on where it stopped)
	$(BIN)/musiccm prepare demo --out $(MELODY_CORPUS) --tracks $(BUNDLE_TRACKS) --test-tracks 1000 --validation-tracks 0 --seed 0
	$(BIN)/musiccm prepare bundle --base musiccm-tiny --out data/bundle-melody --borrow clap
	@mkdir -p out/bundle-melody
	@for stage in $(MELODY_STAGES); do \
	  if [ -e out/bundle-melody/$$stage.done ]; then echo "$$stage: done already"; continue; fi; \
	  echo "$$stage: see out/bundle-melody/$$stage.log"; \
	  { case $$stage in \
	    semantic_lm) $(BIN)/musiccm prepare tokens --config experiments/melody/stages/semantic_lm.yaml --split train --overwrite;; \
	    dual_path) $(BIN)/musiccm prepare latents --config experiments/melody/stages/dual_path.yaml --split train --overwrite;; esac && \
	    $(BIN)/musiccm fit --config experiments/melody/stages/$$stage.yaml --ckpt_path auto; } >> out/bundle-melody/$$stage.log 2>&1 \
	    || { tail -n 5 out/bundle-melody/$$stage.log >&2; exit 1; }; \
	  touch out/bundle-melody/$$stage.done; \
	done
	$(PACK_MELODY)

student: $(READY)  ## distill, measure and pack the embedded student (the last part of `make bundle`; goes on where it stopped)
	$(BIN)/musiccm prepare corpus --config experiments/demo_long.yaml --tracks $(TRACKS) --test-tracks $(STUDENT_TEST_TRACKS) --seed 0
	$(BIN)/musiccm prepare latents --config experiments/demo_long.yaml --split train --overwrite
	$(BIN)/musiccm fit --config experiments/demo_long.yaml --ckpt_path auto $$($(HAS_GPU) && echo "$(FIRST_ON_GPU)")
	$(BIN)/musiccm fit --config experiments/student_dmd2.yaml --ckpt_path auto $$($(HAS_GPU) || echo "$(ON_CPU)") \
	  --model.init_args.distillation.start $(STUDENT_START) $(ARGS)
	$(BIN)/musiccm test --config experiments/student_dmd2.yaml --ckpt_path newest --n $(STUDENT_TEST_TRACKS)
	$(BIN)/musiccm export --checkpoint $(STUDENT_RUN)/checkpoints/last.ckpt --bundle musiccm-tiny --base ../tiny \
	  --dtype float16 --overwrite --out src/musiccm/bundles/tiny-student

student-tango: $(READY)  ## distill, measure and pack the student of musiccm-tiny-tango (after bundle-tango; goes on where it stopped)
	$(BIN)/musiccm prepare latents --config experiments/tta/student_tango.yaml --split train --overwrite
	$(BIN)/musiccm fit --config experiments/tta/student_tango.yaml --ckpt_path auto
	$(BIN)/musiccm test --config experiments/tta/student_tango.yaml --ckpt_path newest --n $(STUDENT_TEST_TRACKS)
	$(BIN)/musiccm export --checkpoint $(TANGO_RUN)/checkpoints/last.ckpt --bundle musiccm-tiny-tango --base ../tiny-tango \
	  --dtype float16 --overwrite --out src/musiccm/bundles/tiny-tango-student
	$(PACK_TANGO) --results $(TANGO_RUN)/results.json
	$(BIN)/musiccm pack features --to src/musiccm/bundles/tiny-tango --rows floor@0 teacher@50

student-melody: $(READY)  ## distill, measure and pack the student of musiccm-tiny-melody (after bundle-melody; goes on where it stopped)
	$(BIN)/musiccm prepare corpus --config experiments/melody/student_melody.yaml --tracks $(TRACKS) --test-tracks $(STUDENT_TEST_TRACKS) --seed 0
	$(BIN)/musiccm prepare latents --config experiments/melody/student_melody.yaml --split train --overwrite
	$(BIN)/musiccm prepare tokens --config experiments/melody/student_melody.yaml --split train --overwrite
	$(BIN)/musiccm fit --config experiments/melody/student_melody.yaml --ckpt_path auto
	$(BIN)/musiccm test --config experiments/melody/student_melody.yaml --ckpt_path newest --n $(STUDENT_TEST_TRACKS)
	$(BIN)/musiccm export --checkpoint $(MELODY_RUN)/checkpoints/last.ckpt --bundle musiccm-tiny-melody --base ../tiny-melody \
	  --dtype float16 --overwrite --out src/musiccm/bundles/tiny-melody-student
	$(PACK_MELODY) --results $(MELODY_RUN)/results.json
	$(BIN)/musiccm pack features --to src/musiccm/bundles/tiny-melody --rows floor@0 teacher@20

smoke: $(READY)  ## the whole of `make train`, tiny: does everything run?
	$(MAKE) train EXPERIMENT=smoke TRACKS=64 TEST_TRACKS=32

test: $(READY)  ## run the tests but for the long ones, file by file on up to four cores
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: $(READY)  ## run all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: $(READY)  ## run the tests of the GPU, which `make test` skips where there is none
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no GPU here (torch.cuda.is_available() is false): nothing was tested")'
	$(BIN)/python -m pytest -m gpu -rs $(ARGS)

test-wheel: $(READY)  ## install the wheel by pip into an environment of its own and run it (gigabytes, minutes)
	MUSICCM_TEST_PIP=1 $(BIN)/python -m pytest tests/test_wheel.py -m slow $(ARGS)

lint: $(READY)  ## ruff, types, docstrings
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation's site in site/, with the API, sounds and pictures
	@test -x $(BIN)/zensical || $(PIP) install -e ".[docs]"
	$(BIN)/python docs/build_site.py

bench: $(READY)  ## measure speed and memory against a baseline: BENCH=NAME for one of them
	$(BIN)/musiccm bench $(BENCH) $(ARGS)

clean:  ## remove caches and the virtual environment; runs and data stay
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
