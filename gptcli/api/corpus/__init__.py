"""Work on corpora before training, one verb a module."""
