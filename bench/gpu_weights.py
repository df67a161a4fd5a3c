"""A pretrained model in float16, half the size: to carry to a GPU without a network (`make gpu`).

    python -m bench.gpu_weights models/float16                            MiniLM: 46 MB in place of 92
    python -m bench.gpu_weights models/float16 --bert bert-base-uncased

float16 rounds a weight by at most 1 part in 2,000, or by 3e-8 where it is below 6e-5. `Bert.load` makes float32 of it
again, and trains that.
"""

import shutil
import sys
from pathlib import Path

import torch

from bert import Bert
from support import files
from support.console import Parser, UserError, command
from support.downloads import MINILM, find_model
from support.flag_types import place
from support.safetensors import write_safetensors
from weights import to_huggingface_names


@command
def main(argv=None):
    parser = Parser(prog="python -m bench.gpu_weights", description="Write a pretrained model in float16.")
    parser.add_argument("out", type=place, help="the folder to write")
    parser.add_argument("--bert", default=MINILM, help="the model")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if not files.is_vacant(out):
        raise UserError(f"{out} is there already; name another folder, or move it away")
    source = find_model(args.bert)
    bert = Bert.load(source)
    tensors = {name: tensor.half() for name, tensor in to_huggingface_names(bert.state_dict()).items()}
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"{args.bert} has weights beyond 65,504, which float16 cannot hold; carry it as it is")
    with files.replacing_folder(out) as folder:
        bert.config.save(folder)
        for path in (source / name for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json")):
            if path.exists():
                shutil.copyfile(path, folder / path.name)
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.0f} MB")


if __name__ == "__main__":
    sys.exit(main())
