"""Whatever the document and the tokenizer: no passage is too long, no word is lost, and each says where it stands."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from settle.documents.blocks import Block, Chunk, Place
from settle.retrieve.index.chunkers import Chunker

TEXT = "The key is rotated every week. Each new key is 32 bytes, and the old ones are kept a day; see rotate_keys()."
MOST = 70  # tokens that the embedder reads
SMALL = {"tokens": 50, "overlap": 2}  # of a passage, as far as a chunker has such settings
CHUNKERS = [
    chunker.model_validate({key: value for key, value in SMALL.items() if key in chunker.model_fields})
    for chunker in Chunker.parts().values()
]


def _word_piece() -> Tokenizer:
    """As BERT's: what stands between words never counts."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator([TEXT] * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    return made


def _byte_pairs() -> Tokenizer:
    """As GPT's: spaces and line feeds are tokens, and a text has more or fewer than its parts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return made


def _counter(tokenizer: Tokenizer):
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


COUNTS = {"word pieces": _counter(_word_piece()), "byte pairs": _counter(_byte_pairs())}

_words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=12)
_lines = st.lists(_words, min_size=1, max_size=14).map(" ".join)
_sentences = st.lists(_lines.map(lambda line: line + ". "), min_size=1, max_size=8).map("".join)
_texts = st.lists(_lines | _sentences | st.just(""), min_size=1, max_size=5).map("\n".join).filter(str.strip)
_headers = st.just("") | _lines


@st.composite
def _documents(draw):
    """Blocks one below the other in a file, a blank line between them."""
    blocks: list[Block] = []
    line = 1
    for kind in draw(st.lists(st.sampled_from(["heading", "text", "list", "code", "table"]), max_size=12)):
        text = draw(_lines if kind == "heading" else _texts)
        level = draw(st.integers(1, 4)) if kind == "heading" else draw(st.none() | st.integers(0, 4))
        header = draw(_headers) if kind == "table" else ""
        blocks.append(Block(kind, text, Place(line=line), level, lined=kind != "heading", header=header))
        line += text.count("\n") + 2
    return blocks


def _cut(chunker, blocks, count, most=MOST) -> list[Chunk]:
    return list(chunker.cut(iter(blocks), count, most))


@pytest.mark.parametrize("tokenizer", COUNTS)
@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda chunker: chunker.part_name())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(blocks=_documents())
def test_no_passage_is_too_long_and_no_word_is_lost(chunker, tokenizer, blocks):
    count = COUNTS[tokenizer]
    chunks = _cut(chunker, blocks, count)
    assert [chunk.tokens for chunk in chunks] == count([chunk.embedded for chunk in chunks])
    assert all(chunk.tokens <= MOST and chunk.text.strip() for chunk in chunks)
    # every letter in order; headings, headers and overlaps may be said in between
    said = iter("".join(chunk.text for chunk in chunks))
    assert all(letter in said for block in blocks if block.kind != "heading" for letter in "".join(block.text.split()))


@pytest.mark.parametrize("chunker", CHUNKERS, ids=lambda chunker: chunker.part_name())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(blocks=_documents())
def test_a_passage_begins_at_its_line(chunker, blocks):
    file: list[str] = []
    for block in blocks:
        file += [*block.text.split("\n"), ""]
    chunks = _cut(chunker, blocks, COUNTS["word pieces"])
    assert bool(chunks) == any(block.text.strip() for block in blocks)
    for chunk in chunks:
        first = chunk.text.split("\n")[0].strip()[:20]
        if not any(first in block.header for block in blocks):
            assert first in file[chunk.place.line - 1], chunk
