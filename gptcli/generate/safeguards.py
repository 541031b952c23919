"""What whoever runs a model holds its texts to, whatever a request asks for."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.base.errors import DataError
from gptcli.config.generate import GenerateOptions
from gptcli.generate.watermark import Watermark


@dataclass(frozen=True)
class Safeguards:
    """The measures of one engine; none is on by itself."""

    watermark: Watermark | None = None
    require_watermark: bool = False

    def check(self, options: GenerateOptions) -> None:
        """Raise DataError where a text with such options must be marked and could not be."""
        if self.require_watermark and options.temperature == 0:
            raise DataError(
                "temperature 0 draws nothing, so that no watermark can be put in; raise it, or drop --require-watermark"
            )


NONE = Safeguards()
