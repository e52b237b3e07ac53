"""What the tokens of a file are by its own word and by llama.cpp's; imports no tokenizer."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # token types of the GGUF format
# llama.cpp takes these for control tokens whatever the file says of them: ends of a text, a turn, a tool call
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|eom_id|>", "<EOT>", "[EOT]", "_<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<｜end▁of▁sentence｜>", "<|endoftext|>", "</s>", "[EOS]", "<eos>",
    "<|return|>", "<|call|>", "<|tool_response>",
)  # fmt: skip
# tokens that end one speaker's turn, where a file does not name its own
TURN_ENDS = ENDS[:8]
