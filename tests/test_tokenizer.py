import random

import numpy as np
import pytest
import torch
from conftest import write_vocabulary

from support.console import UserError
from tokenizer import Tokenizer, from_padded, pack, to_padded, truncate_longer_first


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(folder)
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


def test_an_unknown_word_is_cut_into_its_pieces(tokenizer):
    ids, _ = tokenizer.encode(["gd"])[0]
    assert pieces(tokenizer, ids) == ["[CLS]", "g", "##d", "[SEP]"]


def test_truncation_takes_from_the_longer_sentence_one_token_at_a_time():
    def slow(a, b, room):
        while len(a) + len(b) > room:
            if len(a) >= len(b):
                a = a[:-1]
            else:
                b = b[:-1]
        return a, b

    rng = random.Random(0)
    for _ in range(500):
        a, b = ([*range(rng.randint(0, 30))] for _ in range(2))
        room = rng.randint(0, 40)
        assert truncate_longer_first(a, b, room) == slow(a, b, room)


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


def test_padded_tensors_come_and_go():
    torch.manual_seed(0)
    lengths = [3, 1, 5]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, 50, (3, 5)) * mask
    segments = torch.randint(0, 2, (3, 5)) * mask
    batch = from_padded(ids, mask.long(), segments)
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
    back, back_mask = to_padded(batch, batch.ids)
    assert torch.equal(back, ids)
    assert torch.equal(back_mask, mask)
    assert torch.equal(to_padded(batch, batch.segments)[0], segments)
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
