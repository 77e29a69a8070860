"""Processors that a process may use: affinity, quotas of its groups, and threads that another machine recorded."""

from __future__ import annotations

import logging

import pytest

from llmc.compiler.base import processors
from llmc.compiler.base.processors import engine_threads, most_threads


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_physical_cores_count_hardware_threads_once(tmp_path):
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list", siblings + "\n")
    assert processors.physical_cores([0, 1, 2, 3], tmp_path) == min(2, processors.physical_cores([0, 1], tmp_path))
    assert processors.physical_cores([0, 2], tmp_path) == 1


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (9.0, 4), (4.0, 4), (3.0, 3), (2.9, 2), (1.5, 1), (0.5, 1)]
)
def test_physical_cores_respect_the_quota(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr(processors, "cgroup_cpu_quota", lambda: quota)
    assert processors.physical_cores([0, 1, 2, 3], tmp_path) == expected


def test_hardware_threads_of_a_core_count_once_whatever_the_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "cgroup_cpu_quota", lambda: None)
    for cpu, siblings in enumerate(["0,3", "1,4", "2,5", "0,3", "1,4", "2,5"]):
        write(tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list", siblings + "\n")
    assert processors.physical_cores(range(6), tmp_path) == 3
    assert processors.physical_cores([0, 3, 4], tmp_path) == 2


def test_cgroup_quota_of_a_parent_binds_version_2(tmp_path):
    write(tmp_path / "cgroup", "0::/parent/child\n")
    write(tmp_path / "root" / "parent" / "child" / "cpu.max", "max 100000\n")
    write(tmp_path / "root" / "parent" / "cpu.max", "250000 100000\n")
    assert processors.cgroup_cpu_quota(tmp_path / "root", tmp_path / "cgroup") == 2.5


def test_cgroup_quota_version_1(tmp_path):
    write(tmp_path / "cgroup", "3:memory:/other\n2:cpu,cpuacct:/job\n")
    write(tmp_path / "root" / "cpu,cpuacct" / "job" / "cpu.cfs_quota_us", "300000\n")
    write(tmp_path / "root" / "cpu,cpuacct" / "job" / "cpu.cfs_period_us", "100000\n")
    write(tmp_path / "root" / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1\n")
    assert processors.cgroup_cpu_quota(tmp_path / "root", tmp_path / "cgroup") == 3.0


def test_another_controller_whose_name_begins_alike_is_not_asked(tmp_path):
    write(tmp_path / "cgroup", "3:cpuset:/job\n2:cpuacct:/job\n")
    for name in ("cpuset", "cpuacct"):
        write(tmp_path / "root" / name / "job" / "cpu.cfs_quota_us", "100000\n")
        write(tmp_path / "root" / name / "job" / "cpu.cfs_period_us", "100000\n")
    assert processors.cgroup_cpu_quota(tmp_path / "root", tmp_path / "cgroup") is None


def test_no_cgroup_means_no_quota(tmp_path):
    assert processors.cgroup_cpu_quota(tmp_path, tmp_path / "none") is None


def test_the_narrowest_quota_of_a_group_and_its_parents_binds(tmp_path):
    write(tmp_path / "cgroup", "0::/a/b\n")
    for folder, cpus in (("a/b", 4), ("a", 3), ("", 6)):
        write(tmp_path / "root" / folder / "cpu.max", f"{cpus}00000 100000\n")
    assert processors.cgroup_cpu_quota(tmp_path / "root", tmp_path / "cgroup") == 3.0
    write(tmp_path / "root" / "cpu.max", "150000 100000\n")
    assert processors.cgroup_cpu_quota(tmp_path / "root", tmp_path / "cgroup") == 1.5


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (9.0, 6), (3.5, 3), (0.5, 1)])
def test_most_threads_are_hardware_threads_within_the_quota(monkeypatch, quota, expected):
    monkeypatch.setattr(processors, "cgroup_cpu_quota", lambda: quota)
    monkeypatch.setattr(processors, "usable_cpus", lambda: frozenset(range(6)))
    assert most_threads() == expected


@pytest.mark.parametrize(
    ("asked", "recorded", "expected", "said"),
    [
        (None, None, 2, ""),
        (None, 3, 3, ""),
        (None, 4, 4, ""),
        (3, 16, 3, ""),
        (None, 16, 4, "the engine was built for 16 threads and 4 can run here: opened with 4"),
        (16, 3, 16, "16 threads share 4 processors, which is slower than 4 threads"),
    ],
)
def test_a_recorded_number_is_not_obeyed_beyond_what_can_run(monkeypatch, caplog, asked, recorded, expected, said):
    monkeypatch.setattr(processors, "most_threads", lambda: 4)
    monkeypatch.setattr(processors, "physical_cores", lambda: 2)
    with caplog.at_level(logging.WARNING):
        assert engine_threads(asked, recorded) == expected
    assert said in caplog.text
    assert len(caplog.records) == bool(said)
