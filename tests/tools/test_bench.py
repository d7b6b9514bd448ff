"""The benchmarks run from a checkout, at the smallest sizes, without Ray, FastAPI and matplotlib."""

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
from tools.bench import engine as bench
from tools.bench import soak, stages
from tools.bench.__main__ import main
from tools.bench.measurement import Measurement, percentile, percentiles_ms

pytestmark = pytest.mark.timeout(1000)  # the smallest sizes on the slowest machine

ROOT = Path(__file__).parents[2]
WITHOUT_SERVER = """
import sys
sys.modules.update(ray=None, fastapi=None, matplotlib=None)
from tools.bench.__main__ import main
sys.exit(main())
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SERVER, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_the_engines_benchmark_measures_all_ways(tmp_path: Path) -> None:
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
    assert {"decode, batch 1, tokens/s", "first token from a decoded image, ms"} <= result["roofline"].keys()
    assert "no bench.png: install matplotlib" in done.stderr


def test_engines_run_one_at_a_time_and_each_stage_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU there is no memory for a second KV cache, nor for measuring the device, beside the first."""
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

    monkeypatch.setattr(stages, "Engine", Watched)
    monkeypatch.setattr(bench, "measure_machine", measure)
    monkeypatch.setattr(bench, "device_figures", lambda *_: {"all": {"measured": 1, "limit": 2, "fraction": 0.5}})
    arguments = ["--preset", "smoke", "--skip-transformers", "--roofline", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert main(arguments) == 0
    finally:
        torch.set_num_threads(threads)
    assert len(before) == 4  # one for the burst; a chat with reuse; one for each of its turns without
    assert "copy_gb_per_s" in kept[0]
    assert {"burst", "poisson", "roofline"} <= kept[1]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_short_soak_leaks_nothing(tmp_path: Path) -> None:
    done = run("soak", "--minutes", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))["soak"]
    assert (found["leaked_blocks"], found["leaked_slots"]) == (0, 0)
    assert found["completed"] > 0


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 3.0), (95, 5.0), (100, 5.0)], ids=lambda value: f"{value:g}"
)
def test_percentiles_are_of_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([5.0, 1.0, 4.0, 2.0, 3.0], percent) == expected
    assert percentile([], percent) == 0.0
    name = f"ttft_p{percent:.0f}_ms"
    assert percentiles_ms("ttft", [0.001 * expected] * 3, [int(percent)]) == {name: expected}


def test_latencies_count_from_arrival_to_token_to_token() -> None:
    measured = Measurement("it")
    measured.add_latencies(10.0, [10.5, 10.6, 10.8])
    measured.add_latencies(11.0, [])
    assert measured.ttft == [0.5]
    assert measured.itl == pytest.approx([0.1, 0.2])
    assert measured.summary()["ttft_p50_ms"] == 500.0


def test_a_leak_makes_the_soak_test_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "soak", lambda *_: {"leaked_blocks": 0, "leaked_slots": 1})
    threads = torch.get_num_threads()
    try:
        assert main(["soak", "--out", str(tmp_path)]) == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("command", [["--help"], ["engine", "--help"], ["soak", "--help"], ["serve", "--help"]])
def test_each_benchmark_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert "python -m tools.bench" in capsys.readouterr().out
