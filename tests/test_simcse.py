"""SimCSE: the loss by double loop, corpora of any size, and runs from start to encoder."""

import argparse
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import multitask
import simcse
from adamw import AdamW, linear_schedule
from bert import Bert
from support import flags as support_flags
from support import training_run
from support.corpora import CorpusPlan, TextFile
from support.loss_scaling import NoScaling
from support.safetensors import read_safetensors
from tasks import TASKS, Examples, data_path, read_examples
from tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent


def loss_by_loops(a, b, tau, negatives, hard):
    """The formula of simcse.py, in double precision."""

    def sim(x, y):
        return float(x @ y / (x.norm() * y.norm()))

    total = 0
    for i in range(len(a)):
        z = sum(math.exp(sim(a[i], b[j]) / tau) for j in range(len(a)))
        if negatives == "both":
            z += sum(math.exp(sim(a[i], a[j]) / tau) for j in range(len(a)) if j != i)
        if hard is not None:
            z += sum(math.exp(sim(a[i], hard[j]) / tau) for j in range(len(a)))
        total -= math.log(math.exp(sim(a[i], b[i]) / tau) / z)
    return total / len(a)


@pytest.mark.parametrize("negatives", ["cross", "both"])
@pytest.mark.parametrize("with_hard", [False, True])
def test_the_loss_is_the_double_loop(negatives, with_hard):
    torch.manual_seed(0)
    a, b, hard = torch.randn(3, 7, 12, dtype=torch.float64)
    hard = hard if with_hard else None
    found = simcse.contrastive_loss(a, b, 0.3, negatives, hard).item()
    assert found == pytest.approx(loss_by_loops(a, b, 0.3, negatives, hard))


