# Multitask BERT. `make` lists what there is to do. Each target sets up what it needs, in .venv and models/.

PYTHON ?= python3
VENV ?= .venv
# `make train VENV=` uses the interpreter at hand and installs only what it lacks
RUN = $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
OPPONENTS = $(if $(VENV),$(VENV)/opponents,models/opponents)
READY = $(if $(VENV),$(VENV)/ready,models/ready)
OUT ?= runs/sample
DATA ?= data/sample
FLAGS ?=
PRESET ?= sample
TABLES = runs/tables/$(PRESET)

help:  ## this list
	@awk -F':.*## ' '/^[a-z0-9 _-]+:.*## / {printf "%-24s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY)  ## fine-tune MiniLM on data/sample: 3 minutes on two cores (DATA=DIR OUT=DIR FLAGS="...")
	$(RUN) multitask.py --option finetune --data $(DATA) --out $(OUT) --resume $(if $(filter data/sample,$(DATA)),--epochs 4 --batch_size 16) $(FLAGS)

eval: $(READY)  ## score the trained model again and write its predictions (OUT=DIR)
	$(RUN) multitask.py --eval_only --out $(OUT)

predict: $(READY)  ## type sentences, see what the trained model says (OUT=DIR)
	$(RUN) predict.py --run $(OUT)

table1 table2 table3: $(READY)  ## reproduce a table, run by run, resumable (PRESET=sample|minilm|paper FLAGS="...")
	$(RUN) reproduce.py --table $(@:table%=%) --preset $(PRESET) $(FLAGS)

figures: $(READY)  ## draw the figures from the runs of table 2 into results/ (PRESET=...)
	$(RUN) visualize.py smart --plain $(TABLES)/simcse-pals-[0-9]* --weak $(TABLES)/simcse-pals-smart-weak-* --strong $(TABLES)/simcse-pals-smart-strong-* --out results/smart-$(PRESET).png
	$(RUN) visualize.py embeddings --runs $(TABLES)/finetune-11711 $(TABLES)/pals-11711 $(TABLES)/simcse-pals-11711 $(TABLES)/smart-weak-11711 $(TABLES)/simcse-finetune-11711 --out results/embeddings-$(PRESET).png
	$(RUN) visualize.py curves $(TABLES)/finetune-* --out results/curves-$(PRESET).png

everyday: $(READY)  ## ask the trained model about sixty everyday sentences and pairs (OUT=DIR)
	$(RUN) data/everyday.py --run $(OUT)

test: $(READY)  ## the test suite, under 5 minutes on two cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile

soak: $(READY)  ## kill a MiniLM run at 20 random instants; it must end as one that was never killed (30 minutes)
	$(RUN) tests/soak.py

compare: $(READY) $(OPPONENTS)  ## the encoder and its files against transformers and safetensors, live
	$(RUN) tests/compare.py

bench: $(READY) $(OPPONENTS)  ## speed and memory against transformers (DATA=DIR FLAGS="...")
	$(RUN) -m bench.speed --data $(DATA) $(FLAGS)

kernels: $(READY)  ## compile every Triton kernel for A100 and H100, no GPU needed: registers, spills, occupancy
	$(RUN) -m kernels.compile

data: $(READY)  ## fetch the CS224N files into data/cs224n (needs a network), for DATA=data/cs224n
	$(RUN) data/fetch.py

lint: $(READY)  ## ruff: style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:  ## remove the runs; the downloads stay
	rm -rf runs

$(READY): requirements.txt
	$(PYTHON) support/environment.py $(VENV)
	$(RUN) -m support.downloads
	touch $@

$(OPPONENTS): $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check transformers safetensors sentence-transformers
	touch $@

.PHONY: help train eval predict everyday table1 table2 table3 figures test soak compare bench kernels data lint clean
.DEFAULT_GOAL := help
