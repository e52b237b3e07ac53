"""The page where a person chats with a model and compares two blind, in a real browser, with real models."""

import json
import re
import signal

import psutil
import pytest

from settle.evaluate.blind.session import stamp
from settle.evaluate.blind.votes import FEWEST, AnswerPair, Ballots, add_pair, preferences, vote
from settle.infer.conversations import Conversation, Exchange, Message
from settle.library.resolve import resolve_gguf
from tests.studio.conftest import axe_findings
from tests.studio.made_models import stock
from tests.studio.payloads import PAYLOADS

TWO = "/chat?model=tiny&with=tuned"


@pytest.fixture(scope="module", autouse=True)
def models(studio):
    stock(studio.home)


@pytest.fixture
def ballots(studio, monkeypatch):
    """The file of votes, empty at first."""
    monkeypatch.setenv("SETTLE_HOME", str(studio.home))
    (studio.home / "votes.jsonl").unlink(missing_ok=True)
    return Ballots.read


def say(page, text, num_tokens=24):
    """Sends a message by the keyboard alone."""
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("max-tokens").fill(str(num_tokens))
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def wait_for_answer(page, number):
    """Until so many were answered whole."""
    page.locator(".turn").nth(number - 1).wait_for()
    page.wait_for_function("document.querySelector('[role=log]').ariaBusy === 'false'")


def answers(page):
    return page.locator(".turn .message:not(.mine)")


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def test_a_conversation_is_kept_changed_found_and_deleted(page, studio):
    page.goto("/chat?model=tiny")
    page.get_by_text("Nothing was said yet.").wait_for()
    say(page, "def first(self):")
    wait_for_answer(page, 1)
    page.wait_for_url("**/chat?chat=*")
    begun = answers(page).inner_text()
    press(page, "Continue")
    page.wait_for_function(
        "n => document.querySelector('.turn .message:not(.mine)').innerText.length > n", arg=len(begun)
    )
    wait_for_answer(page, 1)
    press(page, "Answer again")
    page.get_by_text("2 of 2").wait_for()
    press(page, "Correct")
    page.get_by_label("This answer should have been").fill("return **self**")
    press(page, "Keep as an example")
    page.get_by_text("The example is kept. To learn from all of them: settle tune tiny").wait_for()
    assert answers(page).locator("strong").inner_text() == "self"
    press(page, "Version before")
    page.get_by_text("2 of 3").wait_for()
    press(page, "Edit")
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.innerText === 'Edit'")
    page.keyboard.press("Enter")
    page.get_by_label("Your message").fill("def other(self):")
    page.keyboard.press("Control+Enter")
    page.locator(".mine .message", has_text="other").wait_for()
    wait_for_answer(page, 1)
    page.get_by_text("2 of 2").wait_for()
    page.reload()
    page.locator(".mine .message", has_text="other").wait_for()
    assert axe_findings(page) == []
    row = json.loads((studio.home / "chats" / "corrections.jsonl").read_text().splitlines()[-1])
    assert row["chosen"][0]["content"] == "return **self**" and row["rejected"][0]["content"]
    page.get_by_label("Search chats").fill("no such words")
    page.get_by_text("None holds these words.").wait_for()
    page.get_by_label("Search chats").fill("OTHER first")
    page.get_by_role("link", name="def first(self):").wait_for()
    press(page, "Delete")
    press(page, "Delete for good")
    page.get_by_text("Nothing was said yet.").wait_for()
    assert page.get_by_role("link", name="def first(self):").count() == 0


def test_what_was_said_is_shown_as_elements_that_run_nothing(page, studio, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(studio.home))
    chat, text = Conversation(), "\n\n".join([*PAYLOADS, "```py\nprint(1)\n```", "|a|b|\n|-|-|\n|1|2|", "$$x^2$$"])
    long = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung 学習は落ち着きました。" * 4
    chat._keep(Exchange(PAYLOADS[0] + long, None), Message(role="assistant", content=text + long, by=PAYLOADS[1]))
    page.set_viewport_size({"width": 390, "height": 740})
    page.goto(f"/chat?chat={chat.id}")
    page.locator(".message table").wait_for()
    assert page.locator(".mine .message").inner_text() == PAYLOADS[0] + long
    assert page.locator(".message math msup").count() == page.locator(".listing pre code").count() == 1
    assert page.locator(".message :is(script, img, iframe, svg, object, style)").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    press(page, "Chats")
    press(page, "Delete")
    assert axe_findings(page) == []
    press(page, "Delete for good")
    page.get_by_text("Nothing was said yet.").wait_for()
    page.goto(f"/chat?chat={chat.id}")
    page.get_by_text("this conversation was deleted, or is damaged", exact=False).first.wait_for()


