"""The model: one encoder, a head per task, and what each task's loss is.

A sentence is encoded to the pooled [CLS] vector. A pair goes through the encoder in one sequence [CLS] a [SEP] b [SEP]
(`--pair_encoding joint`, a cross-encoder), where each word can look at the words of the other sentence, or each
sentence goes alone, the two vectors then side by side (`siamese`, a bi-encoder). A head per task (two hidden layers
with GELU and dropout, then a linear layer) maps its input to

    sst      5 logits z       cross-entropy           -log softmax(z)[label]
    para     1 logit z        binary cross-entropy    -log σ(z) if label = 1, -log(1 - σ(z)) if 0
    sts      1 number z       squared error           (z - label)²

with σ(z) = 1 / (1 + exp(-z)).

An encoder like MiniLM was pretrained to compare sentences by the mean of their hidden states (Reimers & Gurevych,
2019). Before fine-tuning that mean holds more than [CLS] does. With `--use_means`

  * the head of a task about one sentence reads [CLS] and the mean side by side (2H), the mean brought to mean 0 and
    variance 1 over its H numbers;
  * a task that predicts a number for a pair (sts) encodes three sequences, both sentences joined and each alone, and
    predicts twice,

        z_1 = head([CLS] of the joined ones)        z_2 = s cos(u, v)        u and v the means of the two alone

    where s is a learned scalar that starts at the largest label, 5. The loss is the mean of both squared errors, the
    prediction the mean of both numbers. If the loss were that of the averaged prediction instead, z_2 would explain
    most of the label, and the head would learn little.

A task that names a class for a pair (para) stays as it is, and `siamese` is for it alone then. The others need all
rows of the last layer, and an STS pair takes more than twice the time.

With `--use_pals` each task also has a small part of every layer of the encoder (`pals.py`).
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bert import Bert, Linear, sequence_means
from kernels import dropout, linear_gelu, mean_loss, precision
from pals import Pals
from support import files
from support.checks import check_heads, read_options
from support.console import UserError
from support.folders import check_model
from support.safetensors import write_safetensors
from support.weight_files import read_checked
from tasks import TASKS
from tokenizer import Tokenizer


class Head(nn.Module):
    """(B, in) -> (B, out): dropout; `layers` times Linear, GELU, dropout; then Linear."""

    def __init__(self, size_in, size, size_out, layers, p):
        super().__init__()
        sizes = [size_in] + [size] * layers
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = Linear(sizes[-1], size_out)
        self.p = p
        for layer in self.hidden:  # He et al. (2015): the signal keeps its size through the layers, nearly so with GELU
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, x):
        p = self.p if self.training else 0.0
        x = dropout(x, p)
        for layer in self.hidden:
            x = dropout(linear_gelu(x, layer.weight, layer.bias), p)
        return self.output(x)


class TwofoldHead(Head):
    """A head that predicts a number of a pair twice: as `Head` does, and from the angle between two vectors."""

    def __init__(self, largest, *sizes):
        """Args: largest, the largest label, where s starts; sizes, the arguments of `Head`."""
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.tensor([float(largest)]))  # s

    def forward(self, x, u, v):
        """x (B, in), u and v (B, H) -> z_1 and z_2 side by side, (B, 2)."""
        z_1 = super().forward(x)  # (B, 1)
        z_2 = self.scale * F.cosine_similarity(u, v)[:, None]  # (B, 1)
        return torch.cat((z_1, z_2), 1)


class MultitaskBert(nn.Module):
    """One encoder, one head per task, and with `pal_size` one set of PALs per task."""

    def __init__(
        self,
        bert,
        pair_encoding="joint",
        use_means=False,
        classifier_layers=2,
        classifier_size=None,
        pal_size=None,
        pal_heads=12,
    ):
        """Args: bert, a `Bert`; pair_encoding and use_means, see above; classifier_layers and classifier_size, the
        heads' layers and their width, None for the hidden size; pal_size and pal_heads, see `pals.py`, None for none.
        """
        super().__init__()
        H, p = bert.config.hidden_size, bert.config.hidden_dropout_prob
        if (pair_encoding == "joint" or use_means) and bert.config.type_vocab_size < 2:
            remedy = "take --pair_encoding siamese, without --use_means"
            raise UserError(f"--bert has one segment, and a pair in one sequence needs two; {remedy}")
        check_heads(len(TASKS), bert.config, classifier_layers, classifier_size or H, pal_size or 0)
        self.bert = bert
        self.options = {
            "pair_encoding": pair_encoding,
            "use_means": use_means,
            "classifier_layers": classifier_layers,
            "classifier_size": classifier_size or H,
        }
        self.encodings = {task.name: task.encoding(pair_encoding, use_means) for task in TASKS.values()}
        widths = {"sentence": H, "sentence and mean": 2 * H, "joint": H, "siamese": 2 * H}  # what a head reads
        self.heads = nn.ModuleDict()
        for name, encoding in self.encodings.items():
            rest = classifier_size or H, TASKS[name].n_logits, classifier_layers, p
            twice = encoding == "both"
            self.heads[name] = TwofoldHead(TASKS[name].high, H, *rest) if twice else Head(widths[encoding], *rest)
        self.pals = None
        if pal_size:
            self.options |= {"pal_size": pal_size, "pal_heads": pal_heads}
            self.pals = nn.ModuleDict({name: Pals(bert.config, pal_size, pal_heads) for name in TASKS})

    def forward(self, name, batch):
        """The name of a task and a `Batch` of its B examples (`DataSet.batch`) -> logits (B, C).

        C is `Task.n_logits`, but 2 for a number that is predicted twice.
        """
        return self.classify(name, self.bert.embed(batch), batch)

    def classify(self, name, x, batch):
        """The rest of `forward`, from the embeddings x (T, H) on."""
        return self.heads[name](*self.features(name, x, batch))

    def features(self, name, x, batch):
        """What the task's head reads of B examples, from the embeddings x (T, H) on: a tuple, (B, in) and more."""
        encoding, adapter = self.encodings[name], self.adapter(name)
        if encoding in ("sentence", "joint", "siamese"):  # nothing but [CLS]
            pooled = self.bert.pool(self.bert.encode(x, batch, adapter, cls_only=True))  # (B, H)
            # siamese: (2B, H), all first sentences before all second ones, to (B, 2H)
            return (torch.cat(pooled.chunk(2), 1) if encoding == "siamese" else pooled,)
        h = self.bert.encode(x, batch, adapter)  # (T, H)
        means = sequence_means(h, batch)  # (B, H); "both": (3B, H)
        if encoding == "sentence and mean":
            pooled = self.bert.pool(h[batch.cls_rows])  # (B, H)
            return (torch.cat((pooled, F.layer_norm(means, means.shape[1:])), 1),)  # (B, 2H)
        joint, _, _ = batch.cls_rows.chunk(3)  # "both": B joint pairs, B first sentences, B second ones
        _, u, v = means.chunk(3)  # (B, H) each
        return self.bert.pool(h[joint]), u, v

    def adapter(self, name):
        """The PALs of the task, for `Bert.encode`, or None."""
        return None if self.pals is None else self.pals[name]

    def parameter_groups(self):
        """What steps together (see `adamw.py`): the encoder on every step, a task's head and PALs when it is taken."""
        groups = {"shared": [(f"bert.{name}", p) for name, p in self.bert.named_parameters()]}
        for task, head in self.heads.items():
            groups[task] = [(f"heads.{task}.{name}", p) for name, p in head.named_parameters()]
            if self.pals is not None:
                groups[f"pals.{task}"] = [(f"pals.{task}.{name}", p) for name, p in self.pals[task].named_parameters()]
        return groups

    def save(self, folder, tokenizer):
        """A folder that `transformers` opens as a `BertModel`, with heads and PALs in files of their own beside it."""
        self.bert.save(folder)
        tokenizer.save(folder)
        write_safetensors(Path(folder) / "heads.safetensors", self.heads.state_dict())
        if self.pals is not None:
            write_safetensors(Path(folder) / "pals.safetensors", self.pals.state_dict())
        files.write_json(Path(folder) / "multitask.json", self.options)

    @classmethod
    def load(cls, folder):
        """From a folder that `save` wrote, best/ of a run. Returns (model, tokenizer). Raises UserError for others."""
        check_model(folder)
        bert = Bert.load(folder)
        model = cls(bert, **read_options(Path(folder) / "multitask.json"))
        try:
            model.heads.load_state_dict(read_checked(Path(folder) / "heads.safetensors"))
            if model.pals is not None:
                model.pals.load_state_dict(read_checked(Path(folder) / "pals.safetensors"))
        except RuntimeError:
            raise UserError(f"the heads in {folder} are not those of the tasks of tasks.py; train again") from None
        return model, Tokenizer(folder, bert.config.max_position_embeddings, bert.config.vocab_size)


def logits_of(model, name, batch):
    """`model(name, batch)`, under `precision.autocast`: in 16 bits where a GPU has fast ones."""
    with precision.autocast(batch.ids.device):
        return model(name, batch)


def task_loss(task, logits, labels):
    """The mean loss of a batch. Args: task, its row; logits (B, C); labels (B,) float. Returns a scalar."""
    if not task.classes:  # a number, predicted C times
        logits, labels = logits.reshape(-1, 1), labels.repeat_interleave(logits.shape[1])
    return mean_loss(logits, labels, task.classes)
