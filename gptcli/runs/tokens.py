"""Filters between text and token ids; they write to stdout as they read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from gptcli import checkpoint_files, console
from gptcli.data.text import TextOptions, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer
from gptcli.display import shown
from gptcli.errors import ConfigError, DataError
