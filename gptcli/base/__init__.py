"""Errors, escaping, units, reports, signals and durable files: what every other package stands on. Imports no torch."""
