"""Memory that the model runner allocates. GPUs are simulated by the figures that PyTorch reports."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch

from minigpt4_serve.engine.model_runner import ModelRunner, _num_blocks
from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.settings import EngineSettings

GIB = 2**30
CONTEXT = GIB // 2  # of CUDA, per process


def cache_gib(
    monkeypatch: pytest.MonkeyPatch, *, total: float, others: float, weights: float, **settings: Any
) -> float:
    """GiB of KV cache that an engine allocates on a GPU with ``total`` GiB, ``others`` of them in use elsewhere."""
    free = int((total - others - weights) * GIB) - CONTEXT
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, int(total * GIB)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: int(weights * GIB))
    block = 2**20
    sizes = EngineSettings(max_running=512, **settings)
    return _num_blocks(sizes, torch.device("cuda"), context=10**6, block_bytes=block) * block / GIB


def test_two_engines_on_a_gpu_get_equal_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache_gib(monkeypatch, total=24, others=0, weights=4, gpu_memory_share=0.45)
    assert first == pytest.approx(0.45 * 24 - 4, abs=0.01)
    held = 4 + first + CONTEXT / GIB
    assert cache_gib(monkeypatch, total=24, others=held, weights=4, gpu_memory_share=0.45) == first


def test_the_cache_takes_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_gib(monkeypatch, total=24, others=0, weights=14) == pytest.approx(0.9 * 24 - 14, abs=0.01)
    assert cache_gib(monkeypatch, total=24, others=8, weights=12) < 24 - 8 - 12 - 1
    with pytest.raises(InvalidRequest, match="no memory left"):
        cache_gib(monkeypatch, total=24, others=10, weights=13)


def test_features_do_not_hold_the_memory_of_their_batch(small_model: Any) -> None:
    model, _ = small_model
    with torch.inference_mode():
        rows = ModelRunner(model, EngineSettings()).encode([torch.zeros(3, 28, 28)] * 3)
    assert [len(row.untyped_storage()) for row in rows] == [row.nbytes for row in rows]


def test_running_out_of_memory_names_the_settings(small_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB // 4 * 3, 24 * GIB))
    with pytest.raises(InvalidRequest) as caught:
        ModelRunner(small_model[0], EngineSettings(kv_cache_bytes=GIB))
    assert "0.8 GiB free" in caught.value.message
    assert "int8 or int4" in caught.value.message
