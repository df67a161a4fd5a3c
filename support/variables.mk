# The variables of the Makefile: which target takes which, and a sentence for one that is misused.

# VARIABLE-IS-FOR: the targets that take it; where none of the command does, that is an error
PYTHON-IS-FOR = $(GOALS)
VENV-IS-FOR = $(GOALS)
OUT-IS-FOR = train eval predict everyday
# predict and everyday ask no data: they leave aside what was typed for `make train`
DATA-IS-FOR = train eval predict everyday bench gpu gpu-training
FLAGS-IS-FOR = train eval table1 table2 table3 fuzz bench kernels launches gpu gpu-training data
BERT-IS-FOR = gpu gpu-training
GPU-IS-FOR = gpu $(PARTS:%=gpu-%)
TOY-IS-FOR = gpu gpu-kernels gpu-step
PRESET-IS-FOR = table1 table2 table3
EVIDENCE-IS-FOR = figures

GOALS = $(or $(MAKECMDGOALS),help)
NAMES = PYTHON VENV OUT DATA BERT GPU PRESET EVIDENCE
TAKEN = $(strip $(foreach v,$(NAMES) FLAGS TOY,$(if $(filter $(GOALS),$($v-IS-FOR)),$v)))
GIVEN := $(strip $(foreach v,$(.VARIABLES),$(if $(filter command%,$(origin $v)),$v)))

# `make` would read `$x` before a program does
$(foreach v,$(GIVEN) $(NAMES) FLAGS TOY,$(if $(filter file,$(origin $v)),,\
$(if $(findstring $$,$(subst $$$$,,$(value $v))),\
$(error $v='$(value $v)' has a single $$ in it; write $$$$ for each that is meant, or leave it out))))

FROM-ENVIRONMENT := $(shell env | sed -n "s/=.*//p")

$(foreach v,$(filter-out $(TAKEN) SHELL,$(GIVEN)),\
$(if $(filter $v,$(NAMES) FLAGS TOY),$(error `make $(GOALS)` takes $(TAKEN), and $v was given; leave it out),\
$(warning $v is no variable of this Makefile: programs find it in their environment)))
$(foreach v,$(filter $(TAKEN),$(FROM-ENVIRONMENT)),$(if $(filter file,$(origin $v)),\
$(warning $v of the environment does not count; if it is meant, type `make $(GOALS) $v=...`)))

# each is one word, and VENV alone may be empty; ~ is meant as in the shell
$(foreach v,$(NAMES),$(eval override $v := $$(patsubst ~/%,$$(HOME)/%,$$($v))))
override DATA := $(patsubst ./%,%,$(or $(DATA:%/=%),$(DATA)))
$(foreach v,$(NAMES),$(if $(or $(word 2,$($v)),$(findstring ',$($v))),\
$(error $v="$($v)" has a space or a quote in it; give it a name without them, or unset it)))
$(foreach v,$(filter-out VENV,$(NAMES)),$(if $($v),,$(error $v= is empty; give it a value, or unset it)))
$(if $(filter figures,$(MAKECMDGOALS)),$(if $(ALIKE),,$(error EVIDENCE=$(EVIDENCE) holds no runs means-*; leave it out)))
$(if $(VENV),$(shell [ -e '$(VENV)/bin/python' ] || [ ! -e '$(VENV)/pyvenv.cfg' ] || rm -f '$(READY)'))
