"""Distillation with teacher annealing (Hinton et al., 2015; Clark et al., 2019, BAM!): one model learns from several.

An ensemble is better than its members and costs as much as all of them. A student, one model, can learn what the
ensemble says of the training examples. That holds more than the labels do: 0.6 negative and 0.4 neutral tells of a
sentence what "negative" hides. If the student is built like its teachers, it is born again (Furlanello et al., 2018).

The target of an example is a mixture of its label and of the mean of its teachers' outputs:

    target = λ gold + (1 - λ) teacher           gold: [label = c] for each class c, or the number itself

    sst      5 logits z       -Σ_c target_c log softmax(z)_c
    para     1 logit z        -(1 - target_1) log(1 - σ(z)) - target_1 log σ(z)
    sts      1 number z       (z - target)²     with --use_means the mean over both predictions z_1 and z_2

These are the losses of `model.py`, where a label may now be a fraction. Their gradients with respect to the logits
are softmax(z) - target, σ(z) - target_1 and 2 (z - target): linear in the target, so the gradient is λ times
that of the labels plus 1 - λ times that of the teachers.

Teacher annealing (`--distill_lambda annealed`, the default): λ rises in a line over the N steps of the training,

    λ = (t - 1) / (N - 1)                       0 at step 1, 1 at step N

The student first imitates. In the end it follows the labels, so it can become better than its teachers. A number in
[0, 1] keeps λ where it is. With 1, where all examples have labels, the loss is that of a plain run, and so are the
weights, bit for bit (on a GPU with `--cuda_graphs off`).

Which teachers? One that was trained on an example is nearly certain of its label, and repeats it: there is little to
learn beyond the label. So let each teacher leave out a part, a fold, and speak of that part only:

    python multitask.py --data DIR --fold 1/2 --out runs/first           trained on all but fold 1 of 2
    python multitask.py --data DIR --fold 2/2 --out runs/second
    python multitask.py --data DIR --teacher runs/first runs/second --out runs/student

An example takes the mean of the teachers that have not seen it, or of all of them where all have. A teacher with one
fold of two has seen half of the data, and knows less. (All that is known of what a teacher has seen is its --fold, so
train it on the same --data.) How many examples all teachers have seen, and how right they are on the labelled ones, is
printed before the training begins.

A student can also learn from examples without a label (Thakur et al., 2021, Augmented SBERT). `data/more.py` makes
some out of the training sentences. All teachers speak of them, and their target is what these say: λ = 0. With as
many of them as labelled ones, an epoch has twice the steps.

    python data/more.py --data DIR --out runs/more
    python multitask.py --data DIR --unlabelled runs/more --teacher runs/first runs/second --out runs/student

The teachers may be runs of any kind, each with its own tokenizer. They are asked once, before the first step: what they
say is kept in their folders (`support/output_cache.py`). So a step costs what a plain one does.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from evaluate import score
from model import task_loss
from predict import data_flags, flags_of, outputs_of, task_paths
from sampling import in_fold
from support import distributed, run_folder
from support.console import UserError
from support.folders import model_folder, unfinished
from support.output_cache import model_digest, values_digest
from support.training_run import use_kept_products
from tasks import SPLITS, TASKS


def annealed(step, steps):
    """λ of a step, from 1 to `steps`: 0 at the first, 1 at the last (in a training of one step, 0)."""
    return (step - 1) / max(steps - 1, 1)


def mix(task, labels, teacher, weight):
    """The targets of a batch, in the shape of `teacher`.

    Args: task, its row in tasks.TASKS; labels (B,), NaN where there is none; teacher, (B, classes) class probabilities,
    also for two classes, or (B,) numbers; weight, λ.
    """
    known, gold = ~labels.isnan(), labels.nan_to_num()
    if task.classes:
        known, gold = known[:, None], F.one_hot(gold.long(), task.classes)
    weight = weight * known.to(teacher.dtype)  # 0 without a label
    return weight * gold + (1 - weight) * teacher


def soft_loss(task, logits, targets):
    """The mean loss of a batch. Args: logits (B, C), as in `model.task_loss`; targets, of `mix`. Returns a scalar."""
    if not task.classes:
        return task_loss(task, logits, targets)  # any number may be a label there
    z = logits if logits.dtype == torch.float64 else logits.float()
    if task.classes == 2:
        z = torch.cat((torch.zeros_like(z), z), 1)  # (B, 2): softmax(0, z) = (1 - σ(z), σ(z))
    return -(targets * torch.log_softmax(z, 1)).sum(1).mean()


class Teachers:
    """What the teachers say of the training examples, and the loss that it makes."""

    def __init__(self, args, datasets, plan, device):
        """Args: args, the flags `teacher` (folders of runs), `distill_lambda` and `out`; datasets, {task: {"train":
        DataSet}}; plan, of all N steps; device, of the student. Raises UserError for a folder that can be no teacher.
        """
        self.weight, self.steps = args.distill_lambda, len(plan)
        examples = {name: splits["train"].examples for name, splits in datasets.items()}
        cuda = [device] if device.type == "cuda" else []
        # loading a model draws its first weights: not from the student's random numbers
        with torch.random.fork_rng(cuda), distributed.only_rank_0_warns():
            use_kept_products(args.out)  # asked again, the teachers of a resumed run say the same to the last bit
            found = mean_outputs(args.teacher, examples, device)
            known = {name: ~np.isnan(these.labels) for name, these in examples.items()}
            self.all_known = all(rows.all() for rows in known.values())
            if self.weight == 1 and self.all_known:
                print("--distill_lambda 1 learns from the labels alone: the teachers change nothing", file=sys.stderr)
        metrics = {n: score(TASKS[n], found[n][rows], examples[n].labels[rows]) for n, rows in known.items()}
        print("the teachers on the training examples: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        self.values = {name: torch.from_numpy(values).to(device) for name, values in found.items()}
        self.digests = {f"teacher {i}": model_digest(model_folder(run)) for i, run in enumerate(args.teacher, 1)}
        self.digests |= {f"what the teachers say of {name}": values_digest(values) for name, values in found.items()}

    def loss_of(self, step, indices):
        """The loss of a step, a function (task, logits, labels) like `task_loss`. Args: indices, the examples'."""
        weight = annealed(step, self.steps) if self.weight == "annealed" else self.weight
        if weight == 1 and self.all_known:
            return task_loss
        teacher = lambda task: self.values[task.name][indices]  # noqa: E731, (B, classes) or (B,)
        return lambda task, logits, labels: soft_loss(task, logits, mix(task, labels, teacher(task), weight))


