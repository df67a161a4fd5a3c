"""SimCSE (Gao et al., 2021): teach an encoder, without labels, that a sentence is like itself and unlike all others.

    python simcse.py --out runs/simcse                        the training sentences of all tasks in data/sample
    python simcse.py --corpus wiki.txt --normalize_length 256 a text file, one sentence a line
    python simcse.py --pairs para                             supervised: paraphrases are alike
    python simcse.py --pairs nli.tsv                          supervised: sentence, like it, and (optional) unlike it
    python multitask.py --bert runs/simcse/encoder            fine-tunes what came out

B sentences go through the encoder twice, under two dropout masks, and give h_i and h'_i (B, H). With sim = cosine,

    loss = - 1/B Σ_i log  e^{sim(h_i, h'_i) / τ} / Z_i

    --negatives cross   Z_i = Σ_j e^{sim(h_i, h'_j) / τ}                                      (their equation 4)
    --negatives both    Z_i = Σ_j e^{sim(h_i, h'_j) / τ} + Σ_{j≠i} e^{sim(h_i, h_j) / τ}      same-view negatives too

(j = i is left out of the second sum: sim(h_i, h_i) = 1 whatever the encoder does). Supervised, h'_i is another sentence
that means the same, and a third column h⁻_i that does not joins the denominator, + Σ_j e^{sim(h_i, h⁻_j) / τ}
(equation 5). h is the [CLS] row, in training behind a tanh layer that is dropped afterwards (`--pooling cls`), or
the mean of all rows (`mean`).

Three numbers say what became of the embeddings f(x) = h / ‖h‖, all on the dev pairs of `sts`, none seen in training:

    alignment     mean ‖f(x) - f(y)‖² of the pairs with a label above 4: alike should be close   (Wang & Isola, 2020)
    uniformity    log mean e^{-2 ‖f(x) - f(y)‖²} of all sentences: and fill the sphere           lower is better, both
    zero-shot     Pearson's and Spearman's r between cos(h_a, h_b) and the label
"""

import dataclasses
import math
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adamw import AdamW, linear_schedule
from bert import Bert, BertConfig, Linear, initialize, sentence_means
from evaluate import pearson
from support import distributed, files, run_folder
from support.console import Parser, UserError, command, progress, table
from support.corpora import batch_of_step, fingerprint, open_corpus
from support.downloads import MINILM, find_model
from support.flags import add_device, choose_device, choose_products, positive, share
from support.safetensors import write_safetensors
from tasks import TASKS, data_path, read_examples
from tokenizer import MAX_TOKENS, Tokenizer, pack
from weights import to_usual_names

POSITIVE_ABOVE = 4  # pairs of `sts` with a higher label are the positives of `alignment`, as in Gao et al.


class SentenceEncoder(nn.Module):
    """An encoder and its pooling."""

    def __init__(self, bert, pooling):
        """Args: pooling, "cls" or "mean"."""
        super().__init__()
        self.bert, self.pooling = bert, pooling
        bert.pooler.requires_grad_(False)  # plays no part here, and is to reach `multitask.py` as it is
        self.projection = None
        if pooling == "cls":
            self.projection = Linear(bert.config.hidden_size, bert.config.hidden_size)
            initialize(self.projection, bert.config.initializer_range)

    def forward(self, batch):
        """A `Batch` of B sentences -> float32 embeddings (B, H)."""
        x = self.bert.embed(batch)
        if self.pooling == "mean":
            return sentence_means(self.bert.encode(x, batch), batch)
        h = self.bert.encode(x, batch, cls_only=True)
        if self.training:
            h = torch.tanh(self.projection(h))
        return h.float()


def contrastive_loss(a, b, tau, negatives="cross", hard=None):
    """The loss of the text above. Args: a, b, hard (B, H) are h, h', and h⁻ or None. Returns a scalar."""
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    similarities = [a @ b.t()]  # (B, B), positives on the diagonal
    if hard is not None:
        similarities.append(a @ F.normalize(hard, dim=1).t())
    if negatives == "both":
        itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
        similarities.append((a @ a.t()).masked_fill(itself, -torch.inf))
    return F.cross_entropy(torch.cat(similarities, 1) / tau, torch.arange(len(a), device=a.device))


