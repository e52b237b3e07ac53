from tests.commands.conftest import brief_exports  # noqa: F401  for runs that are made here
