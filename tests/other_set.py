"""A set of recorded numbers like tests/golden with other dimensions, names and images, computed without this package.

The vision encoder is ``original_layout``'s, the LLM is transformers' LLaMA; prompts and tokenization are implemented
here.
"""

import hashlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import sentencepiece
import torch
from original_layout import (
    Sizes,
    Tensors,
    apply,
    dense,
    normed,
    numbers,
    positions,
    qformer_file,
    queries,
    tower,
    vision_file,
)
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import layer_norm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
IMAGE = "<Img><ImageHere></Img>"
ANSWER = "Two things, I think."
# Prefix of the first image, of the answer, and of later user messages.
TEMPLATES = {
    "vicuna": (SYSTEM + "###Human: ", "###Assistant: ", "###Human: "),
    "llama2": (SYSTEM + "<s>[INST] ", " [/INST] ", "<s>[INST] "),
    "v2": ("<s>[INST] ", " [/INST]", "<s>[INST] "),
}
CONVERSATIONS = {"vicuna": "CONV_VISION_Vicuna0", "llama2": "CONV_VISION_LLama2", "v2": "CONV_VISION_minigptv2"}
TOWER = {"width": 60, "heads": 3, "depth": 2, "spare_blocks": 2, "patch": 7, "trained": 6}
MEMBERS = {
    "little_vicuna": Sizes("vicuna", **TOWER, image=42, qformer=(36, 3, 3, 2, 5), llm_heads=(6, 6)),
    "little_llama2_chat": Sizes("llama2", **TOWER, image=42, llm_heads=(5, 5)),
    "little_minigpt_v2": Sizes("v2", **TOWER, image=56, lora=(3, 6.0), llm_heads=(3, 3)),
}
PLAIN = {"do_sample": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_new_tokens": 7}


def vocabulary(pieces: int, *symbols: str) -> bytes:
    """A SentencePiece model like LLaMA's, of another size."""
    text = [SYSTEM, IMAGE, "###Human: ###Assistant: [INST] [/INST]", "What is it? Where is the red one? # ##"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 3),
        model_writer=model,
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(symbols),
        minloglevel=2,
    )
    return model.getvalue()


def noise(kind: str, width: int, height: int) -> Image.Image:
    """An image of noise in one of Pillow's modes."""
    levels = numpy.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=numpy.uint8)
    return Image.fromarray(levels).convert(kind)


IMAGES = {
    "grey.png": noise("L", 40, 90),
    "clear.png": noise("RGBA", 33, 21),
    "palette.png": noise("P", 64, 64),
    "last.png": noise("RGB", 15, 70),
}


def pixels(image: Image.Image, side: int) -> torch.Tensor:
    """Bicubic, the cheaper axis first, as in the libraries that the golden numbers were recorded with."""
    rgb = image.convert("RGBA").convert("RGB")  # transparency is dropped
    halfway = (rgb.width, side) if rgb.height - side > 2 * max(rgb.width - side, 0) else (side, rgb.height)
    for size in (halfway, (side, side)):
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return (torch.from_numpy(numpy.array(rgb)).permute(2, 0, 1).float().div(255) - mean).div(std)


