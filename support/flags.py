"""The flags of the training commands."""

from argparse import BooleanOptionalAction
from pathlib import Path

import torch

import kernels
from kernels.cpu import libraries
from kernels.cpu.products import bfloat16_products, use_bfloat16_products
from support import distributed, run_folder
from support.console import Parser, UserError, afterwards
from support.downloads import MINILM, MODELS, are_at_hand
from support.flag_types import BATCH, EPOCHS, LAYERS, WIDTH, fold, fraction, place, positive, share
from support.places import check_folder, check_predictions, prediction_files

# ----- where and how to compute


def add_device(parser, default="auto"):
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default=default, help="where to compute")
    parser.add_argument(
        "--use_gpu", dest="device", action="store_const", const="cuda", help="the same as --device cuda"
    )


def choose_device(args):
    """The device to train on; under torchrun on a machine with GPUs, each process has one of its own."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available; compute on the CPU with --device cpu")
    if args.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    _, number = distributed.launched()
    if number >= torch.cuda.device_count():
        raise UserError(f"there is no GPU for process {number}; start {torch.cuda.device_count()} processes at most")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def add_kernels(parser):
    parser.add_argument("--bf16", action=BooleanOptionalAction, default=False,
        help="matrix products in bfloat16 on a CPU that has them (a GPU chooses for itself)")  # fmt: skip
    parser.add_argument("--kernels", choices=kernels.CHOICES, default="auto",
        help="plain: every operation as kernels/plain.py defines it; slower")  # fmt: skip


def choose_kernels(args, device):
    """Switches to the kernels that --kernels and --bf16 ask for, on a CPU to the libraries that measured faster.

    The first two last to the end of the command.

    Raises UserError where the processor lacks what is asked for.
    """
    if args.bf16 and args.kernels == "plain":
        raise UserError("--kernels plain leaves --bf16 without effect; leave it out, or add --no-bf16")
    kernels.use(args.kernels)
    afterwards.callback(kernels.use, "auto")
    if args.kernels == "auto" and device.type == "cpu":
        libraries.choose(MODELS / "products.json")
    if args.bf16 and device.type == "cpu":
        if not bfloat16_products():
            if getattr(args, "resume", False) and Path(args.out, "config.json").exists():
                raise UserError(f"{args.out} was started with --bf16, which this processor lacks; use another machine")
            raise UserError("this processor has no bfloat16 products; leave out --bf16, or add --no-bf16")
        use_bfloat16_products()
        afterwards.callback(use_bfloat16_products, False)


# ----- multitask.py


def multitask_parser(tasks, splits, samplings, presets):
    """The parser of `multitask.py`.

    Args: tasks and splits, `TASKS` and `SPLITS` of `tasks.py`; samplings, `SAMPLINGS` of `sampling.py`; presets,
    `PRESETS` of `smart.py`.
    """
    parser = Parser(prog="multitask.py", description="Fine-tune one BERT on all tasks.")
    add = parser.add_argument
    add("--option", choices=("finetune", "pretrain"), default="finetune", help="train all, or all but the encoder")
    add("--bert", default=MINILM, help="pretrained encoder: a folder or a name")
    add("--out", type=place, default=None, help="folder of the run (default: runs/OPTION)")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--eval_only", action="store_true", help="score the best model of the run in --out, write its predictions")
    add("--save_every", type=positive(int), default=1000, metavar="N", help="save every N steps, besides epoch ends")

    add("--pair_encoding", choices=("joint", "siamese"), default="joint", help="pairs in one sequence, or in two")
    add("--use_means", action="store_true", help="sst and sts also read means of hidden states; see model.py")
    add("--classifier_layers", type=positive(int, 0, LAYERS), default=2, help="feed-forward layers in a head")
    add("--classifier_size", type=positive(int, most=WIDTH), default=None, help="their width (default: H)")
    add("--hidden_dropout_prob", type=fraction, default=0.1,
        help="dropout in the encoder (but for its attention, which has its own) and the heads")  # fmt: skip

    add("--epochs", type=positive(int, 0, EPOCHS), default=3, help="passes over the training examples")
    add("--batch_size", type=positive(int, most=BATCH), default=32, help="examples in a batch")
    add("--lr", type=positive(float), default=1e-4, help="peak learning rate of the encoder")
    add("--head_lr", type=positive(float), default=1e-3, help="peak learning rate of the heads, which start untrained")
    add("--weight_decay", type=positive(float, 0), default=0.01, help="of AdamW; none for biases and LayerNorm")
    add("--warmup", type=fraction, default=0.1, help="fraction of the steps over which the learning rate rises")
    add("--clip", type=positive(float, 0), default=1.0, help="largest norm of the gradient, 0 for no limit")
    add("--sampling", choices=samplings, default="proportional", help="how often a step takes each task")
    add("--extra_sst", action="store_true", help="one more pass over SST at the end of each epoch")
    add("--seed", type=positive(int, 0), default=11711, help="of the order of examples, dropout and first weights")
    add("--init_seed", type=positive(int, 0), metavar="N",
        help="seed of the first weights of heads and PALs (default: --seed)")  # fmt: skip
    add_device(parser)
    add_kernels(parser)
    add("--cuda_graphs", nargs="?", const="on", default="auto", choices=("auto", "on", "off"),
        help="replay recorded steps (auto: on a GPU, where a step can be recorded)")  # fmt: skip

    add("--use_pals", action="store_true", help="projected attention layers for each task (pals.py)")
    add("--pal_size", type=positive(int, most=WIDTH), default=204, help="their width d_s")
    add("--pal_heads", type=positive(int, most=WIDTH), default=12, help="their attention heads")
    add("--pal_lr", type=positive(float), default=1e-4, help="their peak learning rate")
    add("--gradient_surgery", action="store_true", help="PCGrad: a batch of each task in every step (surgery.py)")
    add("--use_smart", action="store_true", help="smoothness-inducing regularization (smart.py)")
    add("--smart", choices=tuple(presets), default=None, help="its strength: sets --mu and --epsilon (default: weak)")
    add("--lambda_s", type=positive(float, 0), default=1.0, help="weight of the smoothness penalty")
    add("--mu", type=positive(float, 0), default=None, help="weight of the Bregman term (weak: 0.02, strong: 2)")
    add("--epsilon", type=positive(float), default=None, help="of the perturbation, in smart.py (1e-6; strong: 1e-5)")
    add("--sigma", type=positive(float, 0), default=1e-5, help="standard deviation of the first perturbation")
    add("--eta", type=positive(float, 0), default=1e-3, help="step size of the perturbation")
    add("--T_x", type=positive(int, 0, 1000), default=1, help="steps of the perturbation, 0 for noise alone")
    add("--S", type=positive(int), default=1, help="training steps between moves of the averaged weights")
    add("--beta", type=fraction, default=0.99, help="momentum of the averaged weights, 0 for the plain Bregman term")
    add("--smart_projection", choices=("unit", "ball"), default="unit", help="see the text of smart.py")
    add("--teacher", type=place, nargs="+", metavar="RUN",
        help="finished runs, whose ensemble this run learns from (distill.py)")  # fmt: skip
    add("--unlabelled", type=place, metavar="DIR",
        help="more training examples, which the teachers label (data/more.py)")  # fmt: skip
    add("--distill_lambda", type=share, default="annealed", metavar="NUMBER",
        help="weight of the labels, beside the teachers' outputs (default: annealed, from 0 to 1)")  # fmt: skip

    add("--data", type=place, default="data/sample", metavar="DIR", help="folder of the task files")
    add("--max_examples", type=positive(int), default=None, metavar="N", help="only N examples of each file, at random")
    add("--train_examples", type=positive(int), default=None, metavar="N",
        help="only N training examples of each task, drawn at random; dev and test stay whole")  # fmt: skip
    add("--fold", type=fold, default=None, metavar="K/N", help="leave out fold K of N: for a teacher (distill.py)")
    add("--skip_test", action="store_true", help="leave the test files alone: no predictions for them")
    for task in tasks.values():
        for split in splits:
            file = task.file.format(split=splits[split])
            add(f"--{task.name}_{split}", type=place, metavar="FILE", help=f"(default: DATA/{file})")
    for flag, usual in prediction_files(tasks).items():
        add(f"--{flag}", type=place, default=usual, metavar="FILE", help="where predictions go, relative to --out")
    return parser


def parser_for(argv, *tables):
    """`multitask_parser(*tables)`, with the defaults that depend on other flags of `argv`."""
    parser = multitask_parser(*tables)
    args = parser.parse_args(argv)
    parser.set_defaults(out=f"runs/{args.option}", **tables[-1][args.smart or "weak"])
    return parser


def parse_multitask(argv, *tables):
    """The flags of a run of `multitask.py`, checked. Args: tables, the arguments of `multitask_parser`."""
    args = run_folder.parse_flags(parser_for(argv, *tables), argv, are_at_hand)
    check_multitask(args, vars(multitask_parser(*tables).parse_args([])) | tables[-1]["weak"])
    check_predictions(args, tables[0], tables[1])
    if args.unlabelled and args.epochs and not args.eval_only:
        check_unlabelled(args, tables[0])
    return args


def check_unlabelled(args, tasks):
    """Raises UserError for --unlabelled without a file in it, or beside --fold."""
    if args.fold:
        raise UserError("--fold leaves out examples, and --unlabelled may hold parts of them; drop one of the two")
    names = [task.file.format(split="unlabelled") for task in tasks.values()]
    if not any(Path(args.unlabelled, name).exists() for name in names):
        raise UserError(f"--unlabelled {args.unlabelled} holds none of {', '.join(names)}; data/more.py writes them")


def check_multitask(args, usual):
    """Raises UserError for flags that make no sense together. Args: usual, all defaults by name."""
    goes_on = args.resume and Path(args.out, "config.json").exists()  # a soup is a run of 0 epochs
    if not (args.epochs or goes_on or args.eval_only):
        raise UserError("--epochs 0 trains nothing; give 1 or more")
    if args.classifier_size and not (args.classifier_layers or goes_on or args.eval_only):
        raise UserError("--classifier_size does nothing beside --classifier_layers 0; leave one of the two out")
    if args.gradient_surgery and args.option == "pretrain":
        raise UserError("with --option pretrain no shared parameters train; leave out --gradient_surgery")
    if args.gradient_surgery and args.sampling != "proportional":
        raise UserError(f"--gradient_surgery takes every task in every step; leave out --sampling {args.sampling}")
    small = not args.T_x or args.smart_projection == "ball"  # "unit" makes a size near 1 of any perturbation
    if args.use_smart and args.lambda_s and args.bf16 and small:
        sizes, named = [args.sigma], "--sigma"
        if args.T_x:
            sizes, named = [args.epsilon, args.sigma], "both --epsilon and --sigma"
        if min(sizes) < 1e-3:
            raise UserError(f"--bf16 rounds small perturbations away; give {named} 0.001 or more")
    if (refused := no_graphs(args)) and args.cuda_graphs == "on":
        raise UserError(f"--cuda_graphs cannot record a step {refused}; leave it out")
    args.cuda_graphs = args.cuda_graphs != "off" and not refused
    needs = dict.fromkeys(("pal_size", "pal_heads", "pal_lr"), "use_pals")
    needs |= dict.fromkeys(("smart", "lambda_s", "mu", "epsilon", "sigma", "eta", "T_x", "S", "beta"), "use_smart")
    needs |= {"smart_projection": "use_smart", "distill_lambda": "teacher", "unlabelled": "teacher"}
    for name, switch in needs.items():
        if getattr(args, name) != usual[name] and not getattr(args, switch):
            raise UserError(f"--{name} does nothing alone; add --{switch}")
    if args.option == "pretrain" and args.lr != usual["lr"]:
        raise UserError("--lr is the encoder's, and --option pretrain freezes it; use --head_lr")
    if args.use_smart and not args.lambda_s and not args.mu:
        raise UserError("--use_smart with --lambda_s 0 and --mu 0 does nothing; leave it out")
    if args.use_smart and args.mu and not args.beta and args.S == 1:
        raise UserError("--beta 0 with --S 1 keeps the Bregman term at 0; give --mu 0 instead, or raise --beta or --S")
    if args.use_smart and not (goes_on or args.eval_only):
        check_weights_of_smart(args, usual)


def check_weights_of_smart(args, usual):
    """Raises UserError for flags of what `args` leave out of SMART. Args: usual, all defaults by name."""
    if args.lambda_s and not args.sigma:  # without a first perturbation there is no way uphill
        raise UserError("--sigma 0 keeps the smoothness penalty at 0; give --lambda_s 0 instead, or raise --sigma")
    uphill = ("eta", "smart_projection")
    for weight, names in {"lambda_s": ("sigma", "T_x", *uphill), "mu": ("S", "beta"), "T_x": uphill}.items():
        if idle := [name for name in names if not getattr(args, weight) and getattr(args, name) != usual[name]]:
            raise UserError(f"--{idle[0]} does nothing beside --{weight} 0; leave one of the two out")


def no_graphs(args):
    """Why a training step cannot be recorded, or None where it can; `support/cuda_graphs.py` has the reasons."""
    on_gpu = args.device != "cpu" and torch.cuda.is_available()
    triton = on_gpu and kernels.triton_backend() and kernels.runs_triton(torch.device("cuda"))
    reasons = {
        "with --use_smart": args.use_smart,
        "with --gradient_surgery": args.gradient_surgery,
        f"with --pair_encoding {args.pair_encoding}": args.pair_encoding != "joint",
        "with --use_means": args.use_means,
        "with --teacher": args.teacher,
        "with --kernels plain": args.kernels == "plain",
        "with torchrun": distributed.launched()[0] > 1,
        "without a CUDA device": not on_gpu,
        "without Triton on a card from sm_75 on": not triton,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


# ----- simcse.py


def simcse_parser():
    """The parser of `simcse.py`."""
    parser = Parser(prog="simcse.py", description="Contrastive pretraining of a sentence encoder.")
    add = parser.add_argument
    add("--bert", default=MINILM, help="the encoder to start from: a folder or a name")
    add("--layers", type=positive(int, most=LAYERS), help="start from a random encoder of so many layers instead")
    add("--hidden", type=positive(int, most=WIDTH), default=None,
        help="and of this width, a multiple of 32 (--bert: tokenizer only)")  # fmt: skip
    add("--out", type=place, default="runs/simcse", help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--eval_only", action="store_true", help="assess the encoder of the run in --out again")
    add("--save_every", type=positive(int), default=1000, metavar="N", help="save every N steps, besides epoch ends")

    add("--corpus", type=place, metavar="FILE", help="one sentence a line (default: training sentences of all tasks)")
    add("--pairs", type=place, metavar="FILE", help="supervised: 'para', or a file of 2 or 3 tab-separated columns")
    add("--data", type=place, default="data/sample", metavar="DIR", help="folder of the task files")
    add("--normalize_length", type=positive(int), default=None, metavar="N",
        help="keep sentences of more than N characters only, cut to N")  # fmt: skip
    add("--max_sentences", type=positive(int), default=None, metavar="N", help="only N lines, drawn at random")
    add("--max_tokens", type=positive(int, 3), default=64, help="longer sentences are cut")

    add("--negatives", choices=("cross", "both"), default="cross", help="from the other view, or from both")
    add("--pooling", choices=("cls", "mean"), default="cls", help="a sentence's embedding: [CLS], or the mean")
    add("--dropout", type=fraction, default=0.1, help="in the encoder, where it makes the two views")
    add("--tau", type=positive(float), default=0.05, help="temperature")

    add("--epochs", type=positive(int, most=EPOCHS), default=1, help="passes over the corpus")
    add("--batch_size", type=positive(int, 2, BATCH), default=64, help="rows in a batch")
    add("--lr", type=positive(float), default=3e-5, help="peak learning rate")
    add("--weight_decay", type=positive(float, 0), default=0.0, help="of AdamW; none for biases and LayerNorm")
    add("--warmup", type=fraction, default=0.1, help="fraction of the steps over which the learning rate rises")
    add("--clip", type=positive(float, 0), default=1.0, help="largest norm of the gradient, 0 for no limit")
    add("--seed", type=positive(int, 0), default=11711, help="of the order of examples, dropout and first weights")
    add_device(parser)
    add_kernels(parser)
    return parser


def check_simcse(args, longest):
    """Raises UserError for flags that make no sense together. Args: longest, tokens that the tokenizer takes."""
    if not args.eval_only:
        check_folder("--out", args.out)
    if args.corpus and args.pairs:
        raise UserError("--corpus is unsupervised and --pairs supervised; give one of them")
    if args.max_tokens > longest:
        raise UserError(f"--max_tokens {args.max_tokens} is more than the {longest} positions of BERT; give less")
    if (args.layers is None) != (args.hidden is None) or (args.hidden or 0) % 32:
        raise UserError("a random start needs both --layers and --hidden, and --hidden a multiple of 32")
