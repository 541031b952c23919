"""From bytes to documents, tokens, shards and batches; rows and conversations as data."""
