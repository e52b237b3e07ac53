"""The types of tokens in GGUF files, the tokens that end a text or a turn, and how bytes are spelled."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the GGUF format
# llama.cpp takes these for control tokens whatever the file says of them: ends of a text, a turn, a tool call
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eom_id|>", "<EOT>", "[EOT]", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "[EOS]", "<eos>",
    "<|return|>", "<|call|>", "<|tool_response>",
)  # fmt: skip
# tokens that end one speaker's turn, where a file does not name its own
TURN_ENDS = ENDS[:8]


def _byte_characters() -> dict[int, str]:
    """Return GPT-2's printable stand-in for each byte: what `tokenizers` and GGUF files spell tokens with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()
