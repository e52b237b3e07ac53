"""Reduces a question to its topic, without the words that only ask."""

import re

from settle.retrieve.index.words import words

_BEGINNINGS = (
    r"(?:please|so|ok|okay|hi|hello|hey|and|but)\b[,\s]*",
    r"(?:can|could|would|will) (?:you|anyone|anybody|someone|somebody) (?:please )?",
    r"i(?:'d| would)? (?:like|want|need|have to|wish)(?: to know| to learn)?(?: some| a bit of| more)*"
    r"(?: (?:help|information|advice|details))?(?: (?:with|about|on|for|to))?\b",
    r"(?:i(?:'m| am) )?(?:looking|searching) for(?: (?:an?|the))?(?: (?:word|term|name))?(?: for)?\b:?",
    r"i(?:'m| am) trying to\b",
    r"i (?:keep|kept) (?:on )?(?:reading|hearing|seeing) about\b",
    r"how (?:do|can|could|should|would|might|must|does|did) (?:i|we|you|one|people)\b",
    r"how (?:to|do|does|did|is|are|can)\b",
    r"how (?:long|often|soon) (?:do|does|did|is|are|can|will)\b",
    r"is there (?:a|any|some) (?:good |easy )?(?:way|possibility) (?:to|of)\b",
    r"what is the (?:best |right |usual )?way (?:to|of)\b",
    r"what (?:is|are) (?:there to (?:know|say) about|there to|known about|meant by)\b",
    r"what do (?:you|we|people|they) call(?: it)?\b",
    r"(?:what (?:is|are|does|do|did|was|were)|what's)(?: (?:the|a|an))?"
    r"(?: (?:meaning|definition|name|word|term) (?:of|for))?\b",
    r"(?:which|what) (?:word|term|name|page|part|section|chapter|document)"
    r" (?:means|stands for|denotes|is about|describes|explains|is for|tells)\b",
    r"where (?:is|are|can i (?:find|read about)|do i (?:find|read about)|does it say)\b",
    r"(?:tell|show) me(?: more)?(?: (?:about|how to|how|what))?\b",
    r"(?:explain|describe|define)(?: to me)?\b",
    r"(?:the )?(?:meaning|definition) of\b",
    r"(?:what|how) about\b",
)
_BEGINNING = re.compile(rf"\s*(?:{'|'.join(_BEGINNINGS)})", re.I)
_SCOPE = re.compile(r"\s*in [^,?]{2,40},\s", re.I)  # In networking, what is …
_ENDS = {
    "how": r"works?|(?:is|are) used|used",
    "what": r"means?|stands? for|called",
    "where": r"explained|described|defined|documented|found",
}
_END = {first: re.compile(rf"\s+(?:{end})\s*[?.!]*\s*$", re.I) for first, end in _ENDS.items()}
_ASIDE = re.compile(r",? what (?:is|are) (?:it|that|they|this)\s*[?.!]*\s*$", re.I)


def topic(question: str) -> str:
    """A question without what it begins and ends with where that only asks, as far as any word is left."""
    scope = _SCOPE.match(question)
    prefix, left = (scope[0], question[scope.end() :]) if scope else ("", question)
    remainder = left
    while (match := _BEGINNING.match(left)) and match.end():
        left = left[match.end() :]
    if left is remainder:
        return question
    first = re.match(r"\w*", remainder.lstrip().lower())
    end = _END.get(first[0]) if first else None
    left = _ASIDE.sub("", end.sub("", left) if end else left)
    return f"{prefix}{left.lstrip()}".strip() if words(left) else question
