"""Text out of a model: the engine, its cache, drawing tokens, and what binds them."""
