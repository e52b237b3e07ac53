"""The rows job: documents → facts → questions → verified rows, each with a receipt · twins · file, rest and card."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, ResultReady, Say, Warn
from settle.base.files import write_atomic
from settle.base.words.amounts import count
from settle.documents.readers import reader_of
from settle.experiment.arm import model_hashes
from settle.infer.child_process import Json
from settle.infer.table import read_table
from settle.jobs.generate import Drawing, complete, row_prompt
from settle.jobs.index import bring_up_to_date, which_collection
from settle.jobs.kept_work import stoppable
from settle.jobs.settings import IndexSettings, RowsSettings
from settle.library.resolve import resolve_gguf
from settle.retrieve.check.facts import Fact, FactReader, as_asked, is_whole, small_words
from settle.retrieve.check.phrases import prose_sentences
from settle.retrieve.check.row_check import RowChecker, RowProof, span_of
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection, collection_names
from settle.retrieve.index.words import words

FROM_TEXT = "Answer from this text:\n\n{}\n\n{}"  # the prompt of a row with its text
SILENT = "The text does not say."  # the answer of a twin
ALIKE = 0.8  # Jaccard of two questions' words, from which on they are one
KNOWN = 0.7  # of an answer's own words, from which on the base has answered
SURE = 0.9  # of the judge, about one sentence alone, for a question that a model wrote
MOST_ASKED = 4  # sentences that a model is asked about for each row that it is to give
MODEL_SHARE = 0.5  # of the rows at most, where rules give enough
_EXAMPLES = (
    ("The library lends each book for three weeks.", "How long does the library lend a book?"),
    ("Water boils at a lower temperature on high mountains since the air pressure is lower.",
     "Why does water boil at a lower temperature on high mountains?"),
    ("The --quiet option hides all messages except errors.", "What does the --quiet option hide?"),
    ("Members pay the yearly fee by the end of January.", "When do members pay the yearly fee?"),
)  # fmt: skip
_SAYS = {  # what a sentence has that answers a model's question of each kind, whatever else it has
    "what": r"\b(?:is|are|was|were|has|have|can|must|should|may|will|does)\b",
    "which": r"\b(?:is|are|was|were|has|have|can|must|should|may|will|does)\b",
    "how": r"\b(?:by [a-z]+ing|using|with|use|run|set|call|pass)\b",
    "why": r"\b(?:because|since|so that|due to)\b",
    "when": r"\b(?:when|if|before|after|until|during|in \d{4}|at the)\b",
    "where": r"\b(?:in|at|under|on)\b",
}
_COUNTED = re.compile(r"how (?:many|much|long|often|far|old|large|big)\b", re.I)
_WHAT_IS = re.compile(r"what (?:is|are) (?:the |an? )?(?P<what>.+)\?$", re.I)
_END_MARKS = " .!`*'\")]"  # behind a sentence that is taken out of its text


class Draft(NamedTuple):
    """A question about a fact of a passage, not verified yet."""

    fact: Fact
    question: str
    passage: Passage
    path: str  # of its document
    place: str  # to open
    writer: Json


@dataclass
class MadeRow:
    """A verified row."""

    draft: Draft
    proof: RowProof
    span: tuple[int, int]  # characters of the passage

    def receipt(self) -> Json:
        draft, proof = self.draft, self.proof
        return {
            "document": draft.path,
            "place": draft.place,
            "passage": draft.passage.text,
            "span": list(self.span),
            "kind": draft.fact.kind,
            "writer": draft.writer,
            "verified": asdict(proof),
        }

    def to_json(self) -> Json:
        return {"prompt": self.draft.question, "completion": self.draft.fact.answer, "receipt": self.receipt()}


@dataclass
class _Rows:
    """What was made, and what failed, with the reason."""

    made: list[MadeRow] = field(default_factory=list)
    failed: list[tuple[Draft, str]] = field(default_factory=list)

    def reasons(self) -> list[tuple[str, int]]:
        return Counter(why for _, why in self.failed).most_common()


def make_rows(settings: RowsSettings, events: Events) -> int:
    """Run the job; return the exit code, 3 where no row was made. Raises SettleError."""
    card = settings.out.with_suffix(".card.md")
    if settings.out.exists() and not card.exists():
        raise UsageError(f"{settings.out} is there and was not made by `settle rows`", "give another --out")
    if not settings.out.parent.is_dir():
        raise UsageError(f"there is no folder {settings.out.parent}", "make it, or give another --out")
    for name in filter(None, (settings.model, settings.base)):
        resolve_gguf(name)  # an unknown name is an error before anything is read
    known = _questions_of(settings.held_out) if settings.held_out else []
    began = time.monotonic()
    with stoppable("what was indexed or answered", events):
        name = _indexed(settings, events)
        with Collection(name) as collection:
            checker = RowChecker(collection)
            rows = _verified(collection, checker, settings, known, events)
            if settings.base:
                _leave_out_known(rows, settings, events)
            twins = _twins(rows.made, checker) if settings.twins else []
    _write(rows, twins, settings, card, name)
    result: Json = {"collection": name, "file": str(settings.out), "rows": len(rows.made), "twins": len(twins) // 2}
    result |= {"failed": dict(rows.reasons()), "seconds": time.monotonic() - began}
    events.emit(ResultReady(result=result))
    if not rows.made:
        fix = "the documents state few facts that can be asked for alone"
        events.emit(Warn(text=f"no row could be made from {name}: {fix}; {card} has the reasons"))
        return 3
    if len(rows.made) < settings.count:
        wanted = f"{len(rows.made):,} of {settings.count:,} rows"
        events.emit(Warn(text=f"{wanted}: what else the documents state was left out; {card} has the reasons"))
    twin_text = f", and {len(twins) // 2:,} pairs with their text" if twins else ""
    where = f"{count(len(rows.made))} rows in {settings.out}{twin_text}; {card} says how they were made"
    events.emit(Say(text=f"{where}; `settle tune MODEL {settings.out}` learns from them"))
    return 0


def _indexed(settings: RowsSettings, events: Events) -> str:
    """Return the collection, brought up to date."""
    asked = IndexSettings(paths=settings.paths)
    if not settings.paths:
        raise UsageError("no documents for `settle rows`", "give a folder, a file or a collection: `settle rows docs`")
    name, paths = which_collection(asked, events)
    if name not in collection_names() and not paths:
        Collection(name)  # raises, naming the collections that exist
    report = bring_up_to_date(name, paths, asked, events)
    if report.failed:
        path, why = report.failed[0]
        text = f"{count(len(report.failed))} documents could not be read, {path} among them: {why}"
        events.emit(Warn(text=f"{text}; `settle index {name} --status` lists them"))
    return name


# Drafts: every document gives one of a kind before any gives two


def _passages(collection: Collection, random: Random) -> Iterator[tuple[str, Passage, bool]]:
    """Yield (path, passage, whether its section begins with it), documents in random order, one passage of each."""
    queues = []
    for document in collection.catalogue.documents.sizes():
        ids = [i for _, i in collection.catalogue.passages.around(document.id, 0, document.chunks)]
        passages = collection.catalogue.passages.get(ids)
        own = [passages[i] for i in ids if i in passages]
        starts = [not n or own[n - 1].headings != passage.headings for n, passage in enumerate(own)]
        places = list(zip([document.path] * len(own), own, starts, strict=True))
        random.shuffle(places)
        queues.append(places)
    random.shuffle(queues)
    while queues:
        for places in queues:
            if places:
                yield places.pop()
        queues = [places for places in queues if places]


def _drafts(collection: Collection, settings: RowsSettings) -> tuple[list[Draft], list[Draft]]:
    """Return drafts by rule, the kinds mixed evenly, and sentences that no rule fits, for a model to ask about."""
    random = Random(settings.seed)
    places = list(_passages(collection, random))
    reader = FactReader(small_words(passage.text for _, passage, _ in places))
    by_kind: dict[str, list[Draft]] = {}
    occurrences = collection.catalogue.passages.occurrences
    left: list[Draft] = []
    seen: set[str] = set()
    for path, passage, begins in places:
        place = next(one.place for one in occurrences([passage.id])[passage.id] if one.path == path).after(path)
        for fact in reader.facts(passage.text, passage.headings, begins):
            is_example = fact.kind == "code" and reader_of(Path(path).name) != "code"
            if fact.stated not in seen and not is_example:
                seen.add(fact.stated)
                question = as_asked(random.choice(fact.questions), random)
                by_kind.setdefault(fact.kind, []).append(
                    Draft(fact, question, passage, path, place, {"rule": fact.kind})
                )
        for sentence in prose_sentences(passage.text) if settings.model else ():
            if is_whole(sentence) and sentence not in seen:
                seen.add(sentence)
                left.append(Draft(Fact("model", (), sentence, sentence), "", passage, path, place, {}))
    mixed = []
    while by_kind:
        for kind in list(by_kind):
            mixed.append(by_kind[kind].pop(0))
            if not by_kind[kind]:
                del by_kind[kind]
    random.shuffle(left)
    return mixed, left


def _verified(
    collection: Collection, checker: RowChecker, settings: RowsSettings, known: Sequence[set[str]], events: Events
) -> _Rows:
    """Return as many verified rows as are wanted, of a model first where one writes."""
    rows, asked = _Rows(), list(known)
    by_rule, left = _drafts(collection, settings)
    share = int(MODEL_SHARE * settings.count)
    wanted = max(settings.count - len(by_rule), share)
    of_model = _of_model(checker, left, wanted, settings, rows, events) if settings.model else []
    for number, draft in enumerate([*of_model[:share], *by_rule, *of_model[share:]], 1):
        if len(rows.made) >= settings.count:
            break
        own = set(words(draft.question))
        if any(_alike(own, other) for other in known):
            rows.failed.append((draft, "it is among the held-out questions"))
        elif any(_alike(own, other) for other in asked):
            rows.failed.append((draft, "nearly the same question is there already"))
        elif (span := span_of(draft.fact.stated, draft.passage.text)) is None:
            rows.failed.append((draft, "the passage does not say it in one piece"))
        else:
            proof, why = checker.check(draft.fact, draft.question, draft.passage, settings.least)
            if proof:
                rows.made.append(MadeRow(draft, proof, span))
                asked.append(own)
            else:
                rows.failed.append((draft, why))
        if not number % 10:
            events.emit(Progress(what="verify", done=len(rows.made), total=settings.count, unit="rows"))
    return rows


def _alike(one: set[str], other: set[str]) -> bool:
    return len(one & other) >= ALIKE * len(one | other) > 0


# Questions by a model


def _of_model(
    checker: RowChecker, left: Sequence[Draft], wanted: int, settings: RowsSettings, rows: _Rows, events: Events
) -> list[Draft]:  # fmt: skip
    """Return drafts with questions that the model wrote about sentences, those that are no clear question left out."""
    model = resolve_gguf(str(settings.model))
    writer: Json = {"model": model.name, "sha256": model_hashes(model)[0]}
    chosen = list(left)[: MOST_ASKED * wanted]
    shown = "\n\n".join(f"Text: {sentence}\nQuestion: {question}" for sentence, question in _EXAMPLES)
    order = "Write the question that the last text answers, as short as the others.\n\n"
    prompts = [f"{order}{shown}\n\nText: {draft.fact.stated}\nQuestion:" for draft in chosen]
    answers = complete(str(settings.model), prompts, Drawing(max_tokens=40, threads=settings.threads), events)
    drafts = []
    for draft, (answer, *_) in zip(chosen, answers, strict=True):
        question = answer.strip().split("\n")[0].removeprefix("Question:").strip(" \"'*")
        draft = draft._replace(question=question, writer=writer)
        if why := _unclear(question, draft.fact.stated):
            rows.failed.append((draft, why))
            continue
        alone = draft.passage._replace(text=draft.fact.stated)
        probability = checker.probability(question, alone)
        if probability is None:
            rows.failed.append((draft, "no judge reads this collection, so a model's question cannot be checked"))
        elif probability < SURE:
            rows.failed.append((draft, "the judge doubts that the sentence alone answers"))
        else:
            drafts.append(draft)
    return drafts


def _unclear(question: str, stated: str) -> str:
    """Return why a model's text is no question that a sentence answers, "" where it may be one."""
    typed = question.split()
    if not question.endswith("?") or question.count("?") > 1 or not 4 <= len(typed) <= 20:
        return "the model wrote no single question"
    if not FactReader.can_be_asked(question):
        return "the question cannot be read alone"
    needed = r"\d" if _COUNTED.match(question) else _SAYS.get(typed[0].lower(), r"(?!)")
    named = _WHAT_IS.match(question)
    begins = rf"(?:the |an? )?{re.escape(named['what'])} (?:is|are) " if named else ""
    if not re.search(needed, stated) or not re.match(begins, stated, re.I):
        return "the sentence does not answer a question of this kind"
    own = set(words(question))
    if len(own - set(words(stated))) > 0.25 * len(own):
        return "the question has words that the sentence has not"
    if len(set(words(stated)) - own) < 2:
        return "the question gives the answer away"
    return ""


