"""One of llama.cpp's own mixes, such as Q4_K_M: the types that `llama-quantize` gives."""

from settle.base.errors import UsageError
from settle.base.words.amounts import amount
from settle.shrink.quantizers import Quantizer, QuantizerInput
from settle.shrink.types.mixes import QUANTIZED_MIXES, mix_types
from settle.shrink.types.quantize_file import file_bytes


class Mix(Quantizer):
    """The types of the mix that is predicted to lose least, of those that fit."""

    def choose_types(self, model: QuantizerInput, num_bytes: int) -> dict[str, str]:
        types = {
            mix: {name: choice.kind for name, choice in mix_types(model.file, mix, True).items()}
            for mix in QUANTIZED_MIXES
        }
        sizes = {mix: file_bytes(model.file, kinds) for mix, kinds in types.items()}
        fitting = [mix for mix, size in sizes.items() if size <= num_bytes]
        if not fitting:
            smallest = min(sizes, key=sizes.__getitem__)
            raise UsageError(
                f"no mix of llama.cpp's makes a file of {amount(num_bytes, 'bytes')}; the smallest is {smallest} with "
                f"{amount(sizes[smallest], 'bytes')}",
                "ask for more, or leave the types to --quantizer auto",
            )
        return types[min(fitting, key=lambda mix: model.costs.predicted(types[mix]))]
