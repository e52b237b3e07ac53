"""Why models break: eight lessons, each an A and a B measured on the person's own model."""

from nicegui import ui

from settle.doctor.lessons import Lesson
from settle.doctor.measure_lesson import DRAWS, LessonResult, all_lessons, measured, percent
from settle.studio.field import Field
from settle.studio.layout import Slot, button, card, words
from settle.studio.open_models import model_names
from settle.studio.pages import Page
from settle.studio.table import Table
from settle.studio.visit import Visit, in_thread


class Lessons(Page):
    """The lessons, each with a button that measures it."""

    path = "/lessons"
    title = "Why models break"
    place = 80

    async def build(self, visit: Visit) -> None:
        names = await model_names()
        words(
            "Each lesson has an A, where a model works, and a B, where it breaks. Its examples are made by rule, "
            f"{DRAWS} of them, and measured on your model: it says so where your model does not show it.",
            classes="dim",
        )  # fmt: skip
        model = Field("Model", "choice", value=visit.query.get("model", ""), options=names).classes("model")
        for lesson in all_lessons():
            _lesson(lesson, model)


def _lesson(lesson: Lesson, model: Field) -> None:
    """One lesson: what happens and why, and the place of its numbers."""
    with card(f"{lesson.number}. {lesson.title}"):
        words(lesson.why)
        with ui.element("div").classes("row"):

            async def measure() -> None:
                name = model.text
                state.text = "measuring …"
                try:
                    (result,) = await in_thread(lambda: list(measured(name, [lesson])))
                finally:
                    state.text = ""
                with place.anew():
                    _show(result, name)

            button(f"Measure lesson {lesson.number}", measure)
            state = words("", classes="dim").props('role="status"')
        place = Slot()


def _show(result: LessonResult, name: str) -> None:
    tone = {True: "good", False: "warn", None: "dim"}[result.is_shown]
    words(result.verdict, classes=tone)
    if result.example is None:
        return
    figure, number = "probability of a token", len(result.sides)
    lesson = result.lesson
    has_right = lesson.has_rank and not lesson.wants_low
    rights = [f"{right} of {number}" if has_right else "–" for right in result.right]
    sides = zip("AB", (lesson.works, lesson.breaks), map(percent, result.probabilities), rights, strict=True)
    columns = ("", "what", figure, "right by itself")
    Table(f"{lesson.title} on {name}", columns, (2,), rows=[*map(list, sides)])
    words(f"The probability of {lesson.answer}: the median of {number} draws. The first:", classes="dim")
    with ui.element("div").classes("columns versus"):
        example = result.example
        for side, prompt, written in zip("AB", example.prompts, example.written, strict=True):
            with ui.element("div"):
                words(side, "h3")
                words(prompt, "pre").props('tabindex="0"')
                words(f"Measured: {example.answer.strip()}")
                words(f"It continues: {written.strip() or 'nothing'}")
    words(f"settle doctor {name} --lesson {lesson.part_name()}", classes="code")
