"""Every family of encoders against transformers, its heads, and folders against sentence-transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from settle.base.errors import FormatError
from settle.model.encoder import padded
from settle.model.encoder_folder import EncoderFolder, positive_label, write_encoder
from settle.model.encoders import EncoderFamily, TextEncoder
from tests.bert import TEXTS
from tests.encoders import CASES, tiny_encoder

LENGTHS = [1, 30, 17, 9]
PAIRS = [("How do I rotate the key", "the key of the server restart"), ("of", "a passage")]


def _rows() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return padded([torch.randint(5, 90, (length,), generator=random) for length in LENGTHS], torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
def test_states_and_gradients_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path, case)
    theirs = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ours = EncoderFolder.open(folder).encoder().eval()
    ids, mask = _rows()
    filled = ids.where(mask, torch.tensor(theirs.config.pad_token_id))  # from it XLM-RoBERTa knows positions
    expected = theirs(filled, attention_mask=mask.long()).last_hidden_state
    states = ours.states(ids, mask)
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-4, rtol=1e-4)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    for x in (states, expected):
        (x[mask] @ direction).tanh().sum().backward()
    own, named = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, theirs_name in EncoderFamily.parts()[CASES[case]["model_type"].replace("-", "_")]().names(ours).items():
        gradient = named[theirs_name].grad
        # padding has no gradient there
        rows = (
            slice(4, None) if theirs_name.endswith(("word_embeddings.weight", "tok_embeddings.weight")) else slice(None)
        )
        if gradient is not None:
            torch.testing.assert_close(own[name].grad[rows], gradient[rows], atol=1e-4, rtol=1e-3)
    texts = [row[None, :length] for row, length in zip(ids, LENGTHS, strict=True)]
    alone = torch.cat([ours.states(text, torch.ones_like(text, dtype=torch.bool))[0] for text in texts])
    torch.testing.assert_close(alone, states[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("case", [c for c in CASES if c != "deberta-v2-narrow"])
def test_heads_give_the_logits_of_transformers_and_are_written_again(case: str, kind: str, tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path / "a", case, kind, labels=3)
    ids, mask = _rows()
    ours = EncoderFolder.open(folder).classifier().eval()
    again = write_encoder(tmp_path / "b", ours.encoder, EncoderFolder.open(folder), classifier=ours)
    for path in (folder, again):
        auto = getattr(transformers, f"AutoModel{kind}")
        theirs, info = auto.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        filled = ids.where(mask, torch.tensor(theirs.config.pad_token_id))
        with torch.no_grad():
            expected, logits = theirs.eval()(filled, attention_mask=mask.long()).logits, ours.logits(ids, mask)
        real = mask if kind == "ForTokenClassification" else slice(None)
        torch.testing.assert_close(logits[real], expected[real], atol=1e-4, rtol=1e-4)
        kl = torch.nn.functional.kl_div(
            logits[real].log_softmax(-1), expected[real].log_softmax(-1), log_target=True, reduction="batchmean"
        )
        assert float(kl) < 1e-6


def test_a_pair_is_read_as_its_tokenizer_would_join_it(tmp_path: Path) -> None:
    folder = EncoderFolder.open(tiny_encoder(tmp_path, "bert", "ForSequenceClassification"))
    model = folder.classifier().eval()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    sides = [[torch.tensor(folder.tokenizer.encode(pair[side]).ids) for pair in PAIRS] for side in (0, 1)]
    with torch.no_grad():
        scores = model.pairs(*sides)
        for score, pair in zip(scores, PAIRS, strict=True):
            joined = folder.tokenizer.encode(*pair)
            given = {"input_ids": torch.tensor([joined.ids]), "token_type_ids": torch.tensor([joined.type_ids])}
            torch.testing.assert_close(score, theirs(**given).logits[0, 0], atol=1e-4, rtol=1e-4)
    first, second = torch.tensor([0, 7, 2]), torch.tensor([0, 8, 9, 2])
    roberta = EncoderFolder.open(tiny_encoder(tmp_path / "x", "xlm-roberta", "ForSequenceClassification")).classifier()
    assert roberta._joined(first, second).tolist() == [0, 7, 2, 2, 8, 9, 2]


def test_the_least_supported_token_of_a_claim_decides(tmp_path: Path) -> None:
    folder = EncoderFolder.open(tiny_encoder(tmp_path, "modernbert", "ForTokenClassification", labels=2))
    model = folder.classifier().eval()
    assert folder.use == "ground"
    passage, claim = torch.tensor([2, 10, 11, 12, 3]), torch.tensor([2, 20, 21, 3])
    with torch.no_grad():
        logits = model.logits(torch.cat([passage, claim[1:]])[None], torch.ones(1, 8, dtype=torch.bool))[0]
        score = model.pairs([passage, passage], [claim, torch.tensor([2, *range(30, 50), 3])])[0]
    torch.testing.assert_close(score, (logits[5:7, 0] - logits[5:7, 1]).min(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("labels", "of_tokens", "own"),
    [
        (("contradiction", "entailment", "neutral"), False, 1), (("LABEL_0", "LABEL_1"), False, 1),
        (("LABEL_0", "LABEL_1"), True, 0), (("supported", "hallucinated"), True, 0), (("no", "yes"), False, 1),
        (("unsupported", "supported"), False, 1), (("not_entailment", "entailment"), False, 1),
    ],
)  # fmt: skip
def test_which_label_speaks_for_a_pair(labels: tuple[str, ...], of_tokens: bool, own: int) -> None:
    assert positive_label(labels, of_tokens) == own


def _vectors(model: TextEncoder, folder: EncoderFolder, prefix: str) -> Tensor:
    with torch.no_grad():
        return model.vectors(*padded([folder.tokenizer.encode(prefix + text).ids for text in TEXTS], model.device))


@pytest.mark.parametrize(("pooling", "normalizes"), [("cls", True), ("mean", False), ("lasttoken", True)])
def test_sentence_transformers_folders_are_read_and_written(pooling: str, normalizes: bool, tmp_path: Path) -> None:
    """Prompts, pooling, a Dense module and normalization: the vectors are that library's, also from what is written."""
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    parts = [Transformer(str(tiny_encoder(tmp_path / "hf")), max_seq_length=48)]
    parts += [Pooling(32, pooling_mode=pooling), Dense(32, 24, activation_function=torch.nn.Tanh())]
    parts += [Normalize()] if normalizes else []
    prompts = {"query": "query: ", "document": "passage: "}
    library.SentenceTransformer(modules=parts, prompts=prompts, device="cpu").save(str(tmp_path / "st"))
    folder = EncoderFolder.open(tmp_path / "st")
    assert (folder.most, folder.pooling, folder.normalizes, folder.use) == (48, pooling, normalizes, "embed")
    model = folder.encoder().eval()
    written = write_encoder(tmp_path / "again", model, folder)
    assert (
        EncoderFolder.open(written).dense[0].activation == "tanh"
        and EncoderFolder.open(written).normalizes == normalizes
    )
    for path in (tmp_path / "st", written):
        theirs = library.SentenceTransformer(str(path), device="cpu")
        for name, prefix in (("query", folder.query_prefix), ("document", folder.document_prefix)):
            expected = theirs.encode(TEXTS, prompt_name=name, convert_to_tensor=True)
            expected = torch.nn.functional.normalize(expected, dim=-1)  # settle always does
            torch.testing.assert_close(_vectors(model, folder, prefix), expected, atol=1e-4, rtol=1e-4)


