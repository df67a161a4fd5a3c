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
that means the same. A third column h⁻_i, a sentence that means something else, adds Σ_j e^{sim(h_i, h⁻_j) / τ} to Z_i
(equation 5). h is the [CLS] row, in training behind a tanh layer that is dropped afterwards (`--pooling cls`), or
the mean of all rows (`mean`).

The default corpus leaves out what also stands in a dev file. Of the CS224N files it would otherwise hold both sentences
of 50 of the 863 dev pairs of `sts` (without labels).

Before and after training it prints of the embeddings f(x) = h / ‖h‖ of the dev pairs of `sts` (Wang & Isola, 2020; of
the first two, lower is better):

    alignment     mean ‖f(x) - f(y)‖² of the pairs with a label above 4: alike should be close
    uniformity    log mean e^{-2 ‖f(x) - f(y)‖²} of all sentences: they should fill the sphere
    zero-shot     Pearson's and Spearman's r between cos(h_a, h_b) and the label
"""

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import dataclasses
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adamw import AdamW, linear_schedule
from bert import Bert, BertConfig, Linear, initialize, sequence_means
from evaluate import alignment, check_finite, pearson, ranks, uniformity
from kernels import precision
from support import corpora, distributed, fingerprints, flags, folders, run_folder
from support.checks import check_memory, parameters_of
from support.console import command, table, typed
from support.downloads import find_model
from support.loss_scaling import scaler_for
from support.training_run import TrainingRun
from tasks import TASKS, data_path, read_examples
from tokenizer import MAX_TOKENS, Tokenizer, pack

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
            return sequence_means(self.bert.encode(x, batch), batch)
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

    A row of one sentence gives the same sentence twice: dropout makes the difference. `--normalize_length N` cuts each
    to N characters (rows with shorter first sentences are left out): no sentence is given away by its length.
    """
    columns = list(zip(*rows, strict=True))
    columns = columns * 2 if len(columns) == 1 else columns
    cut = args.normalize_length or None
    sentences = [sentence[:cut] for column in columns for sentence in column]
    return pack(tokenizer.encode(sentences, max_tokens=args.max_tokens))


# ----- what became of the embeddings


@torch.inference_mode()
def embeddings(model, tokenizer, sentences, max_tokens, batch_size=64):
    """n sentences -> float32 array (n, H), finite. Under torchrun each process encodes some, and all get the whole."""
    model.eval()
    device = model.bert.word.weight.device
    encoded = tokenizer.encode(sentences, max_tokens=max_tokens)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    result = torch.zeros(len(encoded), model.bert.config.hidden_size)
    for start in range(distributed.rank() * batch_size, len(order), distributed.world() * batch_size):
        indices = order[start : start + batch_size]
        result[indices] = model(pack([encoded[i] for i in indices]).to(device)).cpu()
    return check_finite(model.bert, "sentences", distributed.sum_(result).numpy())


def assess(model, tokenizer, examples, max_tokens):
    """Alignment, uniformity and zero-shot correlations on labelled pairs: a dict of floats, None if not defined."""
    h = embeddings(model, tokenizer, examples.sentences + examples.second_sentences, max_tokens)
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


def training_step(args, step, factor, rows, model, optimizer, tokenizer, scaler):
    """One step on B rows of a corpus, at `factor` times the peak learning rate: what `TrainingRun.record` takes."""
    distributed.seed_step(args.seed, step)
    model.train()
    device, lr, shard = model.bert.word.weight.device, args.lr * factor, distributed.shard(rows)
    with precision.autocast(device):
        h = model(views(shard, tokenizer, args).to(device))
    h, h_alike, *h_hard = (distributed.gather(part) for part in h.split(len(shard)))  # (B, H) each
    loss = contrastive_loss(h, h_alike, args.tau, args.negatives, *h_hard)
    optimizer.zero_grad()
    scaler.scaled(loss).backward()
    distributed.sum_gradients(optimizer, None)
    # every process has the loss of the whole batch, and `record` sums over the processes
    values = {"losses": {"loss": loss.detach() / distributed.world()}, "lr": lr}
    if scaler.unscale(optimizer.flat_parameters()):
        values["norm"] = optimizer.step(dict.fromkeys(optimizer.groups, lr))
    return values


