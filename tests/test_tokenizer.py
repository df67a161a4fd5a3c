import itertools
import json
import os

import numpy as np
import pytest
import tiny
import tokenizers
import torch

from support.console import UserError
from support.files import beside
from tokenizer import Tokenizer, pack, to_padded, truncate_longer_first


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    tiny.write_vocabulary(folder)
    return Tokenizer(folder)


def pieces(tokenizer, ids):
    return [tokenizer.wordpiece.id_to_token(int(i)) for i in ids]


def test_a_sentence_and_a_pair_stand_between_the_special_tokens(tokenizer):
    ids, first = tokenizer.encode(["Good film!"])[0]
    assert pieces(tokenizer, ids) == ["[CLS]", "good", "film", "!", "[SEP]"]
    assert first == 5
    ids, first = tokenizer.encode(["good"], ["Not bad"])[0]
    assert pieces(tokenizer, ids) == ["[CLS]", "good", "[SEP]", "not", "bad", "[SEP]"]
    assert first == 3


def test_a_folder_s_own_padding_and_truncation_play_no_part(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.enable_padding(length=9)
    other.enable_truncation(3)
    other.save(str(tmp_path / "tokenizer.json"))
    for text in ("good", "not a good film at all"):
        assert Tokenizer(tmp_path).encode([text])[0][0].tolist() == tokenizer.encode([text])[0][0].tolist()


def test_an_unknown_word_is_cut_into_its_pieces(tokenizer):
    ids, _ = tokenizer.encode(["gd"])[0]
    assert pieces(tokenizer, ids) == ["[CLS]", "g", "##d", "[SEP]"]


def test_pairs_are_cut_as_the_tokenizers_library_cuts_them():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for room in (1, 2, 5, 8, 9, 12, 13, 14, 15):
        words.enable_truncation(room, strategy="longest_first")
        for i, j in itertools.product(range(1, 17), repeat=2):
            expected = words.encode("a " * i, "b " * j, add_special_tokens=False).ids
            a, b = truncate_longer_first([0] * i, [1] * j, room)
            assert a + b == expected, (i, j, room)


def test_pairs_are_cut_one_token_at_a_time_from_the_longer_one():
    for a, b, room in itertools.product(range(20), range(20), range(12)):
        left, right = a, b
        while left + right > room:
            if left > right or (left == right and a <= b):
                left -= 1
            else:
                right -= 1
        assert tuple(map(len, truncate_longer_first("x" * a, "y" * b, room))) == (left, right)


def test_nothing_is_longer_than_512_tokens(tokenizer):
    long = "good " * 1000
    for encoded in (tokenizer.encode([long]), tokenizer.encode([long], ["bad film"]), tokenizer.encode([long], [long])):
        ids, _ = encoded[0]
        assert len(ids) == 512
        assert ids[-1] == tokenizer.sep
    ids, first = tokenizer.encode([long], ["bad film"])[0]
    assert pieces(tokenizer, ids[first:]) == ["bad", "film", "[SEP]"]


def test_pack_puts_sentences_in_one_row():
    batch = pack([(np.array([7, 8, 9]), 3), (np.array([5, 6, 4, 3]), 2)])
    assert batch.ids.tolist() == [7, 8, 9, 5, 6, 4, 3]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.segments.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 7]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 4
    assert batch.cls_rows.tolist() == [0, 3]
    assert len(batch) == 2


def test_an_empty_batch_packs():
    batch = pack([])
    assert len(batch) == 0
    assert batch.ids.shape == (0,)