# What is left out, and twins


def _questions_of(path: Path) -> list[set[str]]:
    """Return the words of each question of a file."""
    prompts = [row_prompt(row, number).case for number, row in enumerate(read_table(path).rows, 1)]
    asked = [set(words(str(case.messages[-1]["content"]))) for case in prompts if case]
    if not asked:
        raise DataError(f"{path} has no question", "give rows with `prompt` or `messages`")
    return asked


def _leave_out_known(rows: _Rows, settings: RowsSettings, events: Events) -> None:
    """Move the rows that the base answers without the documents to those that failed."""
    drawing = Drawing(max_tokens=96, threads=settings.threads)
    answers = complete(str(settings.base), [row.draft.question for row in rows.made], drawing, events)
    remaining = []
    for row, (answer, *_) in zip(rows.made, answers, strict=True):
        own = set(words(row.draft.fact.answer)) - set(words(row.draft.question))
        if own and len(own & set(words(answer))) >= KNOWN * len(own):
            rows.failed.append((row.draft, f"{settings.base} answers it already"))
        else:
            remaining.append(row)
    rows.made[:] = remaining


def _twins(made: Sequence[MadeRow], checker: RowChecker) -> list[Json]:
    """Return pairs of rows with their text: one that answers, and one whose text was robbed of the answer."""
    pairs: list[Json] = []
    for row in made:
        draft, text = row.draft, row.draft.passage.text
        robbed = _without(text, row.span)
        if len(robbed.split()) < 20 or not checker.is_unanswered(
            draft.fact, draft.question, draft.passage._replace(text=robbed)
        ):
            continue
        for shown, answer in ((text, draft.fact.answer), (robbed, SILENT)):
            receipt = row.receipt() | {"twin": shown is robbed}
            pairs.append({"prompt": FROM_TEXT.format(shown, draft.question), "completion": answer, "receipt": receipt})
    return pairs


