"""The files of a WordPiece tokenizer, as `transformers` reads and writes them.

tokenizer.json           all of it, as the `tokenizers` library writes it
vocab.txt                one piece a line, whose number, from 0, is the piece's id: how the first BERTs came
tokenizer_config.json    with vocab.txt: what becomes of capitals, accents and Chinese characters
"""

import json
from pathlib import Path

import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from support.console import UserError
from support.files import read_json, read_text, replacing, write_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_wordpiece(folder):
    """The library's tokenizer of a model folder. Raises UserError where it has no usable one."""
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return _from_vocabulary(Path(folder))
    read_json(path, {"model": dict}, remedy="there is no usable tokenizer; fetch the model again")
    try:
        return tokenizers.Tokenizer.from_str(read_text(path))
    except BaseException as error:  # the library raises bare Exception, and panics are not even that
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise UserError(f"{folder} has no usable tokenizer ({error!s:.100}); fetch the model again") from None


def _from_vocabulary(folder):
    if not (folder / "vocab.txt").exists():
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.txt; name the folder of a BERT model")
    kinds = {"do_lower_case": bool, "strip_accents": (bool, type(None)), "tokenize_chinese_chars": bool}
    path = folder / "tokenizer_config.json"
    config = read_json(path, optional=kinds) if path.exists() else {}
    pieces = [line.rstrip("\r") for line in read_text(folder / "vocab.txt").rstrip("\r\n").split("\n")]
    ids = {piece: i for i, piece in enumerate(pieces)}  # of equal lines the last counts
    ids |= {_hole(i): i for i, piece in enumerate(pieces) if not piece or ids[piece] != i}
    ids.pop("", None)
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    library.normalizer = BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),  # None: as the capitals
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    library.pre_tokenizer = BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    library.add_special_tokens([token for token in SPECIAL if token in ids])
    return library


def _hole(i):
    """A piece for an id that no other has, so that a line of vocab.txt stands for it. No word has a space."""
    return f"[hole {i}]"


def write_wordpiece(folder, library, max_tokens):
    """Writes the three files. Args: library, the library's tokenizer; max_tokens, how many the model takes.

    `transformers` puts a `BertTokenizer` together from the settings in tokenizer_config.json. A tokenizer that is none
    it must read as it stands in tokenizer.json.
    """
    folder, ids = Path(folder), library.get_vocab()
    if library.post_processor is None and {"[CLS]", "[SEP]"} <= ids.keys():
        pair = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
        single, both = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
        library.post_processor = tokenizers.processors.TemplateProcessing(single, both, pair)
    with replacing(folder / "tokenizer.json") as file:
        file.write(library.to_str(pretty=True).encode())
    pieces = {i: piece for piece, i in ids.items() if not {"\n", "\r"} & set(piece)}
    lines = [pieces.get(i, _hole(i)) for i in range(max(ids.values()) + 1)]
    with replacing(folder / "vocab.txt") as file:
        file.write("".join(line + "\n" for line in lines).encode())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
    config |= {f"{token[1:-1].lower()}_token": token for token in SPECIAL if token in ids}
    if _is_bert(library):
        normalizer = library.normalizer
        config |= {"tokenizer_class": "BertTokenizer", "do_lower_case": normalizer.lowercase}
        config |= {"strip_accents": normalizer.strip_accents, "tokenize_chinese_chars": normalizer.handle_chinese_chars}
    write_json(folder / "tokenizer_config.json", config)


def _is_bert(library):
    """Whether `transformers` builds the same tokenizer from a vocabulary and the three settings."""
    model, normalizer = json.loads(library.to_str())["model"], library.normalizer
    of_pieces = model["type"] == "WordPiece" and model["continuing_subword_prefix"] == "##"
    usual = isinstance(normalizer, BertNormalizer) and normalizer.clean_text
    return of_pieces and usual and isinstance(library.pre_tokenizer, BertPreTokenizer)
