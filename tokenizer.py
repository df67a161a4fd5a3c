"""Text -> token ids -> a packed batch.

WordPiece (Wu et al., 2016) cuts a word, from the left, into the longest pieces that stand in a vocabulary: "unaffable"
becomes "una", "##ffa", "##ble". The `tokenizers` library does the cutting; this file adds what BERT (Devlin et al.,
2019) wants around it:

    one sentence      [CLS] a ... a [SEP]
    a pair            [CLS] a ... a [SEP] b ... b [SEP]      segment 0 up to the first [SEP], 1 after it

[SEP] ends a sentence. [CLS] opens the sequence. A model keeps H numbers for each token, its *hidden state*; after the
last layer, a classifier reads the hidden state of [CLS].

This file then packs many sequences into one `Batch`. T is the number of tokens of a batch, B the number of its
sequences (a sentence, or a pair in one sequence). Sequences differ in length. Most implementations fill the short ones
up with [PAD] to a rectangle (B, longest). On the CS224N data half of that rectangle is padding, and a model computes
on padding at full price. Here the sequences simply follow each other in one long row:

    ids         [CLS] good film [SEP] [CLS] no [SEP] [CLS] ...      (T,)  T = all tokens of the batch
    positions     0    1    2     3     0    1   2     0   ...      (T,)
    cu_seqlens    0                     4              7   ...      (B + 1,)  where each sequence starts, T last

`cu_seqlens` means cumulative sequence lengths, a name from FlashAttention. Hidden states are (T, H). Layers that treat
each token alone (embeddings, feed-forward layers, LayerNorm) need no mask. The [CLS] rows are
`hidden_states[batch.cls_rows]`.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from support.console import UserError
from support.vocabulary import read_wordpiece, write_wordpiece

MAX_TOKENS = 512  # BERT has this many position embeddings
ROUNDED_TO = 128  # models may have more pieces than their tokenizer, up to a multiple of this
UNKNOWN = "\U0010ffff \u2603"  # characters that hardly any vocabulary has: their piece is the unknown token


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens in all, packed without padding."""

    ids: torch.Tensor  # (T,) int64, token ids
    positions: torch.Tensor  # (T,) int64, 0, 1, 2, ... from the start of each sequence
    segments: torch.Tensor  # (T,) int64, 0 or 1
    cu_seqlens: torch.Tensor  # (B + 1,) int32, where each sequence starts, and T
    max_seqlen: int  # tokens of the longest sequence

    def __len__(self):
        return len(self.cu_seqlens) - 1

    @property
    def cls_rows(self):
        """(B,) int64: the row of each sequence's first token."""
        return self.cu_seqlens[:-1].long()

    def to(self, device):
        """The same batch on `device`."""
        tensors = (self.ids, self.positions, self.segments, self.cu_seqlens)
        return Batch(*(t.to(device, non_blocking=True) for t in tensors), self.max_seqlen)


def pack(encoded):
    """A list of B encoded sentences, each (ids, length of segment 0), to a `Batch`.

    Args: encoded, pairs of an int array (n,) and an int, as `Tokenizer.encode` returns them.
    """
    lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
    first = np.array([n for _, n in encoded], dtype=np.int64)
    cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.concatenate([ids for ids, _ in encoded]) if encoded else np.zeros(0)
    positions = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
    segments = positions >= np.repeat(first, lengths)
    return Batch(
        torch.from_numpy(ids.astype(np.int64)),
        torch.from_numpy(positions),
        torch.from_numpy(segments.astype(np.int64)),
        torch.from_numpy(cu_seqlens.astype(np.int32)),
        int(lengths.max(initial=0)),
    )


def to_padded(batch, rows):
    """Rows of a packed batch to a padded rectangle: rows (T, ...) -> (B, L, ...), and its mask (B, L) bool.

    L is the longest sequence, `batch.max_seqlen`. Behind a sequence's end stand zeros.

    `to_padded(batch, batch.ids)` gives back (input_ids, attention_mask).
    """
    lengths = batch.cu_seqlens.diff()
    mask = torch.arange(batch.max_seqlen, device=rows.device) < lengths[:, None]
    padded = rows.new_zeros((len(batch), batch.max_seqlen, *rows.shape[1:]))
    padded[mask] = rows
    return padded, mask


