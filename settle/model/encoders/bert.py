"""BERT encoders in Hugging Face's layout."""

from typing import ClassVar

from settle.model.encoder import Encoder, EncoderOptions, gguf_names
from settle.model.encoders import EncoderFamily, Head, Json, TextEncoder, require
from settle.model.layers.freezable import as_kind

OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}  # Hugging Face's names and GGUF's
OF_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


class Bert(EncoderFamily):
    """BERT, as MiniLM, bge and e5 are."""

    model_type: ClassVar[str] = "bert"
    stem: ClassVar[str] = "Bert"
    prefix: ClassVar[str] = "bert."

    def build(self, config: Json) -> TextEncoder:
        return bert_encoder(config, 0)

    def head(self, config: Json, labels: int, of_tokens: bool) -> Head:
        names = {f"out.{kind}": f"classifier.{kind}" for kind in ("weight", "bias")}
        if of_tokens:
            return Head(config["hidden_size"], labels, names, None, None)
        names |= {f"dense.{kind}": f"bert.pooler.dense.{kind}" for kind in ("weight", "bias")}
        return Head(config["hidden_size"], labels, names, "tanh")

    def names(self, encoder: TextEncoder) -> dict[str, str]:
        return bert_names(encoder)


def bert_encoder(config: Json, position_offset: int) -> Encoder:
    """Build an encoder of BERT's kind. position_offset: the row of its first position."""
    require(config, hidden_act=("gelu",), position_embedding_type=("absolute", None), is_decoder=(False,))
    options = EncoderOptions(
        vocab_size=config["vocab_size"],
        context=config["max_position_embeddings"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        epsilon=config.get("layer_norm_eps", 1e-12),
        types=config.get("type_vocab_size", 2),
        position_offset=position_offset,
    )
    return Encoder(options)


def bert_names(encoder: TextEncoder) -> dict[str, str]:
    """Map the parameters of an encoder of BERT's kind to Hugging Face's names."""
    stems, layers = {gguf: hf for hf, gguf in OUTSIDE.items()}, len(as_kind(encoder, Encoder).blocks)
    for layer in range(layers):
        stems |= {f"blk.{layer}.{gguf}": f"encoder.layer.{layer}.{hf}" for hf, gguf in OF_LAYER.items()}
    ours = {own: gguf.rpartition(".") for gguf, own in gguf_names(layers).items()}
    return {own: f"{stems[stem]}.{kind}" for own, (stem, _, kind) in ours.items()}
