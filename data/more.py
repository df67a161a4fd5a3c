"""More examples, without labels, out of the training sentences: a student's teachers label them (`distill.py`).

    python data/more.py --data DIR --out runs/more

Pairs: each sentence beside one of its nearest neighbours, by the cosine of the means of their hidden states. Two
sentences taken at random are nearly always unlike, which teaches little. Neighbours are alike, or differ in what
matters ("semantic search sampling", Thakur et al., 2021, Augmented SBERT). Single sentences: their clauses, cut at
punctuation and at conjunctions. "A clever film, but far too long" gives two: one praises, one complains.

Writes a file `unlabelled` for each task, in the format of the test files, with at most as many lines as the training
file has. Pairs and sentences that stand in a task file of DIR, dev and test included, are left out. A task for which
nothing new is found gets no file.
"""

import contextlib
import csv
import io
import itertools
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line

import numpy as np
import torch

from bert import Bert
from predict import paths_of
from simcse import SentenceEncoder, embeddings
from support.console import Parser, UserError, command
from support.downloads import MINILM, find_model
from support.files import replacing
from support.flag_types import place, positive
from support.flags import add_device, choose_device
from support.places import check_folder
from tasks import SPLITS, TASKS, data_path, read_examples
from tokenizer import MAX_TOKENS, Tokenizer

AND = r"(?:and|but|yet|while|though|although|because)\s+"
CUTS = re.compile(rf"\s*(?:[,;:]|--|\.\.\.)\s+(?:{AND})?|\s+{AND}")
SHORTEST = 3  # words of a clause


def bare(text):
    """A sentence or clause without the punctuation around it."""
    return text.strip(" .,;:!?-`'\"")


def clauses(sentences):
    """The clauses of n sentences, each once: a list of tuples (str,)."""
    parts = (bare(part) for sentence in sentences for part in CUTS.split(sentence))
    return list(dict.fromkeys((part,) for part in parts if len(part.split()) >= SHORTEST))


def neighbours(sentences, h, k, rng):
    """A pair for each sentence, with one of its k nearest neighbours, drawn at random: a list of tuples (str, str).

    Args: sentences, n str, all different; h, their embeddings, (n, H), of length 1. A pair may come twice.
    """
    h, pairs = torch.from_numpy(h), []
    if len(h) < 2:
        return pairs
    for rows in torch.arange(len(h)).split(512):
        cosines = h[rows] @ h.T  # (512, n)
        cosines[torch.arange(len(rows)), rows] = -1
        nearest = cosines.topk(min(k, len(h) - 1)).indices.numpy()  # (512, k)
        chosen = nearest[np.arange(len(rows)), rng.integers(nearest.shape[1], size=len(rows))]
        pairs += [(sentences[i], sentences[j]) for i, j in zip(rows.tolist(), chosen, strict=True)]
    return pairs


def known(folder, task):
    """All sentences, or pairs, that stand in a task's files: a set of frozensets of bare str."""
    found = set()
    for split in SPLITS:
        path = data_path(folder, task, split)
        if split != "test" or path.exists():
            examples = read_examples(path, task, labelled=split != "test")
            columns = [examples.sentences] + [examples.second_sentences] * task.pair
            found |= {frozenset(map(bare, row)) for row in zip(*columns, strict=True)}
    return found


def more(folder, task, embed, k, rng):
    """New examples of a task: a list of tuples of one or two sentences. Args: embed, a function n str -> (n, H)."""
    examples = read_examples(data_path(folder, task, "train"), task)
    if task.pair:
        sentences = list(dict.fromkeys(itertools.chain(examples.sentences, examples.second_sentences)))
        found = neighbours(sentences, embed(sentences), k, rng)
    else:
        found = clauses(examples.sentences)
    old, new = known(folder, task), {}
    for i in rng.permutation(len(found)):
        if (key := frozenset(map(bare, found[i]))) not in old and len(new) < len(examples):
            new.setdefault(key, found[i])
    return list(new.values())


@command
def main(argv=None):
    parser = Parser(prog="data/more.py", description="Unlabelled examples out of the training sentences.")
    add = parser.add_argument
    add("--data", type=place, default="data/sample", metavar="DIR", help="folder of task files")
    add("--out", type=place, default="runs/more", metavar="DIR", help="where the new files go")
    add("--bert", default=MINILM, help="the encoder that finds neighbours: a folder or a name")
    add("--neighbours", type=positive(int), default=6, metavar="K", help="a pair is drawn from the K nearest")
    add("--seed", type=positive(int, 0), default=11711, help="of what is drawn")
    add_device(parser)
    args = parser.parse_args(argv)
    check_folder("--out", args.out)
    paths = {task: data_path(args.out, task, "unlabelled") for task in TASKS.values()}
    if any(path.exists() for path in paths.values()):
        raise UserError(f"{args.out} holds unlabelled examples already, perhaps of a student; choose another --out")
    paths_of(None, args.data)  # they are there, or no encoder is fetched
    folder = find_model(args.bert)
    bert = Bert.load(folder)
    model = SentenceEncoder(bert, "mean").to(choose_device(args))
    tokenizer = Tokenizer(folder, bert.config.max_position_embeddings, bert.config.vocab_size)

    def embed(sentences):
        h = embeddings(model, tokenizer, sentences, MAX_TOKENS)
        if len(set(sentences)) > 1 and np.ptp(h, axis=0).max() <= 1e-6 * abs(h).max():
            raise UserError(f"--bert {args.bert} embeds all sentences alike, so none has neighbours; name another")
        return h / np.linalg.norm(h, axis=1, keepdims=True)

    # all of it, before any is written: a damaged task file leaves no part of it behind
    new = {task: more(args.data, task, embed, args.neighbours, np.random.default_rng(args.seed)) for task in paths}
    with contextlib.ExitStack() as together:  # what does not fit the disk leaves no part of it behind, either
        for task, found in new.items():
            if found:
                text = io.TextIOWrapper(together.enter_context(replacing(paths[task])), encoding="utf-8", newline="")
                writer = csv.writer(text, delimiter="\t", lineterminator="\n")
                writer.writerow(["id", *task.columns])
                writer.writerows([f"more-{i}", *sentences] for i, sentences in enumerate(found))
                text.detach()  # flushes it
    for task, found in new.items():
        print(f"{paths[task]}: {len(found)} lines" if found else f"nothing new for {task.name}")


if __name__ == "__main__":
    main()
