"""How many threads a command takes: what the user, a container, Slurm and the affinity allow."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptcli.device.cpus import available_cpus, default_threads
from gptcli.device.process import KERNELS, WAITING

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup(root: Path, lines: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("lines", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 99),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "20000 100000\n"}, 1),
        ("0::/../host\n", {"cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/d\n", {"cpu/d/cpu.cfs_quota_us": "100000\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, 1),
        ("4:cpu:/d\n", {"cpu/d/cpu.cfs_quota_us": "-1\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, 99),
        ("5:memory:/d\n", {"cpu/d/cpu.cfs_quota_us": "100000\n", "cpu/d/cpu.cfs_period_us": "100000\n"}, 99),
        ("rubbish\n", {"cpu.max": "rubbish"}, 99),
    ],
)
def test_a_containers_quota(lines: str, files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    assert available_cpus({}, cgroup(tmp_path, lines, files)) == min(cpus, CORES)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "5", "SLURM_CPUS_PER_TASK": "1"}, 5),
        ({"SLURM_CPUS_PER_TASK": "1"}, 1),
        ({"OMP_NUM_THREADS": "none", "SLURM_CPUS_PER_TASK": "1"}, 1),
        ({"OMP_NUM_THREADS": "0", "SLURM_CPUS_PER_TASK": "x"}, None),
    ],
)
def test_the_environment_says_how_many(environment: dict[str, str], threads: int | None) -> None:
    assert default_threads(environment) == (threads or available_cpus({}))


REPORT = """
import os, torch
from gptcli.config.train import RuntimeConfig
from gptcli.device.runtime import keep_freed_memory, make_runtime
before = torch.get_num_threads()
runtime = make_runtime(RuntimeConfig())
print(before, runtime.threads, torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT"))
"""


def report(code: str, **environment: str) -> list[str]:
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", *WAITING, *KERNELS)
    clean = {name: value for name, value in os.environ.items() if name not in names}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_a_callers_process_stays_as_it_is() -> None:
    code = REPORT.replace("before =", "torch.set_num_threads(3); before =")
    assert report(code) == ["3", "3", "3", "None"]


def test_the_command_sets_threads_and_how_they_wait() -> None:
    own = "from gptcli.device.process import own_process; own_process()\n" + REPORT
    assert report(own)[1:] == [str(available_cpus()), str(available_cpus()), WAITING["GOMP_SPINCOUNT"]]
    assert report(own, OMP_NUM_THREADS="1")[1:] == ["1", "1", WAITING["GOMP_SPINCOUNT"]]
    assert report(own, OMP_WAIT_POLICY="ACTIVE")[-1] == "None"
    assert report(own, GOMP_SPINCOUNT="77")[-1] == "77"


SHAPES = """
import torch
from gptcli.device.private_torch import onednn_linear, onednn_pack
weight = onednn_pack(torch.randn(64, 64))
def resident(rows):
    for count in rows:
        onednn_linear()(torch.zeros(count, 64), weight, None, "none", [], "")
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = resident(range(1, 600))
print(resident(range(800, 1200)) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_command_bounds_the_kernels_that_onednn_keeps() -> None:
    """Kilobytes that other numbers of rows take when some hundred have been seen."""
    own = "from gptcli.device.process import own_process; own_process()\n"
    assert int(report(own + SHAPES)[0]) < 60_000 < int(report(SHAPES)[0])
    assert report(own + "import os; print(os.environ['LRU_CACHE_CAPACITY'])", LRU_CACHE_CAPACITY="9") == ["9"]


COLLECTION = """
import gc
from gptcli.config.train import RuntimeConfig
from gptcli.device.runtime import make_runtime
make_runtime(RuntimeConfig())
print(*gc.get_threshold(), gc.get_freeze_count() > 100_000)
"""


def test_the_command_keeps_modules_out_of_garbage_collection() -> None:
    defaults = [str(count) for count in gc.get_threshold()]
    own = "from gptcli.device.process import own_process; own_process()\n"
    assert report(own + COLLECTION) == [*defaults, "True"]
    assert report("import gc; gc.set_threshold(500, 5, 5)\n" + COLLECTION) == ["500", "5", "5", "False"]
