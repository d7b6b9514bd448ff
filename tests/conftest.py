"""What all tests share: a small random model with the recorded tokenizer, and drawn pictures."""

import json
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

GOLDEN = Path(__file__).parent / "golden"


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
