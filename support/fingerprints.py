"""Short texts that change with what a run reads, so that another run, or a resumed one, notices."""

import hashlib

import numpy as np

from support import corpora


def of_examples(examples):
    """Changes with any id, sentence or label of `tasks.Examples`."""
    digest = hashlib.sha256()
    for column in (examples.ids, examples.sentences, examples.second_sentences or []):
        digest.update("\0".join(column).encode() + b"\1")
    if examples.labels is not None:
        digest.update(examples.labels.tobytes())
    return digest.hexdigest()[:16]


def of_run(datasets, bert):
    """{name: text} for all that a run trains on and is judged by.

    Args: datasets, {task: {split: DataSet}}; bert, the `Bert` that it trains.
    """
    found = {"encoder": _of_encoder(bert)}
    for name, splits in datasets.items():
        found |= {name: of_examples(splits["train"].examples), f"{name} dev": of_examples(splits["dev"].examples)}
        ids = np.concatenate([ids for sequences in splits["train"].encoded for ids, _ in sequences])
        found[f"{name} tokens"] = hashlib.sha256(ids.astype(np.int64).tobytes()).hexdigest()[:16]
    return found


def _of_encoder(bert):
    """Changes with what the shapes of a `Bert`'s weights do not tell."""
    config = bert.config
    return f"{config.num_attention_heads} heads, {config.attention_probs_dropout_prob}, {config.layer_norm_eps}"


def of_simcse(corpus, tokenizer, examples, bert):
    """The same for a run of `simcse.py`. Args: examples, the dev pairs of `sts`."""
    words = hashlib.sha256(tokenizer.wordpiece.to_str().encode()).hexdigest()[:16]
    found = {"corpus": corpora.fingerprint(corpus), "tokenizer": words, "sts dev": of_examples(examples)}
    return found | {"encoder": _of_encoder(bert)}
