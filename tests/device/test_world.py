"""Which of how many processes this one is, by the variables of torchrun and Slurm."""

import pytest

from gptcli.base.errors import ConfigError
from gptcli.device.world import World, first_node, local_count, world


def test_torchrun_and_slurm_say_the_place() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    assert world(torchrun) == World(3, 4, 1, "first", 29500)
    slurm = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7",
             "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[03-04]"}  # fmt: skip
    assert world(slurm) == World(3, 4, 1, "gpu03", 20009)
    assert world({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == World()  # the batch script itself
    assert world({}) == World()


def test_how_many_are_on_this_machine() -> None:
    assert local_count(8, {"LOCAL_WORLD_SIZE": "4"}) == 4
    assert local_count(40, {"SLURM_STEP_TASKS_PER_NODE": "8,16(x2)"}) == 16
    assert local_count(8, {}) == 8


def test_a_place_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not below WORLD_SIZE"):
        world({"RANK": "4", "WORLD_SIZE": "4"})
    with pytest.raises(ConfigError, match="is no number"):
        world({"RANK": "x", "WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[003-010,12],login1", "gpu003"), ("a1,a2", "a1"), ("n[7,9]-ib", "n7-ib")]
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
