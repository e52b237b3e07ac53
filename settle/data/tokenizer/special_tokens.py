"""Tokens that are found in a text before it is cut into words: control tokens, and those a family defined by hand.

As llama.cpp does it: the longest token is looked for first, through the whole text. That equals one pass that takes
the longest token at each place, unless the end of one token is the beginning of another; then the slow way is taken.
"""

import re
from collections.abc import Collection, Mapping
from functools import cached_property

Tree = dict[str, "Tree"]  # next character → what may follow it; "" ends a token


class Finder:
    """Finds a set of tokens. tokens: text → id. strips: ids that swallow the ASCII white space behind them."""

    def __init__(self, tokens: Mapping[str, int], strips: Collection[int] = ()) -> None:
        self.tokens = {text: i for text, i in tokens.items() if text}
        self.strips = frozenset(strips)

    def split(self, text: str) -> list[str | int]:
        """The text as pieces without such a token (str, never empty) and tokens (int), in order."""
        if not self.tokens:
            return [text] if text else []
        pieces: list[str | int] = []
        if self._overlapping:
            pieces = self._one_by_one(text)
        else:
            for number, piece in enumerate(self._pattern.split(text)):
                pieces.append(self.tokens[piece] if number % 2 else piece)
        if self.strips:
            for before, i in enumerate(pieces[:-1]):
                after = pieces[before + 1]
                if isinstance(i, int) and i in self.strips and isinstance(after, str):
                    pieces[before + 1] = after.lstrip(" \t\n\v\f\r")
        return [piece for piece in pieces if piece != ""]

    def _one_by_one(self, text: str) -> list[str | int]:
        pieces: list[str | int] = [text]
        for token in sorted((t for t in self.tokens if t in text), key=lambda t: -len(t.encode())):
            left: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    left.append(piece)
                    continue
                first, *rest = piece.split(token)
                left.append(first)
                for part in rest:
                    left += [self.tokens[token], part]
            pieces = left
        return pieces

    @cached_property
    def _overlapping(self) -> bool:
        """Whether two tokens can overlap in a text, runs of one character aside: of them the longest wins anyway."""
        mixed = [t for t in self.tokens if len(set(t)) > 1]
        runs = [t for t in self.tokens if len(set(t)) == 1]
        begin_mixed = {t[:n] for t in mixed for n in range(1, len(t))}
        begin = begin_mixed | {t[:n] for t in runs for n in range(1, len(t))}
        return any(t[n:] in begin for t in mixed for n in range(1, len(t))) or any(
            t[n:] in begin_mixed for t in runs for n in range(1, len(t))
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Longest token first at each place; written as a tree, since there can be thousands."""
        tree: Tree = {}
        for token in self.tokens:
            node = tree
            for character in token:
                node = node.setdefault(character, {})
            node[""] = {}
        return re.compile(f"({_written(tree)})")


def _written(node: Tree) -> str:
    """A regular expression of a tree of characters, written without recursion into runs: `\\n\\n\\n…` is deep."""
    literal = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        literal += re.escape(character)
    branches = [re.escape(c) + _written(child) for c, child in node.items() if c != ""]
    if not branches:
        return literal
    inner = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return literal + (f"(?:{inner})?" if "" in node else inner)
