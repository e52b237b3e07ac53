"""Text that others wrote, on every page that shows some: forty scripts in it, and none runs.

What a model writes is in `test_next_token`, rows as they are learned in `test_new_run`.
"""

import shutil
from urllib.parse import quote

import pytest

from settle.base import events as kinds
from settle.evaluate.blind.votes import AnswerPair, add_pair, vote
from settle.library.store import StoredModel, add_model
from tests.retrieve.asked import index
from tests.retrieve.conftest import joined  # noqa: F401  `hashed` is an embedder
from tests.studio import made_runs
from tests.studio.conftest import start_studio
from tests.studio.made_models import stock
from tests.studio.payloads import PAYLOADS

ALL = " ".join(PAYLOADS)


@pytest.fixture(scope="module")
def studio(joined, tmp_path_factory):  # noqa: F811
    """One whose home holds scripts: in a run, in a model's origin, in documents and their names, in names of models."""
    pytest.importorskip("nicegui", reason="needs the extra `studio`")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        made_runs.fill(home)
        _add_run(home)
        stock(home)
        shutil.copy(home / "tiny.gguf", home / "odd.gguf")
        add_model(StoredModel("odd", "gguf", home / "odd.gguf", "ab" * 32, ALL, ALL))
        texts = {text.replace("/", "-") + ".txt": f"# {text}\n\nThe lever is {text}\n" for text in PAYLOADS}
        index("odd", home / "odd", texts)
        for number, text in enumerate(PAYLOADS):
            pair = AnswerPair(
                time=1.8e9, id=f"h{number}", session="h", conversation=number, seed=0, turn=number, system=None, a=0,
                models=(text, f"other {text}"), weights=("1", "1"), messages=[], answers=("", ""), sampling={},
                nats=1.0,
            )  # fmt: skip
            add_pair(pair)
            vote(pair.id, "a")
        live = start_studio(home)
        yield live
        live.stop()


def _add_run(home):
    says = [kinds.Say(text=text) for text in PAYLOADS]
    samples = [kinds.Sample(step=n, moment=t, prompt=t, text=t) for n, t in enumerate(PAYLOADS)]
    checks = [kinds.ProofCheck(check=text, passed=True, detail=text) for text in PAYLOADS]
    plan = {"loop": {f"key {n} {text}": text for n, text in enumerate(PAYLOADS)}}
    result = made_runs.FINISHED | {"why": ALL, "audit": {"sentence": PAYLOADS[0]}}
    happened = [*made_runs.training(5), *samples, *says, *checks]
    run = made_runs.write_run(home, "hostile", happened, result, plan=plan)
    (run / "out" / "card.md").write_text("\n".join(PAYLOADS))


@pytest.fixture
def tab(page):
    """A tab in which no script that a text brings may have run at the end."""
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    yield page
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.evaluate("window.__ran") is None and not dialogs


def shown(page) -> int:
    """How many of them the page shows as text."""
    text = page.evaluate("document.body.textContent")
    return sum(payload.strip() in text for payload in PAYLOADS)


@pytest.mark.parametrize("path", ["/runs/hostile", "/compare?runs=hostile,calm", "/learning/hostile", "/"])
def test_of_a_run(tab, path):
    tab.goto(path)
    tab.get_by_text(PAYLOADS[-1] if "learning" in path else "hostile").first.wait_for()


def test_of_a_model_its_origin_and_its_license(tab):
    tab.goto("/models")
    tab.get_by_role("row", name="odd").wait_for()
    assert shown(tab) >= 38


def test_of_votes_and_of_a_message_to_a_model(tab):
    tab.goto("/chat?with=tuned&model=" + quote(PAYLOADS[0]))
    tab.get_by_role("row", name="other").nth(39).wait_for()
    assert shown(tab) >= 38
    tab.goto("/chat?model=tiny&with=" + quote(PAYLOADS[0]))
    tab.get_by_text("Settings", exact=True).click()
    tab.get_by_label("system").fill(PAYLOADS[1])
    tab.get_by_label("Message", exact=True).fill(" ".join(PAYLOADS[:8]))
    tab.get_by_label("max-tokens").fill("4")
    tab.get_by_role("button", name="Send").click()
    tab.locator(".message.mine", has_text=PAYLOADS[0]).wait_for()
    tab.wait_for_function("document.querySelector('[role=log]').ariaBusy === 'false'")


def test_of_a_text_as_tokens(tab):
    tab.goto("/tokens?model=tiny&text=" + quote(" ".join(PAYLOADS[:8])))
    tab.get_by_label("Text", exact=True).fill(ALL)
    tab.get_by_role("button", name="Read it").click()
    tab.get_by_text("settle tokens tiny").wait_for()
    assert shown(tab) >= 30  # others are quoted, as a shell needs it


def test_of_a_form_and_its_command_line(tab):
    tab.goto("/new?command=shrink&" + quote(PAYLOADS[0]))
    for key, text in (("model", PAYLOADS[2]), ("name", PAYLOADS[3]), ("inputs", "\n".join(PAYLOADS))):
        tab.get_by_label(key, exact=True).fill(text)
    tab.keyboard.press("Tab")
    tab.get_by_text("The same in a terminal").click()
    tab.locator(".commandline", has_text=PAYLOADS[5]).wait_for()
    assert shown(tab) >= 30  # others are quoted, as a shell needs it


def test_of_documents_their_names_and_a_question(tab):
    tab.goto("/documents")
    tab.get_by_label("Question").fill("What is the lever? " + " ".join(PAYLOADS[4:12]))
    tab.get_by_label("Model that answers").fill("none")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.locator("details", has_text="The lever is").first.wait_for(timeout=90_000)
    assert shown(tab) > 3


def test_of_the_doctors_subject_and_the_lessons_model(tab):
    tab.goto("/lessons?model=" + quote(PAYLOADS[0]))
    tab.get_by_role("heading", name="1. ").wait_for()
    tab.goto("/doctor?subject=" + quote(PAYLOADS[0]))
    tab.get_by_label("Subject").fill(ALL)
    tab.get_by_role("button", name="Look", exact=True).click()
    tab.get_by_text(PAYLOADS[0]).first.wait_for(timeout=90_000)
    assert shown(tab) > 0
