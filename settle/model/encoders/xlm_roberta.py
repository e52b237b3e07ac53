"""XLM-RoBERTa (arXiv:1911.02116): bge-m3, multilingual-e5 and their rerankers; BERT whose positions begin later."""

from typing import ClassVar

from settle.model.encoders import EncoderFamily, Head, Json, TextEncoder
from settle.model.encoders.bert import bert_encoder, bert_names


class XlmRoberta(EncoderFamily):
    """XLM-RoBERTa."""

    model_type: ClassVar[str] = "xlm-roberta"
    stem: ClassVar[str] = "XLMRoberta"
    prefix: ClassVar[str] = "roberta."
    closings: ClassVar[int] = 2

    def build(self, config: Json) -> TextEncoder:
        return bert_encoder(config, config.get("pad_token_id", 1) + 1)

    def head(self, config: Json, labels: int, of_tokens: bool) -> Head:
        kinds = ("weight", "bias")
        if of_tokens:
            return Head(config["hidden_size"], labels, {f"out.{k}": f"classifier.{k}" for k in kinds}, None, None)
        names = {f"dense.{kind}": f"classifier.dense.{kind}" for kind in kinds}
        names |= {f"out.{kind}": f"classifier.out_proj.{kind}" for kind in kinds}
        return Head(config["hidden_size"], labels, names, "tanh")

    def names(self, encoder: TextEncoder) -> dict[str, str]:
        return bert_names(encoder)
