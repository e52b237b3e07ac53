"""The proof before the first step: the gradient, the mask and the packing are right for this recipe and this data."""
