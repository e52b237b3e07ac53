"""Node.js, with the package openai."""

import json
from typing import ClassVar

from settle.connect.clients import NO_KEY, QUESTION, Client, ClientRequest, Connection, chat

PROGRAM = """\
import OpenAI from "openai"; // npm install openai, and save this as a .mjs file

const client = new OpenAI({{ baseURL: {url}, apiKey: {key} }});
const answer = await client.chat.completions.create({{
  model: {model},
  messages: [{{ role: "user", content: {question} }}],
  stream: true,
}});
for await (const chunk of answer) {{
  process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
}}
console.log();
"""


class Node(Client):
    """A program to start from."""

    about: ClassVar[str] = "a program with the package openai of npm"
    needs: ClassVar[int] = 0

    def steps(self, connection: Connection) -> str:
        values = {"url": connection.openai, "key": connection.key or NO_KEY, "model": connection.model}
        return PROGRAM.format(**{name: json.dumps(value) for name, value in (values | {"question": QUESTION}).items()})

    def requests(self, connection: Connection) -> list[ClientRequest]:
        headers = {"User-Agent": "OpenAI/JS 6.1.0", "X-Stainless-Lang": "js", "Accept": "application/json"}
        return [chat(connection, "the program", headers=headers)]