def test_a_cross_encoder_of_that_library_scores_alike(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = EncoderFolder.open(tiny_encoder(tmp_path / "a"))
    torch.manual_seed(0)
    model = folder.classifier().eval()
    written = write_encoder(tmp_path / "b", model.encoder, folder, classifier=model)
    assert EncoderFolder.open(written).use == "rerank"
    theirs = library.CrossEncoder(str(written), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    sides = [[torch.tensor(folder.tokenizer.encode(pair[side]).ids) for pair in PAIRS] for side in (0, 1)]
    with torch.no_grad():
        torch.testing.assert_close(model.pairs(*sides), torch.from_numpy(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("config.json", {"hidden_activation": "swish2"}, "hidden_activation is 'swish2'"),
        ("config.json", {"num_hidden_layers": 5}, "the file has no layers.4"),
        ("config.json", {"hidden_size": 16}, "disagree"),
        ("config.json", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        ("tokenizer.json", {"model": None}, "holds no tokenizer"),
        ("modules.json", [{"type": "x.LSTM", "path": "1_LSTM"}], "a module LSTM in 1_LSTM"),
        ("modules.json", [{"type": "x.Dense", "path": "../elsewhere"}], "names a folder outside"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "its pooling is"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(tmp_path: Path, file: str, change: object, says: str) -> None:
    folder = tiny_encoder(tmp_path / "hf")
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    if isinstance(change, dict) and path.is_file():
        change = json.loads(path.read_text()) | change
    path.write_text(json.dumps(change))
    with pytest.raises(FormatError, match=says):
        found = EncoderFolder.open(folder)
        found.encoder()
        assert found.tokenizer


def test_a_folder_of_another_kind_is_no_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert EncoderFolder.find(tmp_path) is None
    with pytest.raises(FormatError, match="no encoder that is known here"):
        EncoderFolder.open(tmp_path)