def views(rows, tokenizer, args):
    """B rows of a corpus to one packed `Batch`: B first views, then B second ones, then B hard negatives if any.

    A row of one sentence gives the same sentence twice: dropout makes the difference.
    """
    columns = list(zip(*rows, strict=True))
    columns = columns * 2 if len(columns) == 1 else columns
    cut = args.normalize_length or None
    sentences = [sentence[:cut] for column in columns for sentence in column]
    return pack(tokenizer.encode(sentences, max_tokens=args.max_tokens))


# ----- what became of the embeddings


@torch.inference_mode()
def embeddings(model, tokenizer, sentences, max_tokens, batch_size=64):
    """n sentences -> float32 array (n, H). Under torchrun, each process encodes some, and all get the whole result."""
    model.eval()
    device = model.bert.word.weight.device
    encoded = tokenizer.encode(sentences, max_tokens=max_tokens)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    result = torch.zeros(len(encoded), model.bert.config.hidden_size)
    for start in range(distributed.rank() * batch_size, len(order), distributed.world() * batch_size):
        numbers = order[start : start + batch_size]
        result[numbers] = model(pack([encoded[i] for i in numbers]).to(device)).cpu()
    return distributed.sum_(result).numpy()


def alignment(a, b):
    """Unit vectors of pairs that are alike, a and b (n, H) -> mean ‖a - b‖², NaN for no pair."""
    return float(((a - b) ** 2).sum(1).mean()) if len(a) else math.nan


def uniformity(a):
    """Unit vectors (n, H) -> log of the mean of e^{-2 ‖x - y‖²} over all pairs x ≠ y."""
    squared = np.maximum(2 - 2 * (a @ a.T), 0)[np.triu_indices(len(a), 1)]
    return float(np.log(np.exp(-2 * squared.astype(np.float64)).mean()))


