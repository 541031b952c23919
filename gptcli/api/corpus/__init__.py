"""Work on corpora before training, a verb a module."""
