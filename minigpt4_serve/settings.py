"""Frozen settings of the model, the engine and the server: built once at startup and never changed.

Imports neither torch nor Ray, so reading a configuration file is cheap. Unknown keys are refused: a misspelled
setting that silently does nothing is worse than an error.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from minigpt4_serve.settings_file import read_settings_file, validate_settings

__all__ = [
    "API_KEY_VARIABLE",
    "KEYS_FILE_VARIABLE",
    "TINY_MODEL",
    "EngineSettings",
    "LogFormat",
    "LogLevel",
    "ModelSettings",
    "ScaleSettings",
    "ServeSettings",
    "is_loopback",
    "read_serve_settings",
]

TINY_MODEL = Path(__file__).parent / "weights" / "tiny"
"""The embedded default model: trained by this project, a few megabytes, runs on any CPU."""
_TINY_NAME = "minigpt4-tiny"


LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(_Settings):
    """Which model to load and how."""

    path: Path = TINY_MODEL
    """A folder in Hugging Face layout, as ``minigpt4 convert`` writes it."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """``auto``: bfloat16 on GPUs, float32 on CPUs."""
    quantization: Literal["int8", "int4"] | None = None
    """Weight-only, of the LLM's linear layers; needs the extra ``quantize`` (bitsandbytes)."""


class EngineSettings(_Settings):
    """Sizes of the engine's queues, caches and steps."""

    max_running: int = Field(default=32, ge=1, le=512)
    """Running slots: sequences generated at the same time; a request takes one for each of its answers or beams."""
    max_waiting: int = Field(default=128, ge=0)
    """Sequences that may wait for a running slot; requests beyond that are refused."""
    max_pieces_per_s: int = Field(default=500, ge=1)
    """Deltas sent per second by all answers together: with more answers, each delta is larger. Text is held back for
    at most 50 ms."""
    max_prefill_tokens: int = Field(default=1024, ge=16)
    """Prompt positions computed in one step, next to the running answers. A larger number starts answers sooner, a
    smaller one keeps running answers smoother."""
    block_size: int = Field(default=16, ge=1)
    """Positions in one block of the KV cache."""
    num_blocks: int | None = Field(default=None, ge=1)
    """Blocks of the KV cache; as many as memory allows if not given."""
    kv_cache_bytes: int | None = Field(default=None, ge=1)
    """Memory for the KV cache; on CPUs 1 GiB if not given, on GPUs what ``gpu_memory_share`` leaves."""
    gpu_memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that this engine's weights and KV cache may fill."""
    cuda_graphs: bool = True
    """Capture decode steps as CUDA graphs, for the batch sizes in ``decode_buckets``."""
    decode_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
    """Batch sizes with a CUDA graph."""
    image_cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Memory for the image features that are cached for later requests."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures decoded and resized at the same time."""
    step_timeout_s: float = Field(default=600, gt=0)
    """A step that takes longer counts as hung: the health check fails, so that the engine is replaced."""
    cpu_threads: int | None = Field(default=None, ge=1)
    """Threads that PyTorch computes with on CPUs; its own choice if not given."""


class ScaleSettings(_Settings):
    """The number of processes and their resources. Each engine loads the model; HTTP processes don't."""

    engines: int = Field(default=1, ge=1)
    """Minimum number of engines."""
    max_engines: int | None = Field(default=None, ge=1)
    """Maximum number of engines; if more than ``engines``, Ray adds engines under load and removes them afterwards."""
    target_requests: float | None = Field(default=None, gt=0)
    """Requests per engine that Ray's autoscaling aims for; ``max_running`` if not given."""
    upscale_delay_s: float = Field(default=15, ge=0)
    """Seconds that the load must last before an engine is added."""
    downscale_delay_s: float = Field(default=300, ge=0)
    """Seconds that the load must be lower before an engine is removed."""
    gpus_per_engine: float | None = Field(default=None, ge=0)
    """If not given, 1 if the cluster has GPUs, otherwise 0. 0.5 puts two engines on a GPU: halve ``gpu_memory_share``
    as well."""
    cpus_per_engine: float = Field(default=1, ge=0)
    """CPUs that Ray reserves for each engine."""
    http: int = Field(default=1, ge=1)
    """Processes that serve HTTP, validate images and tokenize prompts; one is enough for several engines."""
    drain_s: float = Field(default=60, ge=0)
    """Seconds that a replaced or stopped process has to finish its answers. ``minigpt4 serve`` stops at most five
    seconds later; a second SIGINT or SIGTERM ends it at once."""

    @model_validator(mode="after")
    def _check_engine_range(self) -> "ScaleSettings":
        if self.max_engines is not None and self.max_engines < self.engines:
            raise ValueError(f"max_engines is {self.max_engines}, less than engines, {self.engines}")
        return self


