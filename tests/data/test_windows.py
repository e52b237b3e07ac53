"""Texts as windows: every byte is predicted once."""

from settle.data.likelihoods import first_texts, text_windows

TEXTS = ["def f(x):\n    return x\n" * 40, "é😀 日本", "", "self.x = 1\n" * 9]


def test_every_token_is_predicted_once(tiny):
    tokenizer = tiny.tokenizer
    windows = text_windows(tokenizer, TEXTS, 32)
    assert all(2 <= len(ids) <= 32 and ids[0] == tokenizer.bos_id for ids in windows.ids)
    assert windows.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert windows.total_bytes == sum(len(text.encode()) for text in TEXTS)
    for number, text in enumerate(TEXTS):
        ids = [i for ids, origin in zip(windows.ids, windows.texts, strict=True) if origin == number for i in ids[1:]]
        assert ids == tokenizer.encode(text).tolist()
    assert windows.num_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)


def test_the_first_texts(tiny):
    whole = len(tiny.tokenizer.encode(TEXTS[0]))
    assert first_texts(tiny.tokenizer, TEXTS, 10**6) == [text for text in TEXTS if text]
    (cut,) = first_texts(tiny.tokenizer, TEXTS, whole // 2)
    assert TEXTS[0].startswith(cut) and 0.4 < len(cut) / len(TEXTS[0]) < 0.6