# ----- asking the teachers


def mean_outputs(runs, examples, device):
    """What the teachers of each example say, on average: {task: float32 (n, classes) or (n,)}.

    Args: runs, their folders; examples, {task: Examples}. Raises UserError as `speakers` does.
    """
    parts = speakers(runs, examples)
    total, counts = {}, {name: sum(part[name].astype(int) for part in parts) for name in examples}
    for run, rows in zip(runs, parts, strict=True):
        asked = {name: these.take(np.flatnonzero(rows[name])) for name, these in examples.items() if rows[name].any()}
        count = sum(map(len, asked.values()))
        print(f"{run} speaks of {count} training examples{unfinished(run)}", file=sys.stderr)
        for name, values in outputs_of(run, asked, "train", device).items():
            total.setdefault(name, np.zeros((len(examples[name]), *values.shape[1:])))  # float64
            total[name][rows[name]] += values
    # each example by its number of teachers: (n, classes) or (n,), turned so that n is last
    return {name: (sums.T / counts[name]).T.astype(np.float32) for name, sums in total.items()}


def check_inputs(args):
    """Raises UserError for a task file or a teacher, named by flags of `multitask.py`, that is missing or of no use.

    It reads first lines only, so a mistake shows before an encoder is fetched.
    """
    unused = {"train"} if args.eval_only else {"test"} if args.skip_test else set()
    task_paths(args, [split for split in SPLITS if split not in unused])
    if args.teacher and not args.eval_only:
        folds_of(args.teacher)


def speakers(runs, examples):
    """Which teachers speak of which examples: for each run {task: bool (n,)}. At least one speaks of each example.

    Raises UserError for a folder that can be no teacher.
    """
    folds, parts, known = folds_of(runs), {}, 0
    for name, these in examples.items():
        unseen = np.array([np.isnan(these.labels) | in_fold(these.ids, fold) for fold in folds])  # (runs, n)
        seen_by_all = ~unseen.any(0)
        parts[name], known = unseen | seen_by_all, known + int(seen_by_all.sum())
    print(f"{known} of {sum(map(len, examples.values()))} training examples were seen by all teachers")
    return [{name: rows[i] for name, rows in parts.items()} for i in range(len(runs))]


def folds_of(runs):
    """What `fold_of` says of each teacher. Raises UserError as it does, and for a teacher that is named twice."""
    run_folder.check_named_once(runs)
    return [fold_of(run) for run in runs]


def fold_of(run):
    """The fold that a teacher was not trained on, "K/N", or None. Raises UserError for what can be no teacher."""
    if run_folder.is_training(run):
        raise UserError(f"--teacher {run} is still being trained, and its best model may change; wait for its end")
    try:
        data_flags(run)  # it has a best model, of these tasks
    except UserError as error:
        raise UserError(f"--teacher {error}") from None
    return flags_of(run).get("fold")