class ServeSettings(_Settings):
    """All settings of ``minigpt4 serve``; a configuration file has the same keys."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    scale: ScaleSettings = ScaleSettings()
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of Ray's own Prometheus metrics on 127.0.0.1, if ``minigpt4 serve`` starts Ray itself; any free port if not
    given. ``/metrics`` of the server needs none."""
    start_timeout_s: float = Field(default=1800, gt=0)
    """Seconds within which ``minigpt4 serve`` must be ready; then it ends with an error."""
    keep_alive_s: float = Field(default=75, ge=1)
    """Seconds that an idle connection stays open; longer than a load balancer in front keeps it (60 s in most, 600 s in
    Google's). On a cluster Ray's own ``keep_alive_timeout_s`` counts instead."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that may use the server from a browser, such as ``https://chat.example``; ``*`` is all, and needs a
    key."""
    log_level: LogLevel = "info"
    """Lowest level that all processes log, to the stderr of ``minigpt4 serve``."""
    log_format: LogFormat = "auto"
    """Log lines as ``json`` objects or as plain ``text``; ``auto``: text on a terminal, JSON elsewhere."""
    model_name: str | tuple[str, ...] | None = None
    """The model's name in the API, or several; if not given, ``minigpt4-tiny`` for the embedded model, otherwise the
    model folder's name."""
    max_images_per_request: int = Field(default=8, ge=1)
    max_image_bytes: int = Field(default=20 * 2**20, ge=1)
    """Largest picture, encoded, in bytes."""
    max_image_pixels: int = Field(default=52_000_000, ge=1)
    """Largest picture, decoded, in pixels (width × height)."""
    max_decode_bytes: int = Field(default=288 * 2**20, ge=1)
    """Most memory for decoding one picture, in bytes."""
    max_image_frames: int = Field(default=1000, ge=1)
    """Longest animation, in frames; only the first one is used."""
    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest request body, in bytes; base64 makes images a third larger."""
    max_bodies_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of all request bodies that an HTTP process receives and checks at the same time, and half of it for one
    key; at least twice ``max_body_bytes``. The first 64 KiB of each don't count."""
    body_timeout_s: float = Field(default=60, gt=0)
    """Seconds within which a request's body must arrive."""
    max_request_s: float = Field(default=600, gt=0)
    """Longest time for an answer in seconds, waiting included; a request's own ``timeout`` can only shorten it."""
    response_store_bytes: int = Field(default=32 * 2**20, ge=0)
    """Memory for recent responses of each key, for ``previous_response_id`` and ``item_reference``; 0 keeps none."""
    response_store_s: float = Field(default=3600, gt=0)
    """Seconds for which a response is kept after its last use."""
    page: bool = True
    """Serve the chat page at ``/``."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts whose pictures are fetched over https; none by default, ``*`` allows every public one."""
    fetch_timeout_s: float = Field(default=10, gt=0)
    """Seconds to fetch one picture, redirects included."""
    api_key: SecretStr | None = None
    """A single key without limits; ``keys_file`` can hold several, with limits."""
    cache_groups: tuple[tuple[str, ...], ...] = ()
    """Names of keys whose requests share cached images and prompts; ``[["*"]]`` is all keys. Who shares can find out
    what the others have asked. Without a group each key has its own."""
    keys_file: Path | None = None
    """Keys as ``minigpt4 keys`` writes them. Without any key the server only binds loopback addresses."""

    @property
    def model_names(self) -> tuple[str, ...]:
        """The model's names in the API, the first of which the server uses itself."""
        if self.model_name:
            given = (self.model_name,) if isinstance(self.model_name, str) else self.model_name
            return tuple(dict.fromkeys(given))
        folder = self.model.path.resolve()
        return (_TINY_NAME if folder == TINY_MODEL.resolve() else folder.name,)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = value.get_secret_value().strip()
        if not key:
            raise ValueError("it is empty; give a key or leave the setting out")
        if not (key.isascii() and key.isprintable()):
            raise ValueError("it contains a line break or another character that clients can't send; take another key")
        return SecretStr(key)

    @field_validator("keys_file")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, _, host = origin.partition("://")
            if origin != "*" and (scheme not in ("http", "https") or not host or set(host) & set("/?#@ *")):
                raise ValueError(f"{origin!r} isn't an origin such as https://chat.example, without a path")
        return tuple(origin.lower() for origin in value)

    @model_validator(mode="after")
    def _require_key_for_all_origins(self) -> "ServeSettings":
        if "*" in self.cors_origins and self.api_key is None and self.keys_file is None:
            raise ValueError("cors_origins: '*' needs an API key; without one every web page could use the server")
        return self

    @model_validator(mode="after")
    def _require_key_beyond_loopback(self) -> "ServeSettings":
        if self.api_key is None and self.keys_file is None and not is_loopback(self.host):
            raise ValueError(
                f"without an API key the server listens on this machine only; to use {self.host}, make keys "
                f"(minigpt4 keys add NAME) and give --keys-file, or set {API_KEY_VARIABLE}"
            )
        return self


API_KEY_VARIABLE = "MINIGPT4_API_KEY"
KEYS_FILE_VARIABLE = "MINIGPT4_KEYS_FILE"


def read_serve_settings(file: Path | None, given: Mapping[str, Any]) -> ServeSettings:
    """Read the server's settings: ``given`` overrides the environment variables, which override the YAML ``file``.

    Raises:
        InvalidRequest: no such file, not YAML, an unknown key or an invalid value. It names the key, never its value.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = read_settings_file(file, example="port: 8000")
    for setting, variable in {"api_key": API_KEY_VARIABLE, "keys_file": KEYS_FILE_VARIABLE}.items():
        if value := os.environ.get(variable):
            values[setting] = value
    for name, value in given.items():
        other = values.get(name, {})
        if not isinstance(value, Mapping):
            values[name] = value
        elif isinstance(other, Mapping):  # any other value is refused by the validation below
            values[name] = {**other, **value}
    return validate_settings(ServeSettings, values, file)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address or the name ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