def _without(text: str, span: tuple[int, int]) -> str:
    """Return a text without a span and its marks: without its lines where these hold nothing else."""
    start, end = span
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    last = len(text) if last < 0 else last
    beside = text[first:start] + text[end:last]
    if not any(character.isalnum() for character in beside):
        return f"{text[:first]}{text[last + 1 :]}".strip()
    return f"{text[:start].rstrip()} {text[end:].lstrip(_END_MARKS)}".strip()


# Files


def _write(rows: _Rows, twins: Sequence[Json], settings: RowsSettings, card: Path, name: str) -> None:
    """Write the rows, what failed, and the card; raises DataError where there is no room."""
    failed = [
        {"prompt": draft.question, "completion": draft.fact.answer, "why": why, "place": draft.place,
         "kind": draft.fact.kind, "writer": draft.writer}
        for draft, why in rows.failed
    ]  # fmt: skip
    files: dict[Path, Sequence[Json]] = {
        settings.out: [*(row.to_json() for row in rows.made), *twins],
        settings.out.with_suffix(".failed.jsonl"): failed,
    }
    try:
        write_atomic(card, _card(rows, twins, settings, name))
        for path, records in files.items():
            write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except OSError as e:
        raise DataError(f"cannot write {e.filename}: {e.strerror}", "make room, or give another --out") from None


def _card(rows: _Rows, twins: Sequence[Json], settings: RowsSettings, name: str) -> str:
    kinds = Counter(row.draft.fact.kind for row in rows.made)
    by_kind = "\n".join(f"| {kind} | {number:,} |" for kind, number in kinds.most_common())
    reasons = "\n".join(f"| {why} | {number:,} |" for why, number in rows.reasons())
    is_judged = all(row.proof.probability is not None for row in rows.made)
    writer = f"rules, and {settings.model} where the kind is model" if settings.model else "rules"
    proved = (
        "its passage was among the first that were found, the answer judge gave it a probability of at least"
        f" {settings.least:g}, and pointed at the place of the answer"
        if is_judged
        else "its passage was the first that was found; the answer judge does not read this collection's embedder"
    )
    return (
        f"# Rows from {name}\n\nMade by `settle rows`: {len(rows.made):,} rows, {len(twins) // 2:,} pairs with their"
        f" text. Questions by {writer}; answers are the documents' own words. Seed {settings.seed}.\n\n"
        f"Each question was asked of the whole collection: {proved}.\n\n"
        f"| kind | rows |\n|---|---|\n{by_kind}\n\n## Left out\n\n| why | rows |\n|---|---|\n{reasons}\n"
    )