def test_a_packed_batch_comes_apart_into_padded_rows():
    lengths = [3, 1, 5]
    encoded = [(np.arange(1, n + 1), min(n, 2)) for n in lengths]
    batch = pack(encoded)
    ids, mask = to_padded(batch, batch.ids)
    assert torch.equal(mask, torch.arange(5) < torch.tensor(lengths)[:, None])
    assert ids.tolist() == [[1, 2, 3, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert to_padded(batch, batch.segments)[0].tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]
    assert to_padded(batch, torch.ones(9, 7))[0].shape == (3, 5, 7)


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    from_vocabulary = Tokenizer(tmp_path)
    for text in ("Good film, the dull cat sleeps?", "Ünknown naïve 12!", ""):
        ids = tokenizer.encode([text])[0][0].tolist()
        assert again.encode([text])[0][0].tolist() == ids
        assert from_vocabulary.encode([text])[0][0].tolist() == ids


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="no usable tokenizer"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="a pipe"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"model": 3}', "model cannot be 3"),
        (b'{"model": {"type": "WordPiece"}}', "no usable tokenizer"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe", "UTF-8"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, raw, reason):
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(UserError, match=reason) as refused:
        Tokenizer(tmp_path)
    assert len(str(refused.value)) - len(str(tmp_path)) < 250


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "BPE", "Unigram"])
def test_an_unknown_token_that_is_none_of_the_vocabulary_is_found_while_loading(tokenizer, tmp_path, kind):
    tokenizer.save(tmp_path)
    text = json.loads((tmp_path / "tokenizer.json").read_text())
    model = text["model"] | {"type": kind, "unk_token": "<unk>", "merges": [], "unk_id": None, "byte_fallback": False}
    if kind == "Unigram":
        model["vocab"] = [[piece, -1.0] for piece in model["vocab"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(text | {"model": model}))
    with pytest.raises(UserError, match=r"cannot cut a sentence .*(UNK|[Uu]nk)"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("sentences", ["a film", [None], [1.5]])
def test_what_is_no_list_of_str_is_not_blamed_on_the_vocabulary(tokenizer, sentences):
    with pytest.raises(TypeError):
        tokenizer.encode(sentences)


def test_ids_with_gaps_between_them_count_up_to_the_largest(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = json.loads((tmp_path / "tokenizer.json").read_text())
    size = text["model"]["vocab"]["runs"] = 4000
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    assert Tokenizer(tmp_path).size == size + 1
    with pytest.raises(UserError, match="has 4001 pieces, its model 4000"):
        Tokenizer(tmp_path, vocab_size=size)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [True, False, None])
@pytest.mark.parametrize("chinese", [True, False])
def test_capitals_accents_and_chinese_characters_are_as_the_folder_says(tmp_path, lower, accents, chinese):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "café", "Café", "Cafe", "中", "中国", "##国"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    stripped = lower if accents is None else accents
    word = ("cafe" if lower else "Cafe") if stripped else ("café" if lower else "Café")
    assert pieces_of(tokenizer, "Café") == [word]
    assert pieces_of(tokenizer, "中国") == (["中", "[UNK]"] if chinese else ["中国"])
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved.items() >= (config | {"tokenizer_class": "BertTokenizer"}).items()


def pieces_of(tokenizer, text):
    return pieces(tokenizer, tokenizer.encode([text])[0][0])[1:-1]


def test_a_tokenizer_that_is_not_the_usual_one_is_saved_as_it_stands(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(text | {"normalizer": None}))
    again = Tokenizer(tmp_path)
    again.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["cls_token"] == "[CLS]"
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["type"] == "TemplateProcessing"


def test_duplicate_and_blank_lines_of_a_vocabulary_shift_no_id(tmp_path):
    lines = ["[PAD]", "[UNK]", "good", "", "[CLS]", "[SEP]", "good", "bad", "\u2028", "bad", "film", "", ""]
    (tmp_path / "vocab.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    first = Tokenizer(tmp_path)
    ids = first.encode(["good bad film"])[0][0].tolist()
    assert ids == [4, 6, 9, 10, 5]
    first.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").split("\n")[9:11] == ["bad", "film"]
    assert Tokenizer(tmp_path).encode(["good bad film"])[0][0].tolist() == ids
    (tmp_path / "tokenizer.json").unlink()
    assert Tokenizer(tmp_path, vocab_size=11).encode(["good bad film"])[0][0].tolist() == ids


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_a_full_disk_names_the_file(tokenizer, tmp_path):
    os.symlink("/dev/full", beside(tmp_path / "vocab.txt", "part"))
    with pytest.raises(OSError, match="No space left") as full:
        tokenizer.save(tmp_path)
    assert full.value.filename == str(tmp_path / "vocab.txt")


def test_a_tokenizer_of_another_size_than_its_model_is_told_or_refused(tokenizer, tmp_path, capsys):
    tokenizer.save(tmp_path)
    for more in (0, 127):  # a table rounded up
        Tokenizer(tmp_path, vocab_size=tokenizer.size + more)
    assert capsys.readouterr().err == ""
    Tokenizer(tmp_path, vocab_size=tokenizer.size + 128)  # a vocab.txt cut short, or of another model
    assert f"has {tokenizer.size} pieces, its model {tokenizer.size + 128};" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"has {tokenizer.size} pieces, its model {tokenizer.size - 1};"):
        Tokenizer(tmp_path, vocab_size=tokenizer.size - 1)


def test_a_model_without_room_for_the_special_tokens_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    ids, first = Tokenizer(tmp_path, max_tokens=3).encode(["good"], ["bad"])[0]
    assert (len(ids), first) == (3, 2)
    with pytest.raises(UserError, match="2 positions are too few"):
        Tokenizer(tmp_path, max_tokens=2)
