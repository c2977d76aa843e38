"""Commands that run out of memory, and an export on a machine that has little of it."""

import errno
import json

import pytest
import torch

from evomerge.cli import run_command


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), False),
        (MemoryError(), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_no_bug_and_is_exit_code_three(error, remedy, tmp_path, monkeypatch, capsys):
    def exhausted(*arguments, **options):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evomerge.static_merges.static_merge.merge_file", exhausted)
    assert run_command(["merge", "recipe.json", "--out", "out"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: out of memory: ")
    assert said.endswith("run the same command again")
    assert ("or give --device cpu;" in said) == remedy


def test_an_export_is_written_where_a_worker_would_not_fit(write_spec, tmp_path, monkeypatch, capsys):
    spec = str(write_spec(budget={"trials": 1}, baselines=[]))
    assert run_command(["run", spec, "--ray", "none"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("evomerge.bank.placement.total_memory", lambda: 100_000)
    assert run_command(["export", spec, "--out", "out", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]
    assert "--device cpu" in (tmp_path / "out" / "README.md").read_text()


def test_an_export_to_a_device_that_does_not_exist_is_refused(write_spec, capsys):
    assert run_command(["export", str(write_spec()), "--out", "out", "--device", "tpu"]) == 2
    assert "--device tpu: it can be cpu or cuda" in capsys.readouterr().err