@dataclass
class Recorder:
    """One variant of the set: its files, and the numbers that the original would compute for them."""

    name: str
    sizes: Sizes
    words: sentencepiece.SentencePieceProcessor
    llm: LlamaForCausalLM  # with LoRA in its weights
    features: torch.Tensor  # [pictures, image tokens, hidden]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in re.split("(<unk>|<s>|</s>)", text):
            special = {"<unk>": 0, "<s>": 1, "</s>": 2}.get(piece)
            ids += [special] if special is not None else self.words.encode(piece)
        return ids

    def prompt(self, text: str, shown: Sequence[int]) -> tuple[dict[str, Any], torch.Tensor]:
        """(recording of a prompt, its embeddings ``[T, hidden]``)."""
        segments: list[dict[str, Any]] = []
        flat: list[int] = []
        rows: list[torch.Tensor] = []
        for i, piece in enumerate(text.split("<ImageHere>")):
            if i:
                segments.append({"image": shown[i - 1]})
                flat += [-1] * self.features.shape[1]
                rows.append(self.features[shown[i - 1]])
            ids = ([] if i else [1]) + self.encode(piece)
            segments.append({"text": piece, "ids": ids})
            flat += ids
            rows.append(self.llm.get_input_embeddings()(torch.tensor(ids)))
        recorded = {"prompt": text, "segments": segments, "flat_ids": flat, "prompt_len": len(flat)}
        return recorded, torch.cat(rows)

    def generate(self, embeds: torch.Tensor, **options: Any) -> list[int]:
        """Ids with the BOS that the original's library prepends."""
        rules = GenerationConfig(**{**PLAIN, **options})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the penalty excludes the prompt, as in the original
            return [1, *self.llm.generate(inputs_embeds=embeds[None], generation_config=rules)[0].tolist()]

    def turn(self, key: str, text: str, shown: Sequence[int], begin: int, language: Tensors) -> dict[str, Any]:
        recorded, embeds = self.prompt(text, shown)
        logits = self.llm(inputs_embeds=embeds[None, begin:]).logits[0]
        if key.startswith("first"):
            language |= {f"{key}.inputs_embeds": embeds, f"{key}.logits": logits}
        language[f"{key}.logits_last4"] = logits[-4:].clone()
        limits = {"max_new_tokens": 7, "max_length": 900}
        penalties = {"greedy": 1.0, "greedy_rp13": 1.3}
        results: dict[str, Any] = {
            name: {
                "ids": self.generate(embeds[begin:], repetition_penalty=penalty),
                "kwargs": {**limits, "repetition_penalty": penalty},
            }
            for name, penalty in penalties.items()
        }
        results["beam3_no_stop_strings"] = {"ids": self.generate(embeds[begin:], num_beams=3)}
        if self.sizes.variant != "vicuna":
            searched = {"num_beams": 2, "length_penalty": 0.5}
            ids = self.generate(embeds[begin:], repetition_penalty=1.05, **searched)
            results["beam2_short"] = {"ids": ids, "kwargs": {**limits, **searched}}
        after = [["", ""], ["", ANSWER]]
        return {"key": key, **recorded, "begin_idx": begin, "result": results, "messages_after": after}

    def cases(self, language: Tensors) -> dict[str, Any]:
        opening, asked, again = TEMPLATES[self.sizes.variant]
        between = "###" if self.sizes.variant == "vicuna" else ""
        first = f"{opening}{IMAGE} What is it?{asked}"
        second = f"{first}{ANSWER}{between}{again}{IMAGE}{between}{again}{IMAGE} Where?{asked}"
        steps = [["image", 3], ["ask", "What is it?"], ["answer"], ["image", 0], ["image", 1]]
        if between:
            second = second.replace(f"{between}{between}", between)
        later = [
            self.turn("first.0", first, [3], 0, language),
            self.turn("first.1", second, [3, 0, 1], 0, language),
        ]
        # This package escapes it, unlike the original, so the prompt texts aren't compared.
        typed = f"{opening}{IMAGE} a </s> b{asked}"
        return {
            "first": {"steps": [*steps, ["ask", "Where?"], ["answer"]], "turns": later},
            "cut on the left": {
                "steps": [["image", 2], ["ask", "What is it?"], ["answer"]],
                "turns": [self.turn("cut.0", first, [2], 6, language)],
            },
            "typed": {
                "steps": [["image", 1], ["ask", "a </s> b"], ["answer"]],
                "turns": [self.turn("typed.0", typed, [1], 0, language)],
            },
        }

    def batch(self) -> dict[str, Any]:
        """Two texts, although the set has four images."""
        opening, asked, _ = TEMPLATES[self.sizes.variant]
        texts = [f"{opening}{IMAGE} {words}{asked}" for words in ("What is it?", "Where is the red one, and why?")]
        rows = [self.generate(self.prompt(text, [i])[1]) for i, text in enumerate(texts)]
        width = max(map(len, rows))
        return {"texts": texts, "sequences": [row + [2] * (width - len(row)) for row in rows], "max_new_tokens": 7}


def make_llm(folder: Path, sizes: Sizes, pieces: int, extra_rows: int) -> LlamaForCausalLM:
    """An LLM's folder, as ``.bin`` shards or safetensors shards."""
    heads, _ = sizes.llm_heads
    text = LlamaConfig(
        vocab_size=pieces + extra_rows,
        hidden_size=heads * 8,
        intermediate_size=heads * 13,
        num_hidden_layers=3 if extra_rows else 2,
        num_attention_heads=heads,
        rms_norm_eps=1e-4,
        max_position_embeddings=900,
        initializer_range=0.3,
    )
    llm = LlamaForCausalLM(text).eval()
    llm.save_pretrained(folder, max_shard_size="40KB")
    if extra_rows:
        tensors = dict(llm.state_dict())
        names = sorted(tensors)
        for path in folder.glob("model*"):
            path.unlink()
        half = len(names) // 2
        for number, members in enumerate((names[:half], names[half:]), start=1):
            torch.save({name: tensors[name] for name in members}, folder / f"pytorch_model-{number:05}-of-00002.bin")
    return llm


