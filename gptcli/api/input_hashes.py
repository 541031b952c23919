"""The hashes of what a run file reads, as a checkpoint's lineage has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptcli.base.errors import ConfigError, DataError
from gptcli.config.data import DataConfig
from gptcli.config.finetune import FinetuneConfig
from gptcli.data.corpus import stamp_of, text_options
from gptcli.data.shards import is_prepared, read_index
from gptcli.data.text import Source, file_sha256, find_sources
from gptcli.tasks.task import reading
from gptcli.tasks.text import text_data


class InputHashes:
    """Hashes of files, each file read once as long as it does not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, tuple[int, ...]], str] = {}

    def of(self, config: Any) -> set[str] | None:
        """Return the SHA-256 of each input of a run file; None where one is a stream, or cannot be found or read."""
        try:
            if isinstance(config, FinetuneConfig) and config.task != "text":
                data = config.data
                return self._of_files(find_sources([*data.train, *data.validation], reading(data), rows=True))
            return self._of_text(text_data(config.data) if isinstance(config, FinetuneConfig) else config.data)
        except (ConfigError, DataError):
            return None

    def _of_text(self, data: DataConfig) -> set[str] | None:
        """Return the hashes of text, those of a prepared directory from its index."""
        prepared = [Path(name) for name in data.inputs if is_prepared(Path(name))]
        found = {fact["sha256"] for directory in prepared for fact in read_index(directory)["inputs"]}
        names = [name for name in (*data.inputs, *data.validation) if Path(name) not in prepared]
        files = self._of_files(find_sources(names, text_options(data))) if names else set()
        return None if files is None else found | files

    def _of_files(self, sources: list[Source]) -> set[str] | None:
        if any(source.path is None or source.stream is not None for source in sources):
            return None
        return set(self._hashes(source.path for source in sources if source.path is not None))

    def _hashes(self, paths: Iterator[Path]) -> Iterator[str]:
        for path in paths:
            key = path.absolute(), stamp_of(path)
            if key not in self._known:
                self._known[key] = file_sha256(path)
            yield self._known[key]
