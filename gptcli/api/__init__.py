"""The Python API: one module for every verb of the command line."""
