"""What stands around a training loop: where the run goes on, what it records and saves, and when it stops.

    with TrainingRun(args, plan, model, optimizer, data=..., save_model=...) as run:
        for step, epoch, batches in run.steps():
            run.record(training_step(...))
            if run.epoch_ends:
                run.evaluated(metrics, score)

One process at a time trains in a folder: `with` holds its lock (`run_folder.py` has the files). A run begins with its
first finished step. Until then the folder holds nothing but the lock, so a start that fails leaves no run behind.
"""

import collections
import contextlib
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import mean

import torch

from kernels.cpu import libraries
from support import distributed, files, folders, metrics_file, run_folder
from support.console import UserError, progress

READ_EVERY = 20  # steps; reading a loss waits for the GPU


class TrainingRun:
    """One run of a training command, new or resumed."""

    def __init__(self, args, plan, model, optimizer, *, data, save_model, extra=None, best="best", rate_flags="--lr"):
        """Args: args, the command's flags; plan, its steps: `len(plan)`, `plan.epoch_steps`, `plan.steps(done)`, as
        `sampling.Plan` has them; optimizer, an `AdamW`; data, texts that change with what the run reads, by its name;
        save_model, a function that writes the model into a folder; extra, more tensors that belong to the state, by
        name; best, the name of the best model's folder; rate_flags, what to lower if training diverges, for messages.
        """
        self.args, self.plan, self.rate_flags, self.save_model = args, plan, rate_flags, save_model
        self.folder, self.best = Path(args.out), Path(args.out) / best
        self.state = model, optimizer, extra or {}, vars(args)  # as `run_folder` takes it
        # beside the tensors: steps done, best dev score, which data, {pair: [steps in conflict, steps]} of this epoch
        self.position = {"step": 0, "best": -math.inf, "data": data, "conflicts": {}, "products": libraries.choice()}
        self.writes = distributed.rank() == 0
        self.begun = False
        self.finished = False  # True once all steps are done, False where Ctrl-C stopped the run
        self.pending = []  # (step, what `record` was given), not read yet
        self.open = contextlib.ExitStack()

    def __enter__(self):
        with distributed.rank_0_first():
            if self.writes:
                self.lock = self.open.enter_context(run_folder.lock(self.folder))
        folders.check_vacant(self.folder, self.best.name, "last", "metrics.jsonl", "predictions")
        data = self.position["data"]
        self.position |= run_folder.load_state(self.folder, *self.state, len(self.plan)) or {}
        if len(self.plan) and run_folder.has_lost_state(self.folder, self.best.name):
            scored = "--eval_only scores it again, " * (not files.is_vacant(self.best))
            raise UserError(f"{self.folder} has trained, and its last state is gone; {scored}another --out trains anew")
        self._check_data(data, self.position["data"])
        self.position["data"] = data  # an older run knew less of them
        libraries.use(self.position["products"])  # whose last bits a resumed run must repeat
        done = self.position["step"]
        best = run_folder.best_folder(self.folder, self.best.name)
        if done and not files.is_vacant(best):
            folders.check_whole(best, self.best.name)
        if done >= self.plan.epoch_steps and files.is_vacant(best):
            print(f"{self.best} is gone: the model of step {done} takes its place", file=sys.stderr)
            self.position["best"] = -math.inf
            self._save_best()
        self.interrupt = self.open.enter_context(Interrupt())
        self.bar = self.open.enter_context(progress(len(self.plan), done, " steps", "training", self.writes))
        return self

    def __exit__(self, *error):
        return self.open.__exit__(*error)

    def _check_data(self, now, before):
        """Raises UserError where a run would go on with other data. Args: what it reads now and read before, texts."""
        before = before if isinstance(before, dict) else {"corpus": before}  # of older code
        changed = [name for name in now if before.get(name, now[name]) != now[name]]
        if not changed:
            return
        fault = f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} not what"
        if self.position["step"] == len(self.plan):
            remedy = f"{run_folder.ANOTHER} starts a new run"
            raise UserError(f"{self.folder} is finished, and {fault} it was started with; {remedy}")
        flags = [f"--{name}" for name in run_folder.READS if getattr(self.args, name, None)]
        flags += ["--teacher (in the order of before)"] * bool(getattr(self.args, "teacher", None))
        remedy = f"name what it read with {', '.join(flags)}, or choose {run_folder.ANOTHER}"
        raise UserError(f"{fault} {self.folder} was started with; {remedy}")

    def steps(self):
        """What is still to do: (step from 1, epoch from 1, batches). The caller calls `record` in each step."""
        done = self.position["step"]
        for step, (epoch, batches) in enumerate(self.plan.steps(done), done + 1):
            self.step, self.epoch, self.epoch_ends = step, epoch, step % self.plan.epoch_steps == 0
            yield step, epoch, batches
            if self.saves and self.writes:
                self.position["step"] = step
                run_folder.save_state(self.folder, *self.state, self.position)
            if self.stops and step < len(self.plan):
                return
        self.finished = True

    def record(self, values):
        """Call after each step. Args: values, a dict of

            losses              {name: tensor ()}, of this process's shard: the loss of the batch is their sum
            penalties           likewise, a list of (name, tensor ()), where there are any
            norm                the norm of the gradient, a tensor (); absent where the step was skipped
            conflicts           {pair of tasks: bool}, with gradient surgery only
            lr                  the learning rate, a float, where it is to be recorded

        Raises UserError for a value that is not finite, and where the folder was moved or removed.
        """
        if self.writes:
            run_folder.check_lock(self.lock, self.folder)
        if self.writes and not self.begun:
            files.write_json(self.folder / "config.json", vars(self.args))  # before all others, see `check_vacant`
            files.recover_folder(self.best)
            if self.position["step"] == 0:
                run_folder.begin_states(self.folder)
            metrics_file.rewind(self.folder, self.position["step"])
            if self.position["step"] == 0:
                metrics_file.append(self.folder, kind="start", step=0, products=self.position["products"])
        self.begun = True
        self.pending.append((self.step, values))
        for pair, found in values.get("conflicts", {}).items():
            count = self.position["conflicts"].setdefault(pair, [0, 0])
            count[0] += found
            count[1] += 1
        self.bar.update()
        self.stops = distributed.any_of(self.interrupt.asked)
        self.saves = self.epoch_ends or self.stops or self.step % self.args.save_every == 0
        if self.saves or self.step % READ_EVERY == 0:
            self._write_means()

    def evaluated(self, metrics, score=None):
        """Call at the end of an epoch. Keeps the model where it is the best so far.

        Args: metrics, floats by name, None for one that is not defined; score, what "best" is judged by, or None: the
        latest model is the best. Raises UserError where the folder was moved or removed.
        """
        metrics = metrics if score is None else metrics | {"score": score}
        texts = (f"{name} {'not defined' if x is None else format(x, '.3f')}" for name, x in metrics.items())
        self.bar.write(f"epoch {self.epoch}: " + ", ".join(texts))
        if self.position["conflicts"]:
            found = ", ".join(f"{pair} {k / n:.0%}" for pair, (k, n) in self.position["conflicts"].items())
            self.bar.write(f"epoch {self.epoch}: gradients in conflict: {found}")
            self.position["conflicts"] = {}
        if self.writes:
            run_folder.check_lock(self.lock, self.folder)
            metrics_file.append(self.folder, kind="dev", step=self.step, epoch=self.epoch, **metrics)
        if score is None or score > self.position["best"]:
            self._save_best()
        if score is not None:
            self.position["best"] = max(score, self.position["best"])

    def _save_best(self):
        if self.writes:
            with files.replacing_folder(self.best) as folder:
                self.save_model(folder)

    def _write_means(self):
        """Writes a line with the means over the pending steps, and leaves none pending."""
        pending, self.pending = self.pending, []
        entries = []  # (step, name in the line, name in a message, value)
        for step, values in pending:
            for name, loss in values["losses"].items():
                entries.append((step, name, name if name == "loss" else f"loss of {name}", loss))
            entries += [(step, name, name, penalty) for name, penalty in values.get("penalties", ())]
        of_shards = len(entries)
        taken = [(step, values["norm"]) for step, values in pending if "norm" in values]
        entries += [(step, "gradient norm", "gradient norm", norm) for step, norm in taken]
        found = torch.stack([value.detach().float() for *_, value in entries]).cpu()
        distributed.sum_(found[:of_shards])  # the norm is the same in every process
        by_name = collections.defaultdict(list)
        for (step, name, text, _), value in sorted(zip(entries, found.tolist(), strict=True), key=lambda e: e[0][0]):
            if not math.isfinite(value):
                raise UserError(f"the {text} became {value} at step {step}; {self._remedy(step)}")
            by_name[name].append(value)
        for _, values in pending:
            for pair, conflict in values.get("conflicts", {}).items():
                by_name[f"conflict {pair}"].append(float(conflict))
        means = {name: mean(values) for name, values in by_name.items()}
        losses = dict.fromkeys(name for _, values in pending for name in values["losses"])
        self.bar.set_postfix_str(" ".join(f"{name} {means[name]:.3f}" for name in losses), refresh=False)
        # the steps that the line stands for; with surgery only those of several tasks, which can conflict
        steps = sum(values.get("conflicts") != {} for _, values in pending)
        rate = {"lr": pending[-1][1]["lr"]} if "lr" in pending[-1][1] else {}
        if self.writes:
            metrics_file.append(
                self.folder, kind="train", step=self.step, epoch=self.epoch, steps=steps, **rate, **means
            )

    def _remedy(self, step):
        if step == 1:
            return "no weight has moved yet, so look at the data, the weights of --bert and the flags of methods"
        return f"start again with a lower {self.rate_flags} and another --out"


def use_kept_products(folder):
    """Takes over the product libraries of the run in a folder, for what is computed before a `TrainingRun` does it."""
    for line in metrics_file.read(folder):
        libraries.use(line.get("products", {}))


class Interrupt:
    """`with Interrupt() as interrupt`: Ctrl-C (or SIGTERM) sets `interrupt.asked`; a second one stops at once.

    So does a terminal that is closed (SIGHUP), unless `nohup` was asked for. torchrun forwards a signal that the
    processes have seen already: what comes within two seconds is the same one.
    """

    def __enter__(self):
        self.asked = False
        self.terminals = [number for number in (1, 2) if os.isatty(number)]
        numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup
            numbers.remove(signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread():  # a notebook's, say: signals are not for it
            numbers.clear()
        self.before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def _handle(self, number, frame):
        if number == signal.SIGHUP:  # nobody reads what is still to be printed, and printing it would fail
            for terminal in self.terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if self.asked and time.monotonic() > self.since + 2:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()
            if distributed.rank() == 0:
                with contextlib.suppress(OSError):  # nobody reads it
                    os.write(2, b"\nthis saves, then stops; a second Ctrl-C stops at once, and saves nothing\n")

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
