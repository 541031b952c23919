"""The Python API: a function for every verb of the command line. Importing a module here may import torch."""
