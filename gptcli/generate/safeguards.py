"""The rules to which whoever runs a model holds its texts, whatever a request asks for."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.base.errors import DataError
from gptcli.config.generate import GenerateOptions
from gptcli.generate.blocking import Blocked
from gptcli.generate.watermark import Watermark


@dataclass(frozen=True)
class Safeguards:
    """The measures of one engine; none is on by itself."""

    watermark: Watermark | None = None
    require_watermark: bool = False
    blocked: Blocked | None = None
    mask_pii: bool = False

    def check(self, options: GenerateOptions) -> None:
        """Raise DataError where a text with such options must be marked and could not be."""
        if self.mask_pii and (options.logprobs or options.prompt_logprobs):
            raise DataError("logprobs show the tokens that --mask-pii hides; leave out the one or the other")
        if self.require_watermark and options.temperature == 0:
            raise DataError(
                "temperature 0 draws nothing, so that no watermark can be put in; raise it, or drop --require-watermark"
            )


NONE = Safeguards()
