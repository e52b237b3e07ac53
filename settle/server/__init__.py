"""One port that speaks OpenAI, Anthropic and Ollama in front of llama.cpp: nothing is silently lost, nothing leaks.

app         routes, start and stop
guard       who may ask: key, Host, Origin, size and number of requests
shapes/     one file a wire format
chat        a chat request in the one form all shapes are translated to, and its answer
tools       function calls for models whose template knows none
catalogue   what can be asked for by name
keeper      models on demand: loaded, kept, unloaded, restarted
clients/    one file a client: how it is set up, and what it asks
connecting  clients set up, tried, and put back
"""
