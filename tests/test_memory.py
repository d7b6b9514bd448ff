"""Memory that is left for a model, and the refusal of one that doesn't fit."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from minigpt4_serve import memory, serving_memory
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.memory import available_memory
from minigpt4_serve.serving_memory import check_memory, memory_needed
from minigpt4_serve.settings import ModelSettings

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 24 GiB available and no limits; tests add control groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {32 * 2**20} kB\nMemAvailable: {24 * 2**20} kB\n")
    (tmp_path / "cgroup").write_text("0::/user/job\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


def limit(folder: Path, at_most: str, used: int, droppable: int = 0, *, version: int = 2) -> None:
    names = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}[version]
    statistic = {2: "inactive_file", 1: "total_inactive_file"}[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{at_most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{statistic} {droppable}\n")


def test_without_limits_the_system_decides(system: Path) -> None:
    assert available_memory() == 24 * GIB
    limit(system / "groups" / "user" / "job", "max", GIB)
    assert available_memory() == 24 * GIB
    (system / "meminfo").unlink()
    assert available_memory() is None


@pytest.mark.parametrize("group", ["user/job", "user", ""])
def test_the_limit_of_any_control_group_above_counts(system: Path, group: str) -> None:
    limit(system / "groups" / group, str(16 * GIB), 10 * GIB, 4 * GIB)
    assert available_memory() == 10 * GIB
    limit(system / "groups" / group, str(16 * GIB), 17 * GIB)
    assert available_memory() == 0


def test_limits_of_the_first_version_of_control_groups(system: Path) -> None:
    (system / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/docker/abc\n1:name=systemd:/x\n")
    limit(system / "groups" / "memory", str(8 * GIB), GIB, version=1)  # in a container the host's path isn't there
    assert available_memory() == 7 * GIB
    limit(system / "groups" / "memory", "9223372036854771712", GIB, version=1)
    assert available_memory() == 24 * GIB


def test_ulimit_counts(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3 * GIB if which == resource.RLIMIT_AS else -1, -1))
    assert available_memory() == 3 * GIB


SEVEN = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 2048}


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    """A folder as large as a 7B model in float16, without its data."""
    folder = tmp_path / "seven"
    folder.mkdir()
    config = {"model_type": "minigpt4", "dtype": "float16", "text_config": SEVEN}
    (folder / "config.json").write_text(json.dumps(config))
    for number in (1, 2):
        (folder / f"model-{number:05}-of-00002.safetensors").touch()
        os.truncate(folder / f"model-{number:05}-of-00002.safetensors", 7 * GIB)
    return folder


def test_the_size_of_a_folder_in_a_dtype(seven: Path) -> None:
    assert memory_needed(seven, "float32") == 29 * GIB  # weights, and the default cache, half a chat
    assert memory_needed(seven, "bfloat16") == 15 * GIB  # the cache of one chat
    (seven / "config.json").write_text('{"dtype": "float16"}')
    assert memory_needed(seven, "float32") is None


@pytest.mark.parametrize(
    ("settings", "engines", "available", "says"),
    [
        ({}, 1, 24, "takes 29.0 GiB of memory as float32, the default on CPUs; 24.0 GiB are available. As bfloat16 it"),
        ({"dtype": "float32"}, 1, 24, "as float32; 24.0 GiB are available. As bfloat16 it takes 15.0 GiB and fits"),
        ({"quantization": "int4"}, 1, 24, "As bfloat16 it takes 15.0 GiB and fits"),
        ({}, 1, 12, "a machine with more memory, a smaller model, or a GPU"),
        ({"dtype": "bfloat16"}, 1, 12, "a machine with more memory"),
        ({"dtype": "bfloat16"}, 2, 24, "with 2 engines 30.0 GiB; 24.0 GiB are available. It fits with engines: 1"),
        ({}, 2, 24, "It fits with engines: 1 under scale: and dtype: bfloat16"),
        ({}, 2, 31, "As bfloat16 it takes 30.0 GiB and fits"),
        ({}, 1, 31, None),
        ({"dtype": "bfloat16"}, 1, 16, None),
        ({"device": "cuda"}, 1, 1, None),
        ({}, 1, None, None),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    seven: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    engines: int,
    available: int | None,
    says: str | None,
) -> None:
    monkeypatch.setattr(serving_memory, "available_memory", lambda: available and available * GIB)
    monkeypatch.setattr(serving_memory, "_gpu_devices", lambda: iter(()))
    chosen = ModelSettings(path=seven, **settings)
    if says is None:
        check_memory(chosen, engines=engines)
        return
    with pytest.raises(InvalidRequest) as caught:
        check_memory(chosen, engines=engines)
    assert says in caught.value.message


@pytest.mark.parametrize(("visible", "checked"), [(None, False), ("0", False), ("", True), ("-1", True)])
def test_a_gpu_is_used_unless_it_is_hidden(
    seven: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, checked: bool
) -> None:
    monkeypatch.setattr(serving_memory, "available_memory", lambda: GIB)
    monkeypatch.setattr(serving_memory, "_gpu_devices", lambda: iter(["/dev/nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if checked:
        with pytest.raises(InvalidRequest):
            check_memory(ModelSettings(path=seven))
    else:
        check_memory(ModelSettings(path=seven))