def ranks(values):
    """(n,) -> the ranks 0 .. n - 1 as floats, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def assess(model, tokenizer, examples, max_tokens):
    """Alignment, uniformity and zero-shot correlations on labelled sentence pairs: a dict of floats."""
    h = embeddings(model, tokenizer, examples.sentences + examples.others, max_tokens)
    h /= np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
    a, b = np.split(h, 2)
    cosine, alike = (a * b).sum(1), examples.labels > POSITIVE_ABOVE
    return {
        "alignment": alignment(a[alike], b[alike]),
        "uniformity": uniformity(np.unique(h, axis=0)),
        "pearson": pearson(cosine, examples.labels),
        "spearman": pearson(ranks(cosine), ranks(examples.labels)),
    }


# ----- training


def train(args, model, config, tokenizer, corpus, examples):
    """Trains `model` and writes the encoder to args.out; returns the first and the last `assess`, or None if stopped.

    Args: config, the `BertConfig` that the encoder is saved with; examples, the dev pairs of `sts`.
    """
    device = model.bert.word.weight.device
    groups = {"shared": list(model.named_parameters())}
    optimizer = AdamW(groups, weight_decay=args.weight_decay, clip=args.clip)
    epoch_steps = len(corpus) // args.batch_size
    total = epoch_steps * args.epochs
    data = fingerprint(corpus)
    position = run_folder.load_state(args.out, model, optimizer) or {
        "step": 0,
        "data": data,
        "before": None,
        "after": None,
    }
    if position["data"] != data:
        raise UserError(f"the corpus is not the one that {args.out} was started with; choose another --out")
    writer = distributed.rank() == 0
    if writer:
        run_folder.rewind_metrics(args.out, position["step"])
    position["before"] = position["before"] or assess(model, tokenizer, examples, args.max_tokens)

    losses, pending = [], []
    bar = progress(total * args.batch_size, position["step"] * args.batch_size, "sentences", "SimCSE")
    with run_folder.Interrupt() as interrupt, bar:
        for step in range(position["step"] + 1, total + 1):
            numbers = batch_of_step(len(corpus), args.batch_size, args.seed, step)
            distributed.seed_step(args.seed, step)
            model.train()
            batch = views([corpus[i] for i in distributed.share(numbers)], tokenizer, args).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                h = model(batch)
            of_views = [distributed.gather(part) for part in h.split(len(distributed.share(numbers)))]
            loss = contrastive_loss(*of_views[:2], args.tau, args.negatives, *of_views[2:])
            optimizer.zero_grad()
            loss.backward()
            distributed.sum_gradients(optimizer, None)
            lr = args.lr * linear_schedule(step - 1, total, args.warmup)
            norm = optimizer.step(dict.fromkeys(groups, lr))
            pending.append(torch.where(torch.isfinite(norm), loss.detach(), norm))  # either one ends the run
            bar.update(args.batch_size)

            stop = distributed.any_of(interrupt.asked)
            end_of_epoch = step % epoch_steps == 0
            save = end_of_epoch or stop or step % args.save_every == 0
            if save or len(pending) == 20:
                losses += torch.stack(pending).tolist()
                pending.clear()
                if not math.isfinite(sum(losses)):
                    at_step = f"by step {step}; start again with a lower --lr and another --out"
                    raise UserError(f"the loss or its gradient became {sum(losses)} {at_step}")
                bar.set_postfix_str(f"loss {mean(losses[-20:]):.4f}")
            if save:
                if writer:
                    run_folder.append_metrics(args.out, kind="train", step=step, lr=lr, loss=mean(losses))
                losses.clear()
            if end_of_epoch:
                position["after"] = assess(model, tokenizer, examples, args.max_tokens)
                if writer:
                    run_folder.append_metrics(args.out, kind="dev", step=step, **position["after"])
                    with files.replacing_folder(Path(args.out) / "encoder") as folder:
                        save_encoder(model.bert, config, tokenizer, folder)
            if save and writer:
                run_folder.save_state(args.out, model, optimizer, **(position | {"step": step}))
            if stop and step < total:
                return None
    return position["before"], position["after"]


def save_encoder(bert, config, tokenizer, folder):
    """A folder for `multitask.py --bert`. Args: config, with the dropout that fine-tuning is to use, not SimCSE's."""
    config.save(folder)
    write_safetensors(Path(folder) / "model.safetensors", to_usual_names(bert.state_dict()), {"format": "pt"})
    tokenizer.save(folder)


# ----- the command line


def arguments():
    parser = Parser(prog="simcse.py", description="Contrastive pretraining of a sentence encoder.")
    add = parser.add_argument
    add("--bert", default=MINILM, help="the encoder to start from: a folder or a name")
    add("--layers", type=positive(int), default=None, help="start from a random encoder of so many layers instead")
    add(
        "--hidden",
        type=positive(int),
        default=None,
        help="and of this width, a multiple of 32 (--bert: tokenizer only)",
    )
    add("--out", default="runs/simcse", help="folder of the run")
    add("--resume", action="store_true", help="go on with the run in --out, if there is one")
    add("--eval_only", action="store_true", help="assess the encoder of the run in --out again")
    add("--save_every", type=positive(int), default=1000, metavar="N", help="save every N steps, besides epoch ends")

    add("--corpus", default=None, metavar="FILE", help="one sentence a line (default: the tasks' training sentences)")
    add("--pairs", default=None, metavar="FILE", help="supervised: 'para', or a file of 2 or 3 tab-separated columns")
    add("--data", default="data/sample", metavar="DIR", help="folder of the task files")
    add("--normalize_length", type=positive(int), default=None, metavar="N",
        help="keep sentences of more than N characters only, cut to N")  # fmt: skip
    add("--max_sentences", type=positive(int), default=None, metavar="N", help="only N lines, drawn at random")
    add("--max_tokens", type=positive(int, 3), default=64, help="longer sentences are cut")

    add("--negatives", choices=("cross", "both"), default="cross", help="from the other view, or from both")
    add("--pooling", choices=("cls", "mean"), default="cls")
    add("--dropout", type=share, default=0.1, help="in the encoder, where it makes the two views")
    add("--tau", type=positive(float), default=0.05, help="temperature")

    add("--epochs", type=positive(int), default=1)
    add("--batch_size", type=positive(int, 2), default=64)
    add("--lr", type=positive(float), default=3e-5, help="peak learning rate")
    add("--weight_decay", type=positive(float, 0), default=0.0)
    add("--warmup", type=share, default=0.1, help="share of the steps over which the learning rate rises")
    add("--clip", type=positive(float, 0), default=1.0, help="largest norm of the gradient, 0 for no limit")
    add("--seed", type=positive(int, 0), default=11711)
    add_device(parser)
    add("--bf16", action="store_true", help="matrix products in bfloat16 on a CPU that has them")
    return parser


