"""Tokenizers: trained here, or read from the files of a pretrained model."""
