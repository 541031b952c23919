"""A model behind the OpenAI-compatible HTTP API: an event loop for HTTP, and one thread beside it that owns the engine.

    server (listen, drain) -> app (routes) -> fields (JSON -> requests) -> worker (the engine's thread) -> answer

Nothing here imports torch before the worker's thread does, so that the server listens at once.
"""
