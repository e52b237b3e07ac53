"""Python, with the package openai."""

from typing import ClassVar

from settle.connect.clients import NO_KEY, QUESTION, Client, ClientRequest, Connection, chat

PROGRAM = """\
from openai import OpenAI  # pip install openai

client = OpenAI(base_url={url!r}, api_key={key!r})
answer = client.chat.completions.create(
    model={model!r},
    messages=[{{"role": "user", "content": {question!r}}}],
    stream=True,
)
for chunk in answer:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""


class Python(Client):
    """A program to start from."""

    about: ClassVar[str] = "a program with the package openai"
    needs: ClassVar[int] = 0

    def steps(self, connection: Connection) -> str:
        key = connection.key or NO_KEY
        return PROGRAM.format(url=connection.openai, key=key, model=connection.model, question=QUESTION)

    def requests(self, connection: Connection) -> list[ClientRequest]:
        headers = {"User-Agent": "OpenAI/Python 3.57.0", "X-Stainless-Lang": "python", "Accept": "application/json"}
        return [chat(connection, "the program", headers=headers)]
