"""The language of a text, by py3langid (Lui and Baldwin 2012): 139 languages, the model lies in the package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.data.filters.extra import extra

LOOKED_AT = 2000  # characters, from the beginning


@cache
def _identifier() -> Any:
    library = extra("py3langid.langid", "corpus", "tell languages")
    return library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of a text's language and its probability among all that are known."""
    if not any(map(str.isalpha, text[:LOOKED_AT])):
        return "und", 0.0
    code, probability = _identifier().classify(text[:LOOKED_AT])
    return str(code), float(probability)


def check_languages(codes: Sequence[str]) -> None:
    """Raise ConfigError for a code that is not known, with the nearest."""
    if not codes:
        return
    known = sorted(map(str, _identifier().labels))
    for code in codes:
        if code not in known:
            near = difflib.get_close_matches(code, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {' '.join(known)}"
            raise ConfigError(f"--language: unknown code {escape(repr(code))}{hint}")
