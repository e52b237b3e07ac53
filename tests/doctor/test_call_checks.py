"""Calls of tools that nobody needs: the client demands one with every message, and what happens when it does not."""

import json

import pytest

from settle.base.event_log import Events
from settle.doctor.answerer import Answerer
from settle.doctor.checks import Check
from settle.doctor.checks.answers.invented_call import strict_format
from settle.experiment.run import prove
from settle.wire.exchange import Call, Reply, Request
from tests.doctor.example_run import record

CHECK = Check.parts()["invented_call"]()
PARAMETERS = {"type": "object", "properties": {"unit": {"type": "string"}}, "required": ["unit"]}
FUNCTION = {"name": "get_weather", "description": "The weather of a city,", "parameters": PARAMETERS}
TOOLS = ({"type": "function", "function": FUNCTION},)
DEMANDS = {"tool_choice": "required", "response_format": strict_format(TOOLS)}


class Obedient(Answerer):
    """Calls the tool where it must, and where it may and is asked for the weather. shy: only where it must."""

    name = "obedient"

    def __init__(self, shy: bool = False) -> None:
        self.shy = shy

    def pieces(self, request: Request):
        form = request.settings.get("response_format")
        must = request.settings.get("tool_choice") == "required" or (form and '"answer"' not in json.dumps(form))
        if not must and (self.shy or "weather" not in request.question):
            yield Reply(json.dumps({"answer": "Hello."}) if form else "Hello.", finish="stop")
        elif request.tools:
            yield Reply(calls=(Call("get_weather", '{"unit": "celsius"}'),), finish="tool_calls")
        else:
            yield Reply(json.dumps({"name": "get_weather", "arguments": {"unit": "celsius"}}), finish="stop")


def asked(answerer, folder, question, **settings):
    request = Request(({"role": "user", "content": question},), TOOLS, settings)
    return record(answerer, [request], folder / "chat.jsonl")


@pytest.mark.parametrize("setting", DEMANDS)
def test_a_demanded_call_that_nobody_needs(tmp_path, setting):
    subject = asked(Obedient(), tmp_path, "Hello, who are you?", **{setting: DEMANDS[setting]})
    (finding,) = CHECK.detect(subject)
    assert finding.details.needless and "Hello, who are you?" in finding.evidence[0]
    proof = prove(CHECK.trial(finding, subject, tmp_path), tmp_path / "m.jsonl", Events())
    assert (proof.state, proof.verified, proof.guards.verdict) == ("proven", True, "too few rows to tell")
    assert f'"{setting}"' in CHECK.fix(finding, subject).command


def test_a_model_that_then_calls_nothing_at_all_is_not_mended_so(tmp_path):
    subject = asked(Obedient(shy=True), tmp_path, "Hello, who are you?", tool_choice="required")
    (finding,) = CHECK.detect(subject)
    proof = prove(CHECK.trial(finding, subject, tmp_path), tmp_path / "m.jsonl", Events())
    assert proof.state == "proven" and proof.guards.verdict == "worse" and not proof.verified


@pytest.mark.parametrize(
    ("question", "settings"),
    [("How is the weather in Oslo?", {"tool_choice": "required"}), ("Hello, who are you?", {"tool_choice": "auto"})],
)
def test_a_call_that_is_about_its_tool_or_free_is_right(tmp_path, question, settings):
    assert not list(CHECK.detect(asked(Obedient(), tmp_path, question, **settings)))


def test_names_that_there_are_not_are_mended_without_forcing_a_call(tmp_path):
    class Inventive(Obedient):
        def pieces(self, request):
            if "response_format" in request.settings or "weather" not in request.question.lower():
                yield from super().pieces(request)
            else:
                yield Reply(calls=(Call("weather_please", "{}"),), finish="tool_calls")

    subject = asked(Inventive(), tmp_path, "How is the weather in Oslo?")
    (finding,) = CHECK.detect(subject)
    assert "weather_please" in finding.evidence[0]
    trial = CHECK.trial(finding, subject, tmp_path)
    proof = prove(trial, tmp_path / "m.jsonl", Events())
    assert (proof.state, proof.verified) == ("proven", True), "a greeting is still answered in words"
    assert "or of an answer in words" in trial.knob
