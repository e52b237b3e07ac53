"""A reranker or a groundedness model that scores pairs of texts. `settle.retrieve.answer.pair_models` runs it.

Started with the model's folder and a number of threads. Each line of stdin is a list of pairs of texts, each answer a
list of logits, or an object with an "error".
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from settle.base.errors import SettleError
from settle.model.encoder_folder import EncoderFolder

MOST_TOKENS = 512  # of a pair that are read; of a longer one the longer text is cut
BATCH = 8  # pairs


class PairScorer:
    """An opened model."""

    def __init__(self, path: Path) -> None:
        folder = EncoderFolder.open(path)
        self._tokenizer, self._most = folder.tokenizer, min(folder.most, MOST_TOKENS)
        self._model = folder.classifier().eval()

    @torch.inference_mode()
    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the logit of each pair, above 0 where the two go together."""
        encoded = [self._fitted(*(self._tokenizer.encode(text).ids for text in pair)) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, encoded[i])))
        logits = [0.0] * len(pairs)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            sides = [[torch.tensor(encoded[i][side]) for i in some] for side in (0, 1)]
            for place, logit in zip(some, self._model.pairs(*sides).tolist(), strict=True):
                logits[place] = logit
        return logits

    def _fitted(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Cut the longer of two texts, as long as they are too long together; the tokens around them stay."""
        room = self._most - self._model.family.closings
        while len(first) + len(second) > room and max(len(first), len(second)) > 2:
            longer = first if len(first) > len(second) else second
            del longer[-2]
        return first, second


def _serve() -> None:
    torch.set_num_threads(int(sys.argv[2]))
    scorer = None
    for line in sys.stdin:
        try:
            scorer = scorer or PairScorer(Path(sys.argv[1]))
            answer: object = scorer.logits(json.loads(line))
        except SettleError as e:
            answer = {"error": e.what}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
