"""The recorded chats as a client of the HTTP API asks them, and the recorded files as a model folder."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Server

from minigpt4_serve.weights.convert import convert
from tools.parity.subject import recorded_hyperparameters

VARIANTS = {"v1_vicuna": "vicuna", "v1_llama2": "llama2", "v2": "v2"}


@dataclass(frozen=True)
class ConvertedServer:
    """A running ``minigpt4 serve`` with a converted model folder and a keys file.

    Attributes:
        server: its address and process.
        settings_file: what ``--config`` names.
        settings: its content.
        keys_file: where ``minigpt4 keys`` adds and revokes keys.
        key: one without limits.
        expected: what the original answered, from ``expected.json``.
    """

    server: Server
    settings_file: Path
    settings: dict[str, Any]
    keys_file: Path
    key: str
    expected: dict[str, Any]


def convert_recorded(golden: Path, variant: str, out: Path) -> dict[str, Any]:
    """Make a model folder of a recorded variant's files; what the original gave."""
    expected: dict[str, Any] = json.loads((golden / variant / "expected.json").read_text(encoding="utf-8"))
    convert(
        variant=VARIANTS[variant],
        llm=golden / expected["files"]["llm"],
        vit=golden / "weights" / "eva_vit_g.pth",
        qformer=golden / "weights" / "blip2_pretrained_flant5xxl.pth" if variant == "v1_vicuna" else None,
        checkpoint=golden / expected["files"]["ckpt"],
        out=out,
        hyperparameters=recorded_hyperparameters(golden, expected["image_size"]),
    )
    return expected


def chats(expected: dict[str, Any], golden: Path) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(messages, recorded answers) of every turn that a client can ask for."""
    names = json.loads((golden / "MANIFEST.json").read_text(encoding="utf-8"))["images"]
    pictures = [base64.b64encode((golden / "inputs" / name).read_bytes()).decode() for name in names]
    found = []
    for key, case in expected["cases"].items():
        if key in ("truncated", "stream_history"):
            continue  # the demo's left truncation and its forgotten answers are not copied
        messages: list[dict[str, Any]] = []
        recorded = iter(case["turns"])
        parts: list[dict[str, Any]] = []
        for step, *argument in case["steps"]:
            if step == "image":
                url = f"data:image/png;base64,{pictures[argument[0]]}"
                parts.append({"type": "image_url", "image_url": {"url": url}})
            elif step == "ask":
                messages.append({"role": "user", "content": [*parts, {"type": "text", "text": argument[0]}]})
                parts = []
            else:
                turn = next(recorded)
                found.append((list(messages), turn["result"]))
                messages.append({"role": "assistant", "content": turn["messages_after"][-1][1]})
    return found