class Tokenizer:
    """WordPiece with the vocabulary of a pretrained model."""

    def __init__(self, folder, max_tokens=MAX_TOKENS, vocab_size=None):
        """Args: folder, with `tokenizer.json`, or with `vocab.txt` (and `tokenizer_config.json`, if there is one);
        max_tokens, at least 3, how many the model has positions for; vocab_size, how many pieces it knows.
        Raises UserError where the folder has no usable tokenizer.
        """
        self.folder, self.max_tokens = folder, min(max_tokens, MAX_TOKENS)
        if max_tokens < 3:
            raise UserError(f"{folder}: {max_tokens} positions are too few for [CLS] and two [SEP]; use another model")
        self.wordpiece = read_wordpiece(folder)
        self.wordpiece.no_padding()
        self.wordpiece.no_truncation()
        # all three have to exist
        self.cls, self.sep, _ = (self._special(token) for token in ("[CLS]", "[SEP]", "[UNK]"))
        self._pieces([UNKNOWN])
        sizes = f"the tokenizer in {folder} has {self.size} pieces, its model {vocab_size}; fetch it again"
        more = 0 if vocab_size is None else vocab_size - self.size
        if more < 0:
            raise UserError(sizes)
        if more >= ROUNDED_TO:
            print(f"{sizes}, unless they do belong together", file=sys.stderr)

    @property
    def size(self):
        """How many token ids there are: the largest, and one more for id 0."""
        return max(self.wordpiece.get_vocab().values()) + 1

    def _special(self, token):
        found = self.wordpiece.token_to_id(token)
        if found is None:
            raise UserError(f"the tokenizer in {self.folder} has no {token} token; use a BERT-style vocabulary")
        return found

    def encode(self, sentences, second_sentences=None, max_tokens=MAX_TOKENS):
        """Sentences, or pairs of sentences, to token ids with [CLS] and [SEP].

        Args: sentences, a list of n str; second_sentences, the second sentences or None; max_tokens, at least 3. What
        is longer than that, or than the model can take, loses tokens at the end; in a pair, at the end of the longer
        sentence, one by one. Returns a list of n tuples: ids, an int32 array, and the length of segment 0 (up to the
        first [SEP]).
        """
        first, max_tokens = self._pieces(sentences), min(max_tokens, self.max_tokens)
        if second_sentences is None:
            encoded = [[self.cls, *a[: max_tokens - 2], self.sep] for a in first]
            return [(np.array(ids, dtype=np.int32), len(ids)) for ids in encoded]
        encoded = []
        for a, b in zip(first, self._pieces(second_sentences), strict=True):
            a, b = truncate_longer_first(a, b, max_tokens - 3)
            encoded.append((np.array([self.cls, *a, self.sep, *b, self.sep], dtype=np.int32), len(a) + 2))
        return encoded

    def _pieces(self, sentences):
        try:
            return [e.ids for e in self.wordpiece.encode_batch_fast(sentences, add_special_tokens=False)]
        except TypeError:  # no list of str
            raise
        except Exception as error:  # the library has no class of its own
            said = f"the tokenizer in {self.folder} cannot cut a sentence ({error!s:.100})"
            raise UserError(f"{said}; use a BERT-style WordPiece vocabulary") from None

    def save(self, folder):
        """Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`, which `transformers` reads."""
        write_wordpiece(folder, self.wordpiece, self.max_tokens)


def truncate_longer_first(a, b, room):
    """Shortens the longer of two lists, item by item from its end, until len(a) + len(b) <= room.

    So a list of at most room // 2 items stays whole, and the other takes what is left. If both are longer than that,
    they end equally long; where room is odd, the longer list keeps the odd item (b, where both were equally long).
    """
    if len(a) + len(b) <= room:
        return a, b
    shorter = min(len(a), len(b), room // 2)
    keep = room - shorter if len(a) > len(b) else shorter
    return a[:keep], b[: room - keep]
