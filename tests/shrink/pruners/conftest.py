from tests.model.architectures.conftest import one_thread, tokenizer  # noqa: F401