def check(args):
    """Raises UserError for flags that make no sense together."""
    if args.corpus and args.pairs:
        raise UserError("--corpus is unsupervised and --pairs supervised; give one of them")
    if args.max_tokens > MAX_TOKENS:
        raise UserError(f"--max_tokens {args.max_tokens} is more than the {MAX_TOKENS} positions of BERT")
    if (args.layers is None) != (args.hidden is None) or (args.hidden or 0) % 32:
        raise UserError("a random start needs both --layers and --hidden, and --hidden a multiple of 32")


def start_encoder(args, folder, vocabulary):
    """The encoder that training starts from. Args: folder, that of --bert; vocabulary, the number of token ids."""
    p = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    if args.layers is None:
        return Bert.load(folder, **p)
    H = args.hidden
    return Bert(BertConfig(vocabulary, H, args.layers, H // 32, 4 * H, **p))


@command
def main(argv=None):
    args = run_folder.parse_flags(arguments(), argv)
    check(args)
    device = choose_device(args)
    choose_products(args, device)
    distributed.start(args.batch_size)
    sts = TASKS["sts"]
    with distributed.one_after_another():
        folder = run_folder.best_folder(args.out, "encoder") if args.eval_only else find_model(args.bert)
    limits = BertConfig.load(folder) if args.eval_only or args.layers is None else BertConfig()
    tokenizer = Tokenizer(folder, limits.max_position_embeddings, None if args.layers else limits.vocab_size)
    with distributed.one_voice():
        examples = read_examples(data_path(args.data, sts, "dev"), sts)
        corpus = None if args.eval_only else open_corpus(args)
    torch.manual_seed(args.seed)
    if args.eval_only:
        model = SentenceEncoder(Bert.load(folder), args.pooling).to(device)
        print(assessment({"encoder": assess(model, tokenizer, examples, args.max_tokens)}))
        distributed.stop()
        return
    bert = start_encoder(args, folder, tokenizer.wordpiece.get_vocab_size())
    config = dataclasses.replace(
        bert.config,
        hidden_dropout_prob=limits.hidden_dropout_prob,
        attention_probs_dropout_prob=limits.attention_probs_dropout_prob,
    )
    model = SentenceEncoder(bert, args.pooling).to(device)
    if distributed.rank() == 0:
        files.write_json(Path(args.out) / "config.json", vars(args))
    count = sum(p.numel() for p in bert.parameters())
    print(f"encoder {count:,} parameters; {len(corpus):,} lines; on {device}, processes: {distributed.world()}")
    started = time.perf_counter()
    result = train(args, model, config, tokenizer, corpus, examples)
    if result is None:
        print(f"stopped and saved; go on with: python simcse.py --resume --out {args.out}")
        distributed.stop()  # process 0 has saved
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    print(assessment(dict(zip(("before", "after"), result, strict=True))))
    print(f"fine-tune it with: python multitask.py --bert {args.out}/encoder")
    distributed.stop()


def assessment(results):
    """The table of some `assess`, by name."""
    names = next(iter(results.values()))
    return table(["encoder", *names], [[name, *result.values()] for name, result in results.items()])


if __name__ == "__main__":
    main()
