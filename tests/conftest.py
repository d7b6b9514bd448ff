"""Fixtures of all tests: recorded files, a small random model, a running cluster."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from processes import Server, free_port, serving

# The same examples in every run, so that failures can be repeated. The time that an example takes, or its generation,
# depends on the machine more than on the code.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")

# torch reads this on import, here and in the processes that tests start. More threads slow down tensors as small as the
# tests', and test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where a shell runs pytest in the background, pytest and the servers that it starts ignore SIGINT, by which tests stop
# them: without this, each would run on until it is killed after 150 seconds.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
SHARED_PROCESSES = ("cluster", "converted_v2")
"""Fixtures that start a process for the whole session, the slowest first."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests that share a process or a module's fixtures on one worker of pytest-xdist."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest tests first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_rank)


def _group(item: pytest.Item) -> str:
    return _shared_process(item) or item.path.relative_to(TESTS).with_suffix("").as_posix()


def _rank(item: pytest.Item) -> int:
    if shared := _shared_process(item):
        return SHARED_PROCESSES.index(shared)
    if item.get_closest_marker("e2e"):
        return len(SHARED_PROCESSES)
    return len(SHARED_PROCESSES) + 1


def _shared_process(item: pytest.Item) -> str | None:
    fixtures = getattr(item, "fixturenames", ())
    return next((name for name in SHARED_PROCESSES if name in fixtures), None)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of numbers, files and images recorded from the original code; MANIFEST.json describes them."""
    return GOLDEN


@pytest.fixture(scope="session")
def small_model() -> object:
    """(model, processor): random weights of tiny dimensions, the Vicuna template, 8 tokens per image."""
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
    """A running ``minigpt4 serve`` with three engines of the embedded model: one Ray cluster for all tests."""
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
    """The address of ``cluster``."""
    return cluster.url


@pytest.fixture(scope="session")
def server_url(server: str) -> str:
    """The base URL for OpenAI's clients, ending in ``/v1``."""
    return f"{server}/v1"
