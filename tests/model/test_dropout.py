import numpy as np
import pytest

from gptcli.model import dropout


def test_a_thread_may_seed_while_another_loads_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's own lookup recurses without end at the moment when the module is loaded and not yet an attribute."""
    dropout.seed(1, numpy=True)
    monkeypatch.delattr(np, "random")
    dropout.seed(2, numpy=True)