def test_alignment_uniformity_and_ranks_by_loops():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 6, 5))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    pairs = [math.exp(-2 * ((a[i] - a[j]) ** 2).sum()) for i in range(6) for j in range(6) if i != j]
    assert simcse.alignment(a, b) == pytest.approx(sum(((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)) / 6)
    assert simcse.uniformity(a) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert simcse.ranks(np.array([3.0, 1, 3, 2, 3])).tolist() == [3, 0, 3, 1, 3]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling(pooling):
    model = simcse.SentenceEncoder(tiny.model().bert, pooling).eval()
    batch = tiny.batch()
    h, _ = model.bert(batch)
    bounds = batch.cu_seqlens.tolist()
    rows = [h[s:e].mean(0) if pooling == "mean" else h[s] for s, e in itertools.pairwise(bounds)]
    torch.testing.assert_close(model(batch), torch.stack(rows), rtol=1e-4, atol=1e-5)
    model.train()
    if pooling == "cls":
        torch.testing.assert_close(model(batch), torch.tanh(model.projection(torch.stack(rows))), rtol=1e-4, atol=1e-5)


def test_pairs_are_judged_by_their_sentences_embedded_one_by_one(tiny_encoder):
    model, tokenizer, rng = simcse.SentenceEncoder(tiny.model().bert, "mean"), Tokenizer(tiny_encoder), random.Random(0)
    sentences = [tiny.sentence(rng) for _ in range(16)]
    cut = [" ".join(text.split()[:4]) for text in sentences]  # of 6 tokens two are [CLS] and [SEP]
    h = np.concatenate([simcse.embeddings(model, tokenizer, [text], 64) for text in cut])
    np.testing.assert_allclose(simcse.embeddings(model, tokenizer, sentences, 6, batch_size=3), h, atol=1e-5)
    labels = np.float32([0, 4, 4.5, 5, 1, 4, 3, 2])
    found = simcse.assess(model, tokenizer, Examples([""] * 8, sentences[:8], sentences[8:], labels), 6)
    h /= np.linalg.norm(h, axis=1, keepdims=True)
    cosine, alike = (h[:8] * h[8:]).sum(1), [2, 3]
    rank = lambda values: [(values < v).sum() + (values == v).sum() / 2 for v in values]  # noqa: E731
    assert found["alignment"] == pytest.approx(((h[:8] - h[8:]) ** 2).sum(1)[alike].mean(), rel=1e-4)
    assert found["uniformity"] == pytest.approx(simcse.uniformity(h), rel=1e-4)
    assert found["pearson"] == pytest.approx(np.corrcoef(cosine, labels)[0, 1], rel=1e-4)
    assert found["spearman"] == pytest.approx(np.corrcoef(rank(cosine), rank(labels))[0, 1])


def test_a_row_gives_two_views_and_long_ones_are_cut(tiny_encoder):
    args = argparse.Namespace(normalize_length=0, max_tokens=5)
    batch = simcse.views([("good film is very old",), ("how old",)], Tokenizer(tiny_encoder), args)
    assert batch.cu_seqlens.diff().tolist() == [5, 4, 5, 4]
    assert torch.equal(batch.ids[:9], batch.ids[9:])


def test_a_step_takes_its_share_of_the_rate_and_reaches_the_embeddings(tiny_encoder):
    args = argparse.Namespace(seed=0, lr=0.01, tau=0.05, negatives="cross", normalize_length=0, max_tokens=64)
    model, rows = simcse.SentenceEncoder(tiny.model().bert, "mean"), [("good film",), ("bad story",), ("how old",)]
    optimizer = AdamW({"shared": list(model.named_parameters())}, weight_decay=0.0)
    for factor in (0.0, 0.5):
        before = model.bert.word.weight.clone()
        simcse.training_step(args, 1, factor, rows, model, optimizer, Tokenizer(tiny_encoder), NoScaling())
        assert torch.equal(model.bert.word.weight, before) == (factor == 0)


# ----- corpora


def test_a_million_lines_stream_in_bounded_memory(tmp_path):
    path = tmp_path / "corpus.txt"
    with open(path, "w") as file:
        for i in range(1_000_000):
            file.write(f"line {i} of a file that is longer than anybody wants to hold in memory at once {i * 7919}\n")
    program = (
        "import resource, sys; from support import corpora; c = corpora.TextFile(sys.argv[1], (1,));"
        "steps = corpora.CorpusPlan(len(c), 64, 1, 0).steps();"
        "rows = [c[i] for s in range(300) for i in next(steps)[1]];"
        "print(len(c), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True, check=True)
    lines, memory = map(int, done.stdout.split())
    assert lines == 1_000_000
    assert memory < 1000 * (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KB here


def test_a_text_file_is_read_line_by_line_in_an_order_of_the_seed(tmp_path):
    path = tmp_path / "corpus.txt"
    lines = [f"line {i} " + "é" * (i % 50) for i in range(10_000)]
    path.write_text("\n".join(lines[:5000]) + "\n\n   \n" + "\r\n".join(lines[5000:]))
    corpus = TextFile(path, (1,))
    assert len(corpus) == 10_000
    assert corpus.offsets.nbytes == 8 * len(corpus)  # all that grows with the file
    plan = CorpusPlan(10_000, 100, 2, 3)
    batches = [indices for _, indices in plan.steps()]
    order = [i for indices in batches[:100] for i in indices]
    assert [corpus[i] for i in sorted(order)] == [(line.strip(),) for line in lines]
    assert order != sorted(order)
    assert len(batches) == len(plan) == 200
    assert batches[100] != batches[0]  # the next epoch
    assert next(plan.steps(done=41)) == (1, order[4100:4200])  # any step, from nothing but its number


def test_pairs_have_two_or_three_columns_and_faulty_lines_are_counted(tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text("a b\tc\td\ne\tf\tg\nonly one\nh\t\ti\n")
    corpus = TextFile(path, (2, 3))
    assert [corpus[i] for i in range(len(corpus))] == [("a b", "c", "d"), ("e", "f", "g")]
    assert "2 lines left out" in capsys.readouterr().out


def test_length_normalization_keeps_longer_sentences_cut(tmp_path):
    bert = tiny.folder(tmp_path / "bert")
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(["story", "story story", "story story of dogs"]))
    args = support_flags.simcse_parser().parse_args(f"--corpus {path} --normalize_length 11 --batch_size 2".split())
    args.batch_size = 1
    corpus = simcse.open_corpus(args)
    assert [corpus[i] for i in range(len(corpus))] == [("story story of dogs",)]
    batch = simcse.views([corpus[0]], simcse.Tokenizer(bert), args)
    assert batch.cu_seqlens.tolist() == [0, 4, 8]  # [CLS] story story [SEP], twice


def test_without_a_pair_alignment_and_uniformity_are_not_defined():
    one, none = np.ones((1, 4)) / 2, np.ones((0, 4))
    assert [simcse.alignment(x, x) for x in (none, one)] == [None, 0]
    assert [simcse.uniformity(x) for x in (none, one)] == [None, None]


# ----- runs


def flags(tmp_path, more=""):
    folders = {name: tmp_path / name for name in ("bert", "data")}
    if not folders["bert"].exists():
        tiny.folder(folders["bert"], dropout=0.1)
        tiny.task_files(folders["data"])
    common = f"--bert {folders['bert']} --data {folders['data']} --batch_size 8 --epochs 2 --lr 0.001"
    return [*common.split(), *more.split()]


def test_a_run_is_made_as_its_flags_say(tmp_path, monkeypatch):
    class Made(Exception):
        pass

    def stop(args, *made, **_):
        raise Made(*made)

    monkeypatch.setattr(simcse, "TrainingRun", stop)
    more = f"--dropout 0.3 --seed 5 --weight_decay 0.2 --clip 0.7 --max_sentences 20 --out {tmp_path / 'run'}"
    with pytest.raises(Made) as found:
        simcse.main(flags(tmp_path, more))
    plan, model, optimizer = found.value.args
    assert list(plan.steps()) == list(CorpusPlan(20, 8, 2, 5).steps())
    assert {(layer.p_hidden, layer.p_attention) for layer in model.bert.layers} == {(0.3, 0.3)}
    assert (optimizer.weight_decay, optimizer.clip) == (0.2, 0.7)


def test_without_pairs_that_are_alike_the_metrics_stay_json_and_say_not_defined(tmp_path, capsys):
    argv = flags(tmp_path, "--epochs 1")
    path = data_path(tmp_path / "data", TASKS["sts"], "dev")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(line.rpartition("\t")[0] + "\t1.0" for line in lines)]) + "\n")
    simcse.main([*argv, "--out", str(tmp_path / "run")])
    assert capsys.readouterr().out.count("not defined") == 3  # of the epoch, before and after
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=float.fromhex) for line in text.splitlines()]  # fails for NaN
    assert [line["alignment"] for line in lines if line["kind"] == "dev"] == [None]


