"""One port in front of llama.cpp for clients of OpenAI, Anthropic and Ollama: no field is ignored, nothing leaks.

Imports point down this list only:

serve        what `settle serve` does
app          routes, start and stop; openapi: the document of all routes
apis/        one folder or file an API: its routes, bodies and errors
gateway      how a request becomes a response
requests/    what all APIs share: chats, completions, embeddings, tools, and the requests to llama.cpp
grammars     what constrains an answer, and is checked; audit: what is noted of each request
models/      the models: found by name, loaded on demand, described, changed in the store
guard        who is let in, and what may be sent

Beside them mcp_tools: documents and verdicts over the Model Context Protocol, for one program, without a port.
"""