def test_mistakes_are_said_where_they_are_and_an_answer_is_stopped(page, studio):
    page.goto("/chat?model=tiny")
    press(page, "Send")
    page.get_by_text("there is nothing to answer").first.wait_for()
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("temperature").fill("hot")
    page.get_by_text("Settings", exact=True).click()
    say(page, "still here")
    page.get_by_text("Settings", exact=True).click()
    page.locator(".field", has_text="temperature").get_by_role("alert").wait_for()
    assert page.get_by_label("Message", exact=True).input_value() == "still here"
    page.get_by_label("temperature").fill("")
    page.get_by_text("Settings", exact=True).click()
    say(page, "word " * 2000)
    page.get_by_text("fit into the context").first.wait_for()
    assert page.get_by_label("Message", exact=True).input_value().startswith("word word")
    assert answers(page).count() == 0
    say(page, "import os", 8)
    wait_for_answer(page, 1)
    below = psutil.Process(studio.process.pid).children(recursive=True)
    children = [child for child in below if "server_child.py" in " ".join(child.cmdline())]
    for child in children:
        child.send_signal(signal.SIGSTOP)  # a model that writes very slowly
    try:
        say(page, "import sys", 400)
        page.get_by_text("answering …").wait_for()
        assert page.get_by_role("button", name="Send").is_disabled()
        press(page, "Stop")
        page.get_by_text("stopping …").wait_for()
    finally:
        for child in children:
            child.send_signal(signal.SIGCONT)
    page.get_by_role("button", name="Stop", exact=True).wait_for(state="hidden")
    assert children and not page.get_by_role("button", name="Send").is_disabled()
    assert len(answers(page).nth(1).inner_text()) < 80
    page.locator(".turn").last.get_by_role("button", name="Continue").wait_for()


def test_the_same_weights_are_not_compared(page, ballots):
    page.goto("/chat?model=tiny&with=twin")
    say(page, "def f(")
    page.get_by_text("tiny and twin are the same weights").first.wait_for()
    page.get_by_text("no log-probability differs by more than 0 nats").first.wait_for()
    assert answers(page).count() == 0 and not ballots().pairs
    page.get_by_label("Compare with").select_option("tiny")
    page.wait_for_url("**with=tiny**")  # the settings of the page that is left would be opened
    say(page, "def f(")
    page.get_by_text("tiny would be compared with itself").first.wait_for()


def test_two_models_are_compared_without_their_names_until_they_are_asked_for(page, ballots):
    page.goto(TWO)
    received = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: received.append(frame)))
    page.reload()
    for number, choice in enumerate(("A is better", "B is better", None)):
        say(page, f"def f{number}(self):")
        page.get_by_role("button", name="A is better").nth(0).wait_for()
        assert re.search(r"differ by up to \d\.\d+ nats", page.get_by_role("status").first.inner_text())
        if choice:
            page.get_by_role("button", name=choice).click()
            page.get_by_text(f"Your vote: {choice}.").wait_for()
            page.wait_for_function("document.activeElement.tagName == 'TEXTAREA'")  # told to the browser on its own
            page.get_by_text(
                f"Votes on these two models so far: {number + 1}; an interval needs {14 - number}"
            ).wait_for()
    pairs = list(ballots().pairs.values())
    letters = re.compile("Copy code|[^a-z]")  # of Markdown the marks are not shown
    shown = [letters.sub("", answer.inner_text()) for answer in answers(page).all()]
    assert shown == [letters.sub("", answer) for pair in pairs for answer in pair.answers]
    assert [len(pair.messages) for pair in pairs] == [1, 3, 5]
    assert pairs[1].messages[1] == {"role": "assistant", "content": pairs[0].answers[0]}
    assert page.get_by_role("heading", name=re.compile("^[AB]$")).count() == 6
    before = "".join(map(str, received))
    assert "tiny" not in page.get_by_role("log").inner_html() and "A: t" not in before and pairs[0].id not in before
    assert axe_findings(page) == []
    page.get_by_role("button", name="Show who wrote what").click()
    page.get_by_role("heading", name=f"A: {pairs[2].names[0]}").last.wait_for()
    heads = page.get_by_role("heading", name=re.compile("^[AB]: ")).all_inner_texts()
    assert heads == [f"{letter}: {name}" for pair in pairs for letter, name in zip("AB", pair.names, strict=True)]
    assert ballots().revealed == set(ballots().pairs) and list(ballots().votes.values()) == ["a", "b"]
    assert page.get_by_role("button", name="A is better").count() == 0
    page.get_by_role("row", name="tiny and tuned").get_by_text("13 more votes are needed").wait_for()


def test_two_tabs_lose_no_vote_and_fifteen_have_an_interval(page, context, ballots):
    weights = tuple(stamp(resolve_gguf(name)) for name in ("tiny", "tuned"))
    for number in range(FEWEST - 2):
        kept = AnswerPair(
            time=1.8e9, id=f"made{number}", session="made", conversation=number, seed=0, turn=number, system=None,
            models=("tiny", "tuned"), weights=weights, a=number % 2, messages=[], answers=("", ""), sampling={},
            nats=1.0,
        )  # fmt: skip
        add_pair(kept)
        vote(kept.id, "ab"[kept.names.index("tuned")])
    other = context.new_page()
    for tab in (page, other):
        tab.goto(TWO)
        tab.get_by_role("row", name="tiny and tuned").get_by_text("2 more votes are needed").wait_for()
        say(tab, "import re", 8)
        tab.get_by_role("button", name="Both are bad").wait_for()
    for tab in (page, other):
        tab.get_by_role("button", name="Both are bad").click()
        tab.get_by_text("Your vote").wait_for()
    other.close()
    assert len(ballots().votes) == FEWEST
    press(page, "Show who wrote what")
    (found,) = preferences(ballots())
    page.get_by_role("row", name="tiny and tuned").get_by_text(found.sentence).wait_for()
    assert found.sentence.startswith("tuned is preferred to tiny: tuned has 87 more of 100 votes")
