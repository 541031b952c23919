"""A model behind the OpenAI-compatible HTTP API: an event loop for HTTP, and one thread beside it that owns the engine.

    place (listen) -> server (load, drain) -> guard (who may ask) -> app (routes) -> fields (JSON -> Ask)
        -> service (Ask -> requests to the engine) -> worker (the engine's thread) -> answer (whole, or as events)

Nothing here imports torch before the worker's thread does, so that the server listens at once.
"""