def train(args, model, config, tokenizer, corpus, examples):
    """Trains `model` and writes the encoder to args.out. Returns the first and the last `assess`, or None if stopped.

    Args: config, the `BertConfig` that the encoder is saved with; examples, the dev pairs of `sts`.
    """
    optimizer = AdamW({"shared": list(model.named_parameters())}, weight_decay=args.weight_decay, clip=args.clip)
    plan = corpora.CorpusPlan(len(corpus), args.batch_size, args.epochs, args.seed)
    scaler = scaler_for(model.bert.word.weight.device)
    save = lambda folder: save_encoder(model.bert, config, tokenizer, folder)  # noqa: E731
    data, extra = fingerprints.of_simcse(corpus, tokenizer, examples, model.bert), scaler.state()
    with TrainingRun(args, plan, model, optimizer, extra=extra, data=data, save_model=save, best="encoder") as run:
        assessed = run.position.setdefault("assessed", {})  # saved with the run
        assessed["before"] = assessed.get("before") or assess(model, tokenizer, examples, args.max_tokens)
        for step, _, indices in run.steps():
            factor, rows = linear_schedule(step - 1, len(plan), args.warmup), [corpus[i] for i in indices]
            run.record(training_step(args, step, factor, rows, model, optimizer, tokenizer, scaler))
            if run.epoch_ends:
                assessed["after"] = assess(model, tokenizer, examples, args.max_tokens)
                run.evaluated(assessed["after"])
    return (assessed["before"], assessed["after"]) if run.finished else None


def save_encoder(bert, config, tokenizer, folder):
    """A folder for `multitask.py --bert`. Args: config, with the dropout that fine-tuning is to use, not SimCSE's."""
    bert.save(folder, config)
    tokenizer.save(folder)


# ----- the command line


def open_corpus(args):
    """The sentences that the flags ask for, see `support/corpora.py`."""
    return corpora.open_corpus(args, TASKS, lambda task, split: read_examples(data_path(args.data, task, split), task))


def start_encoder(args, folder, vocabulary):
    """The encoder that training starts from. Args: folder, that of --bert; vocabulary, the number of token ids."""
    p = {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    if args.layers is None:
        return Bert.load(folder, **p)
    config = BertConfig(vocabulary, args.hidden, args.layers, args.hidden // 32, 4 * args.hidden, **p)
    check_memory(4 * parameters_of(dataclasses.asdict(config)), args.layers, "--layers and --hidden", "give less")
    return Bert(config)


@command
def main(argv=None):
    args = run_folder.parse_flags(flags.simcse_parser(), argv)
    flags.check_simcse(args, MAX_TOKENS)
    device = flags.choose_device(args)
    flags.choose_kernels(args, device)
    distributed.start(args.batch_size)
    with distributed.only_rank_0_warns():
        examples = read_examples(data_path(args.data, TASKS["sts"], "dev"), TASKS["sts"])
        corpus = None if args.eval_only else open_corpus(args)
    with distributed.rank_0_first():
        folder = folders.encoder_folder(args.out) if args.eval_only else find_model(args.bert)
    start = BertConfig.load(folder) if args.eval_only or args.layers is None else BertConfig()  # or random weights
    tokenizer = Tokenizer(folder, start.max_position_embeddings, None if args.layers else start.vocab_size)
    torch.manual_seed(args.seed)
    if args.eval_only:
        model = SentenceEncoder(Bert.load(folder), args.pooling).to(device)
        print_assessments(encoder=assess(model, tokenizer, examples, args.max_tokens))
        distributed.stop()
        return
    bert = start_encoder(args, folder, tokenizer.size)
    dropout = {name: getattr(start, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    config = dataclasses.replace(bert.config, **dropout)  # to be saved: the usual dropout, not SimCSE's
    model = SentenceEncoder(bert, args.pooling).to(device)
    count = sum(p.numel() for p in bert.parameters())
    print(f"encoder {count:,} parameters; {len(corpus):,} lines; on {device}, processes: {distributed.world()}")
    started = time.perf_counter()
    found = train(args, model, config, tokenizer, corpus, examples)
    distributed.stop()  # process 0 has saved
    if found is None:
        print(f"stopped and saved; go on with: {typed('simcse.py', '--resume', '--out', args.out)}")
        raise SystemExit(130)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    print_assessments(before=found[0], after=found[1])
    print(f"fine-tune it with: {typed('multitask.py', '--bert', f'{args.out}/encoder')}")


def print_assessments(**found):
    """A table of what `assess` found, by name."""
    rows = [[name, *("not defined" if x is None else x for x in values.values())] for name, values in found.items()]
    print(table(["encoder", *next(iter(found.values()))], rows))


if __name__ == "__main__":
    main()
