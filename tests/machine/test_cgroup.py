"""Control groups as they look from inside containers and on bare machines, laid out as files."""

import pytest

from settle.machine.cgroup import limits
from settle.machine.cores import cores
from settle.machine.memory import memory

V2 = "30 23 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "3{n} 31 0:2{n} {root} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"


def lay(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_no_control_groups(tmp_path):
    assert limits(tmp_path).cpus is None and limits(tmp_path).memory is None


def test_version_2_takes_the_tightest_of_all_levels(tmp_path):
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            "proc/self/mountinfo": V2.format(root="/", point="/sys/fs/cgroup"),
            "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "2000000000\n",
            "sys/fs/cgroup/user.slice/memory.current": "1500000000\n",
            "sys/fs/cgroup/user.slice/memory.stat": "anon 1\ninactive_file 500000000\n",
            "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/job/memory.max": "max\n",
        },
    )
    found = limits(tmp_path)
    assert (found.cpus, found.memory, found.memory_used) == (1.5, 2_000_000_000, 1_000_000_000)
    told = memory(tmp_path)
    assert told.total == told.limit == 2_000_000_000 and told.available <= 1_000_000_000
    assert cores(tmp_path).usable <= 2


def test_version_2_inside_a_container(tmp_path):
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2.format(root="/", point="/sys/fs/cgroup"),
            "sys/fs/cgroup/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/memory.max": "1000000000\n",
        },
    )
    assert limits(tmp_path).cpus == 0.5 and cores(tmp_path).usable == 1
    assert memory(tmp_path).available <= 1_000_000_000


def test_version_1_with_and_without_limits(tmp_path):
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
            "proc/self/mountinfo": V1.format(n=1, root="/docker/abc", name="memory")
            + V1.format(n=2, root="/docker/abc", name="cpu"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert limits(tmp_path).memory is None and limits(tmp_path).cpus is None
    lay(
        tmp_path,
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "4096000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "96000\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 6000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
        },
    )
    found = limits(tmp_path)
    assert (found.cpus, found.memory, found.memory_used) == (2.5, 4_096_000, 90_000)


@pytest.mark.parametrize("text", ["", "nonsense\n", "a b c\n"])
def test_damaged_files_mean_no_limit(tmp_path, text):
    lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2.format(root="/", point="/sys/fs/cgroup"),
            "sys/fs/cgroup/cpu.max": text,
            "sys/fs/cgroup/memory.max": text,
        },
    )
    assert limits(tmp_path).memory is None and limits(tmp_path).cpus is None
