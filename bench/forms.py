"""What the CPU's forms buy: each operation of `kernels/plain.py` against its fast form, forward and backward.

    python -m bench.forms                 MiniLM's shapes, 32 sentences of 6 to 44 tokens

Both forms run in turn in one process on the same inputs. The table has the medians.
"""

import statistics
import time

import torch

from bert import LayerNorm
from kernels import cpu, plain
from kernels.plain import Update
from support.console import Parser, command, table
from support.flag_types import BATCH, positive

H, F, HEADS, WORDS = 384, 1536, 12, 30522


def cases(sentences, seed=0):
    """name -> a function of the forms that does one forward and backward pass (or one step)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, 45, (sentences,), generator=generator)
    cu_seqlens, longest = torch.cat((torch.zeros(1), lengths.cumsum(0))).int(), int(lengths.max())
    T = int(cu_seqlens[-1])
    new = lambda *shape: (torch.randn(shape, generator=generator) / 10).requires_grad_()  # noqa: E731
    x, wide, up, up_bias, down, bias = new(T, H), new(T, 3 * H), new(F, H), new(F), new(H, F), new(H)
    tables, norm = (new(WORDS, H), new(512, H), new(2, H)), LayerNorm(H, 1e-12)
    torch.nn.init.ones_(norm.weight), torch.nn.init.zeros_(norm.bias)
    for tensor in tables:
        tensor.grad = torch.zeros_like(tensor)  # as `adamw.py` keeps it
    ids = torch.randint(WORDS, (T,), generator=generator)
    qkv_weight, qkv_bias = new(3 * H, H), new(3 * H)
    flat = Update(*torch.rand(4, 10_000_000, generator=generator), 1e-5, 1e-8, 1.0)

    def passes(call):
        return lambda forms: call(forms).sum().backward()

    return {
        "linear, 384 to 1152": passes(lambda f: f.linear(x, qkv_weight, qkv_bias)),
        "feed_forward": passes(lambda f: f.feed_forward(x, up, up_bias, down)),
        "embed": passes(lambda f: f.embed(ids, ids % 512, ids % 2, tables, norm)),
        "dropout": passes(lambda f: f.dropout(x, 0.1)),
        "attention": passes(lambda f: f.attention(wide, cu_seqlens, longest, HEADS, 0.1)),
        "cls_attention": passes(lambda f: f.cls_attention(x, qkv_weight, qkv_bias, cu_seqlens, longest, HEADS, 0.1)),
        "add_norm": passes(lambda f: f.add_norm(x, bias, x, norm, 0.1)),
        "adamw, 10 million parameters": lambda f: f.adamw([flat], 1.0, (0.9, 0.999)),
    }


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.forms", description="The plain operations against the CPU's fast forms.")
    parser.add_argument("--sentences", type=positive(int, most=BATCH), default=32)
    parser.add_argument("--runs", type=positive(int), default=15)
    args = parser.parse_args(argv)
    rows = []
    for name, call in cases(args.sentences).items():
        times = {plain: [], cpu: []}
        for _ in range(args.runs + 2):
            for forms, record in times.items():
                start = time.perf_counter()
                with torch.set_grad_enabled(not name.startswith("adamw")):
                    call(forms)
                record.append(1e3 * (time.perf_counter() - start))
        slow, fast = (statistics.median(record[2:]) for record in times.values())
        rows.append([name, f"{slow:.2f}", f"{fast:.2f}", f"{slow / fast:.1f}"])
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, T = tokens of {args.sentences} sentences\n")
    print(table(["operation", "plain, ms", "CPU's form, ms", "times as fast"], rows))


if __name__ == "__main__":
    main()
