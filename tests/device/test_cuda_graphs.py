"""Recordings of work: kept where a replay does the same, dropped where it does not. CUDA's own are recorded nowhere
here; what stands for them is Python that does as told."""

import pytest
import torch

from gptcli.device.cuda_graphs import Work, recorded


class Noise:
    """Adds random numbers to a tensor, and counts."""

    def __init__(self) -> None:
        self.total, self.times = torch.arange(4.0), torch.zeros((), dtype=torch.long)

    def __call__(self) -> None:
        self.total += torch.rand(4)
        self.times += 1


def state(noise: Noise) -> list[torch.Tensor]:
    return [noise.total, noise.times]


def test_a_replay_that_does_the_same_is_kept_and_the_work_was_done_once() -> None:
    noise, plain = Noise(), Noise()
    torch.manual_seed(3)
    replay = recorded(noise, state(noise), record=lambda work: lambda: work())
    assert replay is not noise
    replay()
    torch.manual_seed(3)
    plain()
    plain()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(noise), state(plain), strict=True))


def does_nothing(_: Work) -> Work:
    return lambda: None


def does_it_twice(work: Work) -> Work:
    return lambda: (work(), work())[0]


def cannot(_: Work) -> Work:
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("record", [does_nothing, does_it_twice, cannot])
def test_else_the_work_stays_and_was_done_once(record: object) -> None:
    noise, plain = Noise(), Noise()
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="no CUDA graphs: "):
        assert recorded(noise, state(noise), record=record) is noise  # type: ignore[arg-type]
    torch.manual_seed(3)
    plain()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state(noise), state(plain), strict=True))
