"""Every run file in examples/ loads, and the GPT-3 files are the rows of the paper's table."""

from pathlib import Path

import pytest

from gptcli.config import yaml_file, yaml_write
from gptcli.config.run_file import kind_of_run_file
from gptcli.config.sweep import SweepConfig
from gptcli.config.train import PretrainConfig

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))
# Brown et al. 2020, table 2.1: layers, width, heads, head width, batch in tokens, learning rate; the two rows that
# contradict themselves as corrected in config.GPT3_SIZES.
GPT3_TABLE = {
    "125m": (12, 768, 12, 64, 0.5e6, 6.0e-4),
    "350m": (24, 1024, 16, 64, 0.5e6, 3.0e-4),
    "760m": (24, 1536, 16, 96, 0.5e6, 2.5e-4),
    "1.3b": (24, 2048, 16, 128, 1e6, 2.0e-4),
    "2.7b": (32, 2560, 32, 80, 1e6, 1.6e-4),
    "6.7b": (32, 4096, 32, 128, 2e6, 1.2e-4),
    "13b": (40, 5120, 40, 128, 2e6, 1.0e-4),
    "175b": (96, 12288, 96, 128, 3.2e6, 0.6e-4),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_its_effective_file_loads_again(path: Path) -> None:
    kind = SweepConfig if path.stem == "sweep" else kind_of_run_file(path.read_text())
    loaded = yaml_file.load(kind, path)
    assert yaml_file.parse(kind, yaml_write.dump(loaded.value), name="dump").value == loaded.value
    assert yaml_file.parse(kind, yaml_write.show(loaded), name="show").value == loaded.value


@pytest.mark.parametrize("size", GPT3_TABLE)
def test_a_gpt3_file_is_its_row_of_the_papers_table(size: str) -> None:
    layers, width, heads, head_width, batch_tokens, learning_rate = GPT3_TABLE[size]
    path = Path(__file__).parent.parent / "examples" / f"gpt3-{size}.yaml"
    config = yaml_file.load(PretrainConfig, path).value
    model = config.model
    assert (model.num_layers, model.hidden_size, model.num_heads, model.head_size) == (layers, width, heads, head_width)
    assert model.context_length == 2048
    assert config.optim.learning_rate == learning_rate
    assert config.train.batch_size * model.context_length == pytest.approx(batch_tokens, rel=0.05)
    assert config.train.steps * config.train.batch_size * model.context_length == pytest.approx(300e9, rel=0.001)
