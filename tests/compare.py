"""Compares the encoder with `transformers`, live: `make compare`, which installs it. Needs no test runner.

    python tests/compare.py            prints the largest differences; exit code 1 if one is too large
    python tests/compare.py --write    writes tests/golden.json, which the test suite compares with

What is compared: MiniLM's hidden states and pooled output for sentences of 1 to 512 tokens in one batch; the same for
an encoder that this project saved, which must open with no weight missing or unexpected; safetensors files in the
`safetensors` library, both ways. And the project with itself: the fast operations with the plain ones
(`kernels/plain.py`), in the same hidden states and in the losses of 20 training steps without dropout, which may differ
by 1e-4.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import kernels
from adamw import AdamW
from bert import Bert
from model import MultitaskBert, task_loss
from support.downloads import MINILM, find_model
from support.safetensors import read_safetensors, write_safetensors
from tasks import TASKS
from tokenizer import pack, to_padded

GOLDEN = Path(__file__).parent / "golden.json"
LENGTHS = (1, 2, 3, 17, 50, 128, 300, 512)


def golden_batch():
    """Sentences of 1 to 512 made-up tokens in one packed batch."""
    encoded = []
    for n in LENGTHS:
        encoded.append((np.array([1000 + 7919 * (i + n) % 28000 for i in range(n)]), n // 2 + 1))
    return pack(encoded)


def golden_places(batch, width):
    """32 (row, column) of a (rows, width) result, spread over it: int64 (32, 2)."""
    places = torch.arange(32)
    return torch.stack((places * 7919 % len(batch.ids), places * 104729 % width), 1)


def theirs(folder, batch):
    """(hidden states (T, H), pooled (B, H), what loading said) of `transformers`."""
    import transformers

    transformers.logging.set_verbosity_error()
    model, said = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    ids, mask = to_padded(batch, batch.ids)
    segments, _ = to_padded(batch, batch.segments)
    with torch.no_grad():
        out = model.eval()(input_ids=ids, attention_mask=mask.long(), token_type_ids=segments)
    return out.last_hidden_state[mask], out.pooler_output, said


def losses_of_training(steps=20, size=8):
    """The losses of MiniLM's first steps without dropout, on made-up sentences: of all three tasks in turn."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model, losses = MultitaskBert(Bert.load(find_model(MINILM), **none)).train(), []
    optimizer = AdamW(model.parameter_groups())
    for step in range(steps):
        task = list(TASKS.values())[step % len(TASKS)]
        lengths = rng.integers(4, 40, size)
        batch = pack([(rng.integers(1000, 30000, n), n // 2) for n in lengths])
        labels = torch.from_numpy(rng.integers(0, int(task.high) + 1, size)).float()
        loss = task_loss(task, model(task.name, batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step({"shared": 1e-4, task.name: 1e-3})
        losses.append(loss.item())
    return torch.tensor(losses)


def plain_and_fast(run):
    """The largest difference of what `run` returns on the plain operations and on the fast ones."""
    results = []
    for choice in kernels.CHOICES:
        kernels.use(choice)
        results.append(run())
    kernels.use("auto")
    return (results[0] - results[1]).abs().max().item()


def main():
    import safetensors.torch

    batch, worst = golden_batch(), 0.0
    minilm = find_model(MINILM)
    bert = Bert.load(minilm).eval()
    with torch.no_grad():
        hidden, pooled = bert(batch)
    with tempfile.TemporaryDirectory() as saved:
        bert.save(saved)
        for name, folder in (("MiniLM", minilm), ("MiniLM, saved here", saved)):
            their_hidden, their_pooled, said = theirs(folder, batch)
            differences = (hidden - their_hidden).abs().max().item(), (pooled - their_pooled).abs().max().item()
            print(f"{name}: hidden states differ by {differences[0]:.1e}, pooled by {differences[1]:.1e}")
            print("   ", {key: sorted(value) for key, value in said.items()})
            worst = max(worst, *differences, *(float(len(said[key])) for key in ("missing_keys", "unexpected_keys")))
        tensors = safetensors.torch.load_file(f"{saved}/model.safetensors")
        safetensors.torch.save_file(tensors, f"{saved}/theirs.safetensors")
        back = read_safetensors(f"{saved}/theirs.safetensors")
        write_safetensors(f"{saved}/again.safetensors", back)
        again = safetensors.torch.load_file(f"{saved}/again.safetensors")
        same = tensors.keys() == again.keys() and all(torch.equal(tensors[k], again[k]) for k in tensors)
        print(f"safetensors files, there and back: {'the same' if same else 'DIFFERENT'}")
    with torch.no_grad():
        states = plain_and_fast(lambda: bert(batch)[0])
    losses = plain_and_fast(losses_of_training)
    print(f"plain and fast operations: hidden states differ by {states:.1e}, losses of 20 steps by {losses:.1e}")
    if "--write" in sys.argv:
        rows, columns = golden_places(batch, hidden.shape[1]).T
        values = {"hidden": their_hidden[rows, columns].tolist(), "pooled": their_pooled[:, :4].tolist()}
        GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
    sys.exit(not same or max(worst, states) >= 1e-5 or losses >= 1e-4)


if __name__ == "__main__":
    main()
