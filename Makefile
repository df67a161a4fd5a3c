# Multitask BERT. `make` lists what there is to do. Each target but `gpu` sets up what it needs, in .venv and models/.

$(if $(wildcard support/environment.py),,\
$(error this is not the project's folder; type `make -C $(dir $(lastword $(MAKEFILE_LIST)))`))

PYTHON = python3
VENV = .venv
# `make train VENV=` uses the interpreter at hand and installs only what it lacks
RUN = '$(if $(VENV),$(VENV)/bin/python,$(PYTHON))'
OPPONENTS = $(if $(VENV),$(VENV)/opponents,models/opponents)
READY = $(if $(VENV),$(VENV)/ready,models/ready)
OUT = runs/sample
DATA = data/sample
SAMPLE = $(shell [ '$(DATA)' -ef data/sample ] && echo yes)
FLAGS =
TOY =
BERT = $(or $(wildcard models/float16),all-MiniLM-L6-v2)
GPU = runs/gpu
# what `make gpu` does, in this order
PARTS = kernel-tests graph-tests kernels step training
part-kernel-tests = -m pytest -vv tests/test_kernels_gpu.py tests/test_kernels.py
part-graph-tests = -m pytest -vv tests/test_cuda_graphs.py tests/test_precision.py
part-kernels = -m bench.gpu --kernels $(TOY)
part-step = -m bench.gpu --step $(TOY)
part-training = multitask.py --option finetune --bert '$(BERT)' --data '$(DATA)' --out '$(GPU)/run' --resume $(FLAGS)
TRITON = @$(RUN) -c "import triton" 2>/dev/null || { echo "error: Triton is needed, which exists for Linux only" >&2; exit 2; }
PRESET = sample
EVIDENCE = results/runs
WEAK = $(wildcard $(EVIDENCE)/smart-weak-8-*)
STRONG = $(wildcard $(EVIDENCE)/smart-strong-8-*)
# five models of one kind for the maps: seeds of one row, and some of them once more, as far as they go
ALIKE = $(wordlist 1,5,$(wildcard $(EVIDENCE)/means-*) $(wildcard $(EVIDENCE)/again-means-*))

# one sentence for a variable that is misused
include support/variables.mk

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9 _-]+:.*## / {printf "%-24s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY)  ## fine-tune MiniLM on data/sample: 2 to 4 minutes on two cores (DATA=DIR OUT=DIR FLAGS="...")
	$(RUN) multitask.py --option finetune --use_means --data '$(DATA)' --out '$(OUT)' --resume $(if $(SAMPLE),--epochs 3 --batch_size 16) $(FLAGS)

eval: $(READY)  ## score the trained model again and write its predictions (OUT=DIR DATA=DIR FLAGS="...")
	$(RUN) multitask.py --eval_only $(if $(filter DATA,$(GIVEN)),--data '$(DATA)') --out '$(OUT)' $(FLAGS)

predict: $(READY)  ## type sentences, see what the trained model says (OUT=DIR)
	$(RUN) predict.py --run '$(OUT)'

table1 table2 table3: $(READY)  ## reproduce a table, run by run, resumable (PRESET=sample|minilm|paper FLAGS="...")
	$(RUN) reproduce.py --table $(@:table%=%) --preset '$(PRESET)' $(FLAGS)

figures: $(READY)  ## draw the figures into results/, from the evidence of runs in EVIDENCE=results/runs
	$(if $(and $(WEAK),$(STRONG)),$(RUN) visualize.py smart --weak $(WEAK) --strong $(STRONG) --out results/smart.png,@echo "no evidence of SMART over 8 epochs yet: results/smart.png stays as it is")
	$(RUN) visualize.py embeddings --runs $(ALIKE) --method pca --out results/pca.png
	$(RUN) visualize.py embeddings --runs $(ALIKE) --method tsne --out results/tsne.png
	$(RUN) visualize.py curves $(wildcard $(EVIDENCE)/plain-* $(EVIDENCE)/means-*) --out results/curves.png

everyday: $(READY)  ## ask the trained model about 700 everyday sentences and pairs (OUT=DIR)
	$(RUN) data/everyday.py --run '$(OUT)'

test: $(READY)  ## the test suite, on the CPU, 2 to 4 minutes on two cores
	OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= $(RUN) -m pytest -n auto --dist loadfile

fuzz: $(READY)  ## feed 100,000 damaged files and command lines to everything that reads them (under 10 minutes)
	OMP_NUM_THREADS=1 $(RUN) tests/fuzz.py $(FLAGS)

soak: $(READY)  ## kill a MiniLM run at 20 random instants; it must end as one that was never killed (30 minutes)
	$(RUN) tests/soak.py

compare: $(READY) $(OPPONENTS)  ## the encoder and its files against transformers and safetensors, live
	$(RUN) tests/compare.py

bench: $(READY) $(OPPONENTS)  ## speed and memory against transformers (DATA=DIR FLAGS="...")
	$(RUN) -m bench.speed --data '$(DATA)' $(FLAGS)

kernels: $(READY)  ## compile every Triton kernel for T4 to Blackwell, no GPU needed: registers, spills, occupancy
	$(TRITON)
	$(RUN) -m kernels.compile $(FLAGS)

launches: $(READY)  ## count the launches of a training step and model its time on an H100 and a T4, no GPU needed
	$(TRITON)
	$(RUN) -m bench.launches $(FLAGS)

gpu: $(PARTS:%=gpu-%)  ## on a GPU with torch (VENV=), no network: tests, kernels, step, training, into runs/gpu (BERT=DIR DATA=DIR)
	@tail -qn 1 $(PARTS:%='$(GPU)/%.txt')
	@! grep -Lx '.*: exit code 0' $(PARTS:%='$(GPU)/%.txt') | grep -q .

# 10 minutes for each part (then Ctrl-C, and what was printed stays); one that fails does not stop the next
$(PARTS:%=gpu-%): gpu-%:
	@mkdir -p '$(GPU)'
	{ PYTHONUNBUFFERED=1 timeout -s INT -k 15 580 $(RUN) $(part-$*); echo "$*: exit code $$?"; } 2>&1 | tee '$(GPU)/$*.txt'

gpu-weights: models/float16  ## MiniLM in float16, 46 MB, into models/float16: to carry to a GPU without a network

models/float16: | $(READY)
	$(RUN) -m bench.gpu_weights $@

data: $(READY)  ## fetch the CS224N files into data/cs224n (needs a network; FLAGS=--quora_14k, see data/fetch.py)
	$(RUN) data/fetch.py $(FLAGS)

lint: $(READY)  ## ruff: style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:  ## remove all of runs/, trained models too; the downloads stay
	rm -rf runs

$(READY): requirements.txt
	'$(PYTHON)' support/environment.py '$(VENV)'
	$(RUN) -m support.downloads
	mkdir -p '$(@D)'
	touch '$@'

$(OPPONENTS): $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check transformers safetensors sentence-transformers
	touch '$@'

.PHONY: help train eval predict everyday table1 table2 table3 figures test fuzz soak compare bench kernels launches gpu $(PARTS:%=gpu-%) gpu-weights data lint clean
.NOTPARALLEL:  # parts of `make gpu` would share the GPU
.DEFAULT_GOAL := help
