"""How a byte-level vocabulary spells bytes; here alone, so that reading tokens loads no library that makes them."""


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: what `tokenizers` and GGUF files spell tokens with."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()
