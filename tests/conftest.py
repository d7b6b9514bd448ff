"""What all tests share: a small random model with the recorded tokenizer, and drawn pictures."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from processes import Server, free_port, serving

# The same examples in every run: what passed yesterday passes today, and a failure can be repeated. How long an example
# takes, or is thought of, says more of the machine than of the code.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")

# Torch reads it when it is imported, here and in the processes that tests start: tensors as small as the tests' are
# slower on more threads, and test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that runs pytest in the background lets it, and thus every server that it starts, ignore the SIGINT by which
# tests stop them: each took the 150 seconds until it was killed.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
SHARED_PROCESSES = ("cluster", "converted_v2", "page_url")
"""Fixtures that start a process for the whole session; the one that takes longest comes first."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests that share a process or a module's fixtures on one worker of pytest-xdist."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers begin with what takes longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


def _group(item: pytest.Item) -> str:
    return _shared_process(item) or item.path.relative_to(TESTS).with_suffix("").as_posix()


def _turn(item: pytest.Item) -> int:
    if shared := _shared_process(item):
        return SHARED_PROCESSES.index(shared)
    return len(SHARED_PROCESSES) + (item.get_closest_marker("e2e") is None)


def _shared_process(item: pytest.Item) -> str | None:
    fixtures = getattr(item, "fixturenames", ())
    return next((name for name in SHARED_PROCESSES if name in fixtures), None)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers, files and pictures recorded from the original code; MANIFEST.json tells what is what."""
    return GOLDEN


@pytest.fixture(scope="session")
def small_model() -> object:
    """(model, processor): random weights, the Vicuna layout, 8 slots per picture, dimensions of a toy."""
    import torch
    from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

    from minigpt4_serve.model import (
        MiniGPT4Config,
        MiniGPT4ForConditionalGeneration,
        MiniGPT4ImageProcessor,
        MiniGPT4Processor,
        MiniGPT4Tokenizer,
    )

    torch.manual_seed(0)
    config = MiniGPT4Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            initializer_range=0.3,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        ),
        text_config=LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.3,
        ),
        num_query_tokens=8,
        initializer_range=0.3,
    )
    model = MiniGPT4ForConditionalGeneration(config).eval()
    processor = MiniGPT4Processor(
        MiniGPT4ImageProcessor(28),
        MiniGPT4Tokenizer(str(GOLDEN / "llm" / "vicuna-tiny" / "tokenizer.model")),
        num_image_tokens=8,
        image_token_id=config.image_token_id,
    )
    return model, processor


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real ``minigpt4 serve`` with the embedded model, three engines of it: one Ray cluster for all tests."""
    scale = {"engines": 3, "cpus_per_engine": 0.2, "drain_s": 300}
    settings = {
        "model_name": "minigpt4-tiny",
        "engine": {"max_running": 8, "max_waiting": 4, "cpu_threads": 1},
        "scale": scale,
        "metrics_port": free_port(),
    }
    file = tmp_path_factory.mktemp("server") / "settings.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    with serving("--config", str(file)) as running:
        running.metrics_port = settings["metrics_port"]
        yield running


@pytest.fixture(scope="session")
def server(cluster: Server) -> str:
    """Its address."""
    return cluster.url


@pytest.fixture(scope="session")
def server_url(server: str) -> str:
    """The same as OpenAI's clients take it, ending in ``/v1``."""
    return f"{server}/v1"
