"""Conversations as they are kept: by several tabs at once, on a full disk, and read from files that anyone wrote."""

import errno
import json
import threading

import pytest

from settle.base import files
from settle.base.errors import ResourceError, UsageError
from settle.data.layouts.preference import Preference
from settle.infer import conversations as kept_chats
from settle.infer.conversations import Conversation, Exchange, conversations


class Session:
    """Answers with these pieces; an error among them is raised."""

    def __init__(self, *pieces, is_cut=False):
        self._pieces, self._is_cut = pieces, is_cut

    def __call__(self, before):
        self.before = before
        return self

    def answer(self, text, begun=""):
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        return self._is_cut


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    return tmp_path / "chats"


def ask(chat, text, *pieces, is_cut=False):
    """One exchange after the one that is shown."""
    exchange = Exchange(text, chat.last)
    session = Session(*pieces, is_cut=is_cut)
    assert "".join(chat.reply(exchange, "tiny", session)) == "".join(pieces)
    return exchange, session


def shown(chat):
    return [(exchange.text, chat.messages[exchange.answer].content) for exchange in chat.exchanges]


def test_a_conversation_is_read_as_it_was_kept(folder):
    chat = Conversation()
    ask(chat, "What  is\nit?", "It ", "is.")
    exchange, session = ask(chat, "And now?", "No", "w.", is_cut=True)
    assert session.before == [{"role": "user", "content": "What  is\nit?"}, {"role": "assistant", "content": "It is."}]
    again = Conversation.read(chat.id)
    assert again.title == "What is it?" and again.model == "tiny"
    assert shown(again) == [("What  is\nit?", "It is."), ("And now?", "Now.")]
    assert again.messages[exchange.answer].is_cut and not again.messages[1].is_cut
    assert {path.stat().st_mode & 0o077 for path in folder.glob("*.json")} == {0}


def test_versions_stay_beside_each_other():
    chat = Conversation()
    exchange, _ = ask(chat, "One?", "1", is_cut=True)
    list(chat.reply(exchange, "tiny", Session(", 1")))  # continued
    other = Exchange("One?", None, exchange.question)
    list(chat.reply(other, "tuned", Session("uno")))
    ask(chat, "Two?", "dos")
    assert shown(chat) == [("One?", "uno"), ("Two?", "dos")]
    chat.show(exchange.answer)
    assert shown(Conversation.read(chat.id)) == [("One?", "1, 1")]
    assert chat.versions(exchange.answer) == [exchange.answer, other.answer]
    chat.show(other.answer)
    assert shown(chat) == [("One?", "uno"), ("Two?", "dos")]


def test_a_stopped_answer_is_kept_and_one_that_fails_at_once_is_not(folder):
    chat = Conversation()
    pieces = chat.reply(Exchange("Go on", None), "tiny", Session("a", "b", "c"))
    assert [next(pieces), next(pieces)] == ["a", "b"]
    pieces.close()
    assert shown(Conversation.read(chat.id)) == [("Go on", "ab")] and chat.messages[1].is_cut
    failing = Conversation()
    with pytest.raises(UsageError):
        list(failing.reply(Exchange("x", None), "tiny", Session(UsageError("too long"))))
    assert len(list(folder.glob("*.json"))) == 1
    with pytest.raises(UsageError):
        list(failing.reply(Exchange("x", None), "tiny", Session("half", UsageError("it died"))))
    assert shown(Conversation.read(failing.id)) == [("x", "half")]