def write_member(folder: Path, name: str, sizes: Sizes, files: dict[str, Tensors], vocabulary_file: bytes) -> None:
    """A variant's LLM, checkpoint and numbers."""
    llm_folder = folder / "models" / f"llm of {name}"
    words = sentencepiece.SentencePieceProcessor(model_proto=vocabulary_file)
    extra = 1 if sizes.variant == "vicuna" else 0
    llm = make_llm(llm_folder, sizes, words.get_piece_size(), extra)
    (llm_folder / "tokenizer.model").write_bytes(vocabulary_file)
    seen = {"pixel_values": torch.stack([pixels(image, sizes.image) for image in IMAGES.values()])}
    side = sizes.image // sizes.patch
    if side != sizes.trained:
        seen["pos_embed"] = positions(sizes, files["vision"], side)
    out = tower(sizes, files["vision"], seen["pixel_values"], seen)
    columns = 4 * sizes.width
    if sizes.qformer is None:
        seen["vit_ln"] = layer_norm(out, out.shape[-1:])  # weight 1, bias 0; torch's epsilon
        rows = seen["merged_patches"] = seen["vit_ln"][:, 1:].reshape(len(out), -1, columns)
    else:
        columns = sizes.qformer[0]
        seen["vit_ln"] = normed(files["blip"], "ln_vision", out, 1e-5)
        rows = queries(sizes, files["blip"], seen["vit_ln"], seen)
    trained = {name: tensor / 3 for name, tensor in dense("llama_proj", columns, llm.config.hidden_size).items()}
    features = seen["image_embeds"] = apply(trained, "llama_proj", rows)
    for layer in range(llm.config.num_hidden_layers if sizes.lora else 0):
        rank, alpha = sizes.lora or (1, 1.0)
        for target in ("q_proj", "v_proj"):
            weight = getattr(llm.model.layers[layer].self_attn, target).weight
            a = numbers(rank, weight.shape[1])
            b = numbers(weight.shape[0], rank)
            stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{target}.lora"
            trained |= {f"{stem}_A.weight": a, f"{stem}_B.weight": b}
            weight.data += alpha / rank * b @ a
    checkpoint = folder / "models" / f"{name}.pth"
    torch.save({"model": trained, "epoch": 9, "optimizer": {}, "config": {"run": {"seed": 1}}}, checkpoint)
    language: Tensors = {}
    recorder = Recorder(name, sizes, words, llm, features)
    texts = ["", "What is it?", " two  blanks ", "<s>[INST] <Img>", "a</s>b", "###Human: é 日", "$$"]
    decoded = [[1, *recorder.encode("red one"), 2], [0, 5, 6]]
    expected = {
        "variant": name,
        "image_size": sizes.image,
        "image_tokens": features.shape[1],
        "llm_vocab": llm.config.vocab_size,
        "files": {
            "llm": f"models/llm of {name}",
            "ckpt": f"models/{name}.pth",
            "conv": CONVERSATIONS[sizes.variant],
        },
        "pixel_sha256": [hashlib.sha256(p.numpy().tobytes()).hexdigest() for p in seen["pixel_values"]],
        "cases": recorder.cases(language),
        "tokenizer_table": [
            {"text": text, "ids": recorder.encode(text), "ids_with_special": [1, *recorder.encode(text)]}
            for text in texts
        ],
        "decode_table": [
            {
                "ids": ids,
                "skip_special": words.decode([i for i in ids if i > 2]),
                "keep_special": spelled(words, ids),
            }
            for ids in decoded
        ],
    }
    if sizes.variant != "v2":
        expected["batch_generate"] = recorder.batch()
    (folder / name).mkdir()
    (folder / name / "expected.json").write_text(json.dumps(expected))
    save_file({stage: tensor.contiguous() for stage, tensor in seen.items()}, folder / name / "vision.safetensors")
    save_file(
        {stage: tensor.contiguous() for stage, tensor in language.items()}, folder / name / "language.safetensors"
    )


def spelled(words: sentencepiece.SentencePieceProcessor, ids: Sequence[int]) -> str:
    """Text with special tokens; the original's library inserts a space before text that precedes one."""
    special = {0: "<unk>", 1: "<s>", 2: "</s>"}
    text = ""
    ordinary = []
    for i in ids:
        if i in special:
            text += (" " if ordinary else "") + words.decode(ordinary) + special[i]
            ordinary = []
        else:
            ordinary.append(i)
    return text + words.decode(ordinary)


@torch.no_grad()
def write_set(folder: Path) -> Path:
    """The whole set in a new folder."""
    torch.manual_seed(4)
    (folder / "models").mkdir(parents=True)
    (folder / "inputs").mkdir()
    for name, image in IMAGES.items():
        image.save(folder / "inputs" / name)
    vicuna = MEMBERS["little_vicuna"]
    # Small numbers keep float32's own error far below the tolerance of the comparison.
    files = {"vision": {n: t / 3 for n, t in vision_file(vicuna).items()}, "blip": qformer_file(vicuna)}
    torch.save(files["vision"], folder / "models" / "a tower.pth")
    torch.save({"model": files["blip"]}, folder / "models" / "queries.pth")
    for number, (name, sizes) in enumerate(MEMBERS.items()):
        write_member(folder, name, sizes, files, vocabulary(330 + 10 * number, "$$"))
    lora = MEMBERS["little_minigpt_v2"].lora
    assert vicuna.qformer is not None
    assert lora is not None
    config = {
        "vit_heads": vicuna.heads,
        "vit_depth": vicuna.depth,
        "v1_image_size": vicuna.image,
        "v2_image_size": MEMBERS["little_minigpt_v2"].image,
        "qf_heads": vicuna.qformer[1],
        "lora_alpha": lora[1],
    }
    manifest = {"config": config, "images": list(IMAGES), "variants": dict.fromkeys(MEMBERS, "")}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder
