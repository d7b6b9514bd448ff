"""The benchmark runs from the tree, with the smallest sizes, without Ray, FastAPI and matplotlib."""

import importlib
import json
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt4_serve.engine import Engine
from minigpt4_serve.settings import EngineSettings

pytestmark = pytest.mark.timeout(1000)  # the smallest sizes on the slowest machine

TOOL = Path(__file__).parents[2] / "tools" / "bench.py"
WITHOUT_SERVER = """
import runpy, sys
sys.modules.update(ray=None, fastapi=None, matplotlib=None)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SERVER, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_it_measures_all_sides_and_writes_figures(tmp_path: Path) -> None:
    done = run("--preset", "smoke", "--skip-transformers", "--roofline", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Burst" in done.stdout
    result = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    one, _, left_out, ours = result["burst"].values()
    assert one["tokens"] == ours["tokens"] > 0
    assert left_out == {"not_available": "left out"}
    assert ours["ttft_p50_ms"] > 0
    assert ours["decode_steps"] <= one["decode_steps"]
    assert result["turns_with_reuse"][1]["cached_tokens"] > result["turns_without_reuse"][1]["cached_tokens"] == 0
    assert result["ratios"]["throughput to (a)"] > 0
    assert {"decode, batch 1, tokens/s", "first token from a decoded picture, ms"} <= result["roofline"].keys()
    assert "no bench.png: install matplotlib" in done.stderr


def test_each_engine_has_the_device_for_itself_and_each_stage_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a second KV cache, or what measures the device, would find no room beside the first."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    bench, sides = (importlib.import_module(name) for name in ("bench", "bench_sides"))
    before: list[weakref.ref[Engine]] = []
    kept: list[set[str]] = []

    class Watched(Engine):
        def __init__(self, model: Any, processor: Any, settings: EngineSettings) -> None:
            assert not any(engine() for engine in before)
            assert settings.kv_cache_bytes is not None
            before.append(weakref.ref(self))
            kept.append(set(json.loads((tmp_path / "bench.json").read_text())))
            super().__init__(model, processor, settings)

    def measure(*_: Any) -> Any:
        assert not before
        return SimpleNamespace(bandwidth=1e10, flops=1e10)

    monkeypatch.setattr(sides, "Engine", Watched)
    monkeypatch.setattr(bench, "measure_machine", measure)
    monkeypatch.setattr(bench, "device_figures", lambda *_: {"all": {"measured": 1, "limit": 2, "fraction": 0.5}})
    arguments = ["--preset", "smoke", "--skip-transformers", "--roofline", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert bench.main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    assert len(before) == 4  # one for the burst; a chat with reuse; one for each of its turns without
    assert "copy_gb_per_s" in kept[0]
    assert {"burst", "poisson", "roofline"} <= kept[1]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_soak_leaks_nothing(tmp_path: Path) -> None:
    done = run("--preset", "smoke", "--soak", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))["soak"]
    assert (found["leaked_blocks"], found["leaked_slots"]) == (0, 0)
    assert found["whole"] > 0
