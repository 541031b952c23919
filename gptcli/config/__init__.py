"""Run files: frozen dataclass sections, read from YAML and written back. Imports no torch."""