def test_two_tabs_lose_nothing_of_each_other():
    chat = Conversation()
    ask(chat, "Hi", "Hello")
    tabs = [Conversation.read(chat.id) for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(tab, f"From {n}", "yes")) for n, tab in enumerate(tabs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Conversation.read(chat.id)
    assert {m.content for m in again.messages if m.after == 1} == {f"From {n}" for n in range(4)}
    assert len(again.messages) == 10
    for number, tab in enumerate(tabs):
        assert shown(tab)[-1] == (f"From {number}", "yes")


def test_a_full_disk_loses_nothing(monkeypatch, folder):
    chat = Conversation()
    ask(chat, "Hi", "Hello")
    before = Conversation.read(chat.id)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    exchange = Exchange("More?", chat.last)
    with monkeypatch.context() as patch:
        patch.setattr(kept_chats, "write_atomic", full)
        with pytest.raises(ResourceError, match="No space left"):
            list(chat.reply(exchange, "tiny", Session("Much ", "more.")))
        with pytest.raises(ResourceError):
            chat.correct(1, "Hello you")
        assert chat.messages == before.messages and exchange.answer is None
    assert Conversation.read(chat.id) == before
    list(chat.reply(exchange, "tiny", Session("Much more.")))
    assert shown(chat)[-1] == ("More?", "Much more.")
    with monkeypatch.context() as patch:  # it has room again before the answer ends
        patch.setattr(kept_chats, "SAVE_SECONDS", 0)
        tries = iter([full])
        patch.setattr(kept_chats, "write_atomic", lambda *args: next(tries, files.write_atomic)(*args))
        ask(chat, "Yes?", "Y", "es")
    assert shown(Conversation.read(chat.id))[-1] == ("Yes?", "Yes")


def test_a_corrected_answer_is_a_row_to_tune_with():
    chat = Conversation()
    exchange, _ = ask(chat, "2 + 2?", "5")
    file = chat.correct(exchange.answer, "4", system="Be exact.")
    chat.correct(exchange.answer, "four")
    assert shown(Conversation.read(chat.id)) == [("2 + 2?", "four")]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    layout = Preference()
    example = layout.example(rows[0], layout.columns(rows[0]))
    assert example.messages == [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "2 + 2?"},
    ]
    assert (example.chosen[0]["content"], example.rejected[0]["content"]) == ("4", "5")
    assert len(rows) == 2 and file.stat().st_mode & 0o077 == 0


def test_a_deleted_conversation_is_not_written_again(folder):
    chat = Conversation()
    ask(chat, "Hi", "Hello")
    other = Conversation.read(chat.id)
    chat.delete()
    with pytest.raises(UsageError, match="was deleted"):
        ask(other, "Still here?", "no")
    chat.delete()
    assert not list(folder.glob("*.json")) and not conversations()


def test_search_finds_all_words_in_any_message():
    first, second = Conversation(), Conversation()
    ask(first, "A soup", "with Barley")
    ask(second, "A stew", "with peas")
    assert {one.id for one in conversations()} == {first.id, second.id}
    assert [one.title for one in conversations("barley SOUP")] == ["A soup"]
    assert not conversations("soup peas")


def test_halves_of_characters_are_kept_as_a_question_mark():
    chat = Conversation()
    exchange, _ = ask(chat, "a\ud83d", "b")
    chat.correct(exchange.answer, "\ude00c")
    assert shown(Conversation.read(chat.id)) == [("a?", "?c")]


ODD = {
    "empty": b"",
    "cut off": b'{"id": "0123456789ab", "mess',
    "no JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "a circle": b'{"messages": [{"role": "user", "content": "a", "after": 0}]}',
    "a later message": b'{"messages": [{"role": "user", "content": "a", "after": 1}, {"role": "user", "content": ""}]}',
    "an answer to nothing": b'{"messages": [{"role": "assistant", "content": "a"}]}',
    "before the first": b'{"messages": [{"role": "user", "content": "a", "after": -1}]}',
    "two questions": b'{"messages": [{"role": "user", "content": ""}, {"role": "user", "content": "", "after": 0}]}',
    "no last message": b'{"messages": [], "last": 0}',
    "no text": b'{"messages": [{"role": "user", "content": 7}]}',
}


@pytest.mark.parametrize("name", ODD)
def test_a_damaged_file_is_refused_and_kept(name, folder):
    good = Conversation()
    ask(good, "Hi", "Hello")
    damaged = folder / "0123456789ab.json"
    damaged.write_bytes(ODD[name])
    with pytest.raises(UsageError, match="deleted, or is damaged"):
        Conversation.read("0123456789ab")
    assert [one.id for one in conversations()] == [good.id]
    assert damaged.read_bytes() == ODD[name]


def test_an_id_leads_nowhere_else(folder):
    chat = Conversation()
    ask(chat, "Hi", "Hello")
    (folder.parent / "secret.json").write_text((folder / f"{chat.id}.json").read_text())
    for id in ("../secret", f"{chat.id}\n", "", "/etc/passwd"):
        with pytest.raises(UsageError):
            Conversation.read(id)
    (folder / "0123456789ab.json").write_text((folder / f"{chat.id}.json").read_text())
    assert Conversation.read("0123456789ab").id == "0123456789ab"  # what is written for a copy goes to the copy
