"""The user's prompts, and what they and the words of the task ask of a model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.data.corpus import Ledger, find_files, workspace
from settle.data.decisions.rows import Placed
from settle.data.layouts import Broken, Example, Message, find, parsed_turns, read_turns
from settle.data.layouts.prompt_completion import PROMPTS
from settle.data.split import row_families
from settle.documents.reader_pool import RowReader
from settle.evaluate.compare.against_base import rows_of
from settle.evaluate.compare.cases import Case, cases, spread

LANGUAGES = {
    "arabic": "ar", "bengali": "bn", "chinese": "zh", "czech": "cs", "danish": "da", "dutch": "nl", "english": "en",
    "finnish": "fi", "french": "fr", "german": "de", "greek": "el", "hebrew": "he", "hindi": "hi", "hungarian": "hu",
    "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko", "norwegian": "no", "persian": "fa",
    "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "spanish": "es", "swedish": "sv",
    "thai": "th", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
# licences that name the use which they forbid, as identifiers and as people write them
_NON_COMMERCIAL = re.compile(r"(?i)(^|[-_ ])nc([-_ ]|$)|non-?commercial|research|\bmrl\b")

_VECTORS = re.compile(r"(?i)\b(embed\w*|vectors?|semantic search|retrieval|similarity search)\b")

_DECISIONS = re.compile(r"(?i)\bdeci(de|des|ding|sions?)\b")
TURNS = ("messages", "conversations", "conversation", "turns", "dialog")


@dataclass(frozen=True)
class Prompts:
    """Prompts to be asked."""

    cases: Sequence[Case]
    families: Sequence[int]  # the same number for prompts that belong together
    are_answered: bool  # whether the wanted answers are known
    given: int  # how many prompts the files hold


def read_prompts(path: Path, limit: int, events: Events) -> Prompts:
    """Read the prompts of a file or folder, at most `limit`, evenly spread. Raises DataError for what holds none."""
    if not path.expanduser().exists():
        raise DataError(f"there is no file or folder {path}", "check the path given to --prompts")
    try:
        rows = list(rows_of(path, events))
    except DataError as e:
        rows = list(_unanswered(path))
        if not rows:
            raise DataError(e.what, "give rows of a prompt and its wanted answer, or of a prompt alone") from None
    asked = cases(rows)
    if not asked:
        rows = [Example("chat", [_user(text), _assistant("")], single=True) for text in _texts(rows)]
        asked = cases(rows)
    if not asked:
        raise DataError(f"{path} holds no prompts", "give rows of a prompt and its wanted answer")
    families = row_families(rows)
    chosen = spread(asked, limit)
    are_answered = all(case.reference.strip() for case in chosen)
    return Prompts(chosen, [families[case.number - 1] for case in chosen], are_answered, len(asked))


def _texts(rows: Sequence[Example]) -> list[str]:
    """Return plain text as prompts: each row is one; of a single text its paragraphs, or else its lines."""
    texts = [row.text for row in rows]
    if len(texts) == 1:
        paragraphs = [p for p in re.split(r"\n\s*\n", texts[0]) if p.strip()]
        texts = paragraphs if len(paragraphs) > 1 else texts[0].splitlines()
    return [text.strip() for text in texts if text.strip()]


def _unanswered(path: Path) -> Iterator[Example]:
    """Yield rows of a prompt alone, or of a conversation that ends with the user's turn."""
    for _, row in placed_rows(path):
        if turns := _turns(row):
            yield Example("chat", [*turns, _assistant("")], single=len(turns) == 1)


def placed_rows(path: Path) -> Iterator[Placed]:
    """Yield the rows of a file or folder that have columns, each with its place."""
    with workspace() as work:
        files = find_files([str(path.expanduser())], work, Ledger())
        with RowReader(files, lambda file, note: None) as reader:
            for file in files:
                for record in reader.records(file):
                    if isinstance(row := record.get("value"), Mapping):
                        yield f"{file.name}:{record['row']}", row


def _turns(row: Mapping[str, object]) -> list[Message]:
    """Return the turns of a row that is to be answered; [] for any other."""
    column = find(row, None, (*TURNS, *PROMPTS, "content", "message"))
    value = parsed_turns(row[column]) if column is not None else None
    try:
        turns = read_turns(value) if isinstance(value, list) else [_user(value)] if isinstance(value, str) else []
    except Broken:
        return []
    return turns if turns and turns[-1]["role"] == "user" and str(turns[-1]["content"]).strip() else []


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


# --- what is asked of a model ---


@dataclass(frozen=True)
class Needs:
    """What a model has to be able to do."""

    context: int  # tokens of a prompt and its answer together
    must_take_it: bool = False  # a model that takes fewer will not do
    languages: frozenset[str] = frozenset()  # that the task names, as ISO 639-1
    tools: bool = False  # the prompts bring tools
    turns: bool = False  # some prompts are conversations
    letters: int = 0  # of a usual prompt
    vectors: bool = False  # it has to turn texts into vectors, and writes none
    decides: bool = False  # it has to answer typed questions
    commercial: bool = False  # the licence has to allow commercial use
    speed: float | None = None  # tokens per second at least, or None


def languages_in(text: str) -> frozenset[str]:
    """Return the languages that a task names, as English writes them: "polish" is something else."""
    return frozenset(
        LANGUAGES[word.lower()] for word in re.findall(r"\b[A-Z][a-z]+", text) if word.lower() in LANGUAGES
    )


def asks_for_vectors(task: str) -> bool:
    """Return whether the words of a task ask for an embedder."""
    return bool(_VECTORS.search(task))


def asks_for_decisions(task: str) -> bool:
    """Return whether the words of a task ask for a decision model."""
    return bool(_DECISIONS.search(task))


def needs_turns(cases: Sequence[Case]) -> bool:
    """Return whether a model without a chat template cannot be asked."""
    return any(case.prompt is None for case in cases)


def forbids_commercial_use(license: str) -> bool:
    """Return whether a licence says so in its name; a licence that is not known forbids nothing here."""
    return bool(_NON_COMMERCIAL.search(license))
