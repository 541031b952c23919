"""What is written is what the safetensors library reads, and what is damaged is told before it is used."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from gptcli.base.errors import DataError, NumericalError
from gptcli.model.safetensors_io import DTYPES, check_finite, read_tensors, tensor_shapes, write_tensors

tensors = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(list(DTYPES)),
    st.integers(0, 2**40),
)


@settings(max_examples=60, deadline=None)
@given(written=st.dictionaries(st.text("abc.é\n", min_size=1, max_size=8), tensors, min_size=1, max_size=6))
def test_the_safetensors_library_reads_what_was_written(
    written: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    write_tensors(written, path)
    read = load_file(path)
    assert set(read) == set(written)
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert {name: tensor.shape for name, tensor in written.items()} == tensor_shapes(path)


def test_a_view_is_written_as_what_it_shows_and_metadata_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    whole = torch.arange(12.0).view(3, 4)
    write_tensors({"turned": whole.t(), "part": whole[1:, 2:]}, path, metadata={"format": "pt"})
    read = load_file(path)
    assert torch.equal(read["turned"], whole.t())
    assert torch.equal(read["part"], whole[1:, 2:])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_of_another_shape_or_name_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors({"a": torch.zeros(2, 3)}, path)
    assert read_tensors(path, {"a": torch.Size([2, 3])})["a"].shape == (2, 3)
    with pytest.raises(DataError, match=r"tensor a has shape \(2, 3\), want \(3, 2\)"):
        read_tensors(path, {"a": torch.Size([3, 2])})
    with pytest.raises(DataError, match=r"tensor b has shape none, want \(1,\)"):
        read_tensors(path, {"a": torch.Size([2, 3]), "b": torch.Size([1])})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut or damaged"):
        tensor_shapes(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    good = {"count": torch.ones(3, dtype=torch.int64), "none": torch.zeros(0), "weight": torch.randn(50, 7).to(dtype)}
    check_finite(good, "step 3")
    good["weight"][31, 4] = value
    with pytest.raises(NumericalError, match="step 3: weight holds values that are not finite"):
        check_finite(good, "step 3")
