"""What 8 bits cost: seen in `gptcli evaluate`, and little."""

import json

import pytest
import torch
from conftest import RunCli, Tiny


@pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch was built without FBGEMM"
)
def test_int8_costs_less_than_half_a_percent_of_bits_per_byte(tiny: Tiny, run_cli: RunCli) -> None:
    found = {}
    for options in ([], ["--quantize", "int8"]):
        result = run_cli("evaluate", tiny.run, tiny.corpus, "--json", "-q", *options)
        assert result.code == 0, result.err
        found[len(options)] = json.loads(result.out)["bits_per_byte"]
    assert found[2] != found[0]
    assert found[2] == pytest.approx(found[0], rel=0.005)
