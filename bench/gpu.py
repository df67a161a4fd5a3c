"""Speed on a GPU: each kernel, and the whole training step, beside its floor and beside what else one could use.

    python -m bench.gpu --kernels            each kernel of kernels/, forward and forward + backward
    python -m bench.gpu --step               one training step of BERT-base, batch 64, against `transformers`
    python -m bench.gpu --step --data DIR    ... at the lengths of the real task files, not of fitted distributions
    python -m bench.gpu --tune               a handful of launch options for each kernel, the best first
    TRITON_INTERPRET=1 python -m bench.gpu --kernels --step --toy       that it runs at all, without a GPU

The floor of a kernel is the larger of two times: its bytes (each input read once, each output written once) over the
bandwidth of a large copy, and its FLOP over the rate of a large matrix product, both measured here, on this device.
`floor` in the tables is floor / time: 100 % cannot be beaten. A training step's floor adds up the same two: the matrix
products of the encoder, forward and backward, and the optimizer's 32 bytes a parameter.

Lengths are in tokens with [CLS] and [SEP]; log-normal, fitted to the training files through BERT's vocabulary:

    sst      exp(N(3.12, 0.48²)) within 3 .. 66         quora pairs     exp(N(3.36, 0.36²)) within 5 .. 240

`time` is the median in milliseconds. Launches are included: where a row says 20 % of the floor at 2,000 tokens and 80 %
at 16,384, the difference is the price of launching. `on GPU` leaves them out: the calls replayed as a CUDA graph, with
a warm cache. Rows are printed as they are measured, and a form that does not run here costs one row. The exit code is 1
where one of this project's own did not run.
"""

import platform
import sys
from datetime import date
from importlib.metadata import version

import torch

import kernels
from bench.gpu_kernels import bench_kernels
from bench.gpu_step import bench_step
from bench.measure import Setting
from bench.tune import tune
from bert import BertConfig
from kernels import INTERPRET, precision
from support.console import Parser, UserError, command
from support.downloads import MINILM, find_model
from support.flag_types import place
from tasks import TASKS, DataSet, data_path, read_examples
from tokenizer import Tokenizer

LENGTHS = {"sst": (3.12, 0.48, 3, 66), "quora": (3.36, 0.36, 5, 240)}  # mean and deviation of the log, least, most


def draw_lengths(args, batch, batches, longest):
    """Batches of lengths by name. Args: longest, what no sentence may exceed."""
    generator, lengths = torch.Generator().manual_seed(0), {}
    tokenizer = Tokenizer(find_model(MINILM)) if args.data else None
    for name, (mean, deviation, low, high) in LENGTHS.items():
        if args.data:
            task = TASKS["para" if name == "quora" else name]
            examples = read_examples(data_path(args.data, task, "train"), task).sample(20000)
            all_lengths = torch.tensor([len(ids) for ids, _ in DataSet(examples, tokenizer).encoded[0]])
            drawn = all_lengths[torch.randint(len(all_lengths), (batches, batch), generator=generator)]
        else:
            normal = torch.randn(batches, batch, generator=generator)
            drawn = (mean + deviation * normal).exp().round().long().clamp(low, high)
        lengths[name] = drawn.clamp(max=longest).tolist()
    for m in (128, 512):
        lengths[f"all {m}"] = [[min(m, longest)] * batch]
    return lengths


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.gpu", description="Speed of the kernels and of a training step.")
    parser.add_argument("--kernels", action="store_true", help="each kernel alone")
    parser.add_argument("--step", action="store_true", help="whole training steps")
    parser.add_argument("--tune", action="store_true", help="launch options of the kernels")
    parser.add_argument("--data", type=place, metavar="DIR", help="take lengths from these task files")
    parser.add_argument("--toy", action="store_true", help="tiny shapes, float32 on the CPU: does it run?")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args(argv)
    if args.toy:
        if (args.kernels or args.tune) and not INTERPRET:
            raise UserError("--toy runs the kernels in the interpreter; set TRITON_INTERPRET=1 in the environment")
        config = BertConfig(1200, 32, 1, 2, 64)
        lengths = draw_lengths(args, 3, 2, 12)
        setting = Setting(torch.device("cpu"), torch.float32, config, 3, 1, lengths, 16, False)
    else:
        if kernels.triton_backend() is None or not torch.cuda.is_available():
            raise UserError("no GPU with Triton is at hand; --toy runs everything at toy size without one")
        device = torch.device("cuda")
        lengths = draw_lengths(args, 64, 16, 512)
        dtype = precision.half_dtype(device) or torch.float32
        setting = Setting(device, dtype, BertConfig(), 64, 20, lengths, 16384, not args.no_compile)
    name = platform.processor() if setting.device.type == "cpu" else torch.cuda.get_device_name()
    print(f"{date.today()}, {name}, torch {torch.__version__}, triton {version('triton')}")
    print(f"command: python -m bench.gpu {' '.join(sys.argv[1:] if argv is None else argv)}\n")
    broken = []
    for wanted, bench in ((args.kernels, bench_kernels), (args.step, bench_step), (args.tune, tune)):
        if wanted:
            broken += bench(setting)
            print()
    if broken:
        print("these should run and do not, see the tracebacks:", *broken, sep="\n  ")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