def test_a_run_writes_an_encoder_for_multitask_and_says_what_became_of_it(tmp_path, capsys, refused):
    more = "--dropout 0.3 --negatives both --weight_decay 0.01 --warmup 0.3"
    simcse.main([*flags(tmp_path, more), "--out", str(tmp_path / "run")])
    lines = capsys.readouterr().out
    assert all(name in lines for name in ("alignment", "uniformity", "pearson", "spearman", "before", "after"))
    start, end = Bert.load(tmp_path / "bert"), Bert.load(tmp_path / "run" / "encoder")
    assert end.config == start.config  # dropout as fine-tuning wants it
    assert not torch.equal(start.layers[0].up.weight, end.layers[0].up.weight)
    assert torch.equal(start.pooler.weight, end.pooler.weight)
    rates = {line["step"]: line["lr"] for line in tiny.metrics(tmp_path / "run") if line["kind"] == "train"}
    assert rates == {step: 0.001 * linear_schedule(step - 1, max(rates), 0.3) for step in rates}
    simcse.main(["--eval_only", "--out", str(tmp_path / "run")])
    again = capsys.readouterr().out.splitlines()[-1].split("|")[2:]
    after = next(line for line in lines.splitlines() if line.startswith("| after")).split("|")[2:]
    assert [float(x) for x in again if x.strip()] == [float(x) for x in after if x.strip()]
    score, encoder = ["--eval_only", "--out", tmp_path / "run"], tmp_path / "run" / "encoder"
    encoder.rename(tmp_path / "moved")
    refused(simcse.main, score, f"{tmp_path / 'run'} holds no trained model yet", "simcse.py --resume")
    shutil.copytree(tmp_path / "moved", encoder, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(simcse.main, score, f"{encoder}/model.safetensors is missing; move", "--resume")
    shutil.rmtree(encoder)
    (tmp_path / "moved").rename(encoder)
    shutil.rmtree(tmp_path / "run" / "last")
    capsys.readouterr()
    simcse.main(["--resume", "--out", str(tmp_path / "run")])  # there is nothing left to train
    assert capsys.readouterr().out.splitlines()[-1].split("|")[2:] == again
    more = f"--bert {tmp_path / 'run' / 'encoder'} --data {tmp_path / 'data'} --epochs 1 --out {tmp_path / 'tuned'}"
    multitask.main(more.split())


def test_the_default_corpus_holds_each_training_sentence_once_and_none_of_the_dev_files(tmp_path):
    args = support_flags.simcse_parser().parse_args(flags(tmp_path))
    of_split = {}
    for split in ("train", "dev"):
        found = [read_examples(data_path(args.data, task, split), task) for task in TASKS.values()]
        of_split[split] = [s for examples in found for s in examples.sentences + (examples.second_sentences or [])]
    path = data_path(args.data, TASKS["sts"], "dev")
    path.write_text(path.read_text().replace(of_split["dev"][-1], of_split["train"][3]))  # one of both
    sentences = [sentence for (sentence,) in simcse.open_corpus(args)]
    assert of_split["train"][3] not in sentences
    assert len(set(sentences)) == len(sentences)
    assert set(of_split["train"]) - set(of_split["dev"]) - set(sentences) == {of_split["train"][3]}


def test_max_sentences_draws_lines_of_any_corpus(tmp_path):
    (tmp_path / "lines").write_text("\n".join(f"line {i}" for i in range(50)))
    parse = lambda more: support_flags.simcse_parser().parse_args(flags(tmp_path, f"{more} --batch_size 8"))  # noqa: E731
    for more in (f"--corpus {tmp_path / 'lines'}", ""):
        whole, part = (simcse.open_corpus(parse(f"{more} {n}")) for n in ("", "--max_sentences 10"))
        rows = [part[i] for i in range(len(part))]
        assert len(set(rows)) == 10
        assert set(rows) < {whole[i] for i in range(len(whole))}


def test_a_random_start_that_no_machine_holds_is_refused_before_it_is_made(tmp_path, refused):
    more = f"--layers 999 --hidden 32768 --out {tmp_path / 'run'}"
    refused(simcse.main, flags(tmp_path, more), "--layers and --hidden asks for", "GB; give less")


def test_supervised_with_hard_negatives_from_a_random_start(tmp_path):
    rng = random.Random(0)
    rows = ["\t".join(tiny.sentence(rng) for _ in range(3)) for _ in range(40)]
    (tmp_path / "nli.tsv").write_text("\n".join(rows))
    more = f"--pairs {tmp_path / 'nli.tsv'} --layers 1 --hidden 64 --pooling mean --out {tmp_path / 'run'}"
    argv = flags(tmp_path, more)
    tokenizer = json.loads((tmp_path / "bert" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["good"] = 4000  # a gap between the ids
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(tokenizer))
    simcse.main(argv)
    config = Bert.load(tmp_path / "run" / "encoder").config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (1, 64, 4001)
    losses = [line["loss"] for line in tiny.metrics(tmp_path / "run") if line["kind"] == "train"]
    assert losses[1] < losses[0]


def test_a_run_resumes_bit_for_bit_on_the_same_dev_pairs(tmp_path, monkeypatch, refused):
    simcse.main([*flags(tmp_path), "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        patch.setattr(training_run, "Interrupt", tiny.StopAfter(3))
        with pytest.raises(SystemExit):
            simcse.main([*flags(tmp_path), "--out", str(tmp_path / "parts")])
    dev = data_path(tmp_path / "data", TASKS["sts"], "dev")
    text = dev.read_text()
    dev.write_text(text.replace("good", "bad"))
    refused(simcse.main, ["--resume", "--out", tmp_path / "parts"], "sts dev is not what", "--data")
    dev.write_text(text)
    other = tiny.folder(tmp_path / "other", num_attention_heads=8)
    refused(simcse.main, ["--resume", "--out", tmp_path / "parts", "--bert", other], "encoder is not what", "--bert")
    simcse.main(["--resume", "--out", str(tmp_path / "parts")])
    whole, parts = (read_safetensors(tmp_path / name / "last" / "state.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("--corpus nowhere.txt", "does not exist"),
        ("--pairs sst", "no pairs that are alike"),
        ("--pairs para --batch_size 500", "fewer than --batch_size 500; give a smaller --batch_size, or more lines"),
        ("--corpus a --pairs b", "give one of them"),
        ("--layers 2", "needs both"),
        ("--max_tokens 600", "512 positions of BERT; give less"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, capsys, more, says):
    with pytest.raises(SystemExit) as stop:
        simcse.main([*flags(tmp_path, more), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
