"""Writes the golden files of CLIP and its tokenizer: `latent/tests/golden/`.

The tokenizers are trained here, on the text below: byte pairs with the end of a word marked, in the order of CLIP's vocabulary (256
bytes, 256 bytes at the end of a word, the merges, the two special tokens). Three directories hold the same vocabulary as it is
published with models:

  tokenizer/first    vocab.json and merges.txt, special tokens with `normalized`, filled up with the end (Stable Diffusion 1)
  tokenizer/second   the same, filled up with `!`, added tokens listed in tokenizer_config.json (Stable Diffusion 2)
  tokenizer/fast     tokenizer.json

`tokens.json` has for each prompt what transformers makes of it: `ids` of 77 tokens, and `all`, the prompt's own tokens without a limit.

Models are random and small. Everything is evaluated in f64 from f32 parameters and rounded to f32 once; parameters are stored under
the keys of published files.

  text_first     CLIPTextModel, quick_gelu, eos_token_id 2, keys with `text_model.`, the buffer `position_ids`
  text_second    CLIPTextModel, gelu, keys without the prefix
  clip           CLIPModel: both projections, cosines
  tensors        input_ids; states, states_skip1 (the last layer left out) ...; pooled; text_embeds; pixels; image_pooled; image_embeds;
                 cosine [images, texts]
  pictures       what CLIPImageProcessor makes of pictures of bytes (by Pillow)
  tiles          latents decoded in tiles that overlap, as AutoencoderKL does it, by a cheap decoder (see `tiles`)

Usage: python tools/reference/golden_clip.py [--out latent/tests/golden]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from golden_unets import ROOT, write

TEXT = """
a photo of a cat sitting on the table. a painting of a fox in the style of a famous painter, highly detailed, trending on art
stations, sharp focus, studio lighting, intricate, elegant, smooth. an astronaut riding a horse on mars, the portrait of an old
man with a beard, black and white photograph, 35mm film, 4k, 8k, 1024 pixels. it's a dog's life, they're there, we've been here, i'll
do it, i'd say so, can't won't don't. the quick brown fox jumps over the lazy dog. mountains and a river at sunset, a castle in the
clouds, a small red house, blue sky, green grass, a woman with flowers in her hair, a child playing with a ball; an old ship on
the ocean, a forest in autumn, snow, rain and wind. el niño comió una manzana. der bär trägt schöne grüße über die straße. un café
crème à la française, s'il vous plaît. здравствуй, мир. 東京の夜景。 한국어 문장. 😀 🎨 ❤️ 👩‍🚀 100% 3.14 $5 #1 (hello) [world] {x} <y> a/b c\\d e_f g+h=i "quoted"
""" * 2

MERGES = 420

PROMPTS = [
    "",
    " ",
    "a",
    "A photo of a cat",
    "a photo of a cat",
    "  many   spaces \t and\nlines\r\n ",
    "a painting of a fox in the style of a famous painter, trending on art station, 8k",
    "UPPER lower MiXeD",
    "it's they're we've i'm i'll i'd can't",
    "IT'S THEY'RE WE'VE I'M",
    "rock'n'roll ''s '' 't",
    "it’s a curly apostrophe",
    "1234567890 4k 3.14 1,000,000",
    "x2y3z",
    "½ ² ③ Ⅳ ٣ ৪",
    "!",
    "!!!",
    "hello!",
    "hello! world!? (really)...",
    "a!b !c d!",
    "#hashtag @name $5 100% a&b c|d <tag> [x] {y} ~z ^w `q`",
    "snake_case kebab-case a/b\\c",
    "e=mc^2 + a*b - c/d",
    "naïve café crème brûlée",
    "nai\u0308ve cafe\u0301 cre\u0300me bru\u0302le\u0301e",
    "ﬁne ﬂuid ligatures",
    "Straße GRÖSSE ẞ",
    "İstanbul ISPARTA ıi",
    "ΑΒΓ ΣΑΣ οδός",
    "Здравствуй, мир",
    "東京の夜景",
    "东京 と 東京。「夜景」",
    "한국어 문장입니다",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "שלום עולם",
    "مرحبا بالعالم",
    "สวัสดีชาวโลก",
    "नमस्ते दुनिया",
    "😀",
    "a 😀 smile 🎨 art",
    "👩‍🚀👨‍👩‍👧‍👦🏳️‍🌈",
    "👍🏽 ❤️ ✌︎",
    "🇩🇪🇫🇷",
    "z̸̢͎a̶̰͝l̵̻̐g̷̪͒o̴",
    "zero\u200bwidth\u200djoiner\u2060word\ufeff",
    "no\u00a0break\u2003em\u3000ideographic\u1680ogham\u2028line\u2029paragraph\u0085next",
    "\u0000\u0001\u0007bell\u001b[31mred\u007f",
    "tab\tvertical\u000bform\u000cfeed\u001cseparators\u001d\u001e\u001f",
    "\ufffd replacement",
    "private \ue000 unassigned \u0378 \U000e0041",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝟙𝟚𝟛 𐍈",
    "Ⓐⓑ ＦＵＬＬ ｗｉｄｔｈ",
    "<|endoftext|>",
    "<|startoftext|>",
    "before<|endoftext|>after",
    "before <|endoftext|> after <|startoftext|> again",
    "<|ENDOFTEXT|> <|StartOfText|>",
    "<|endoftext|",
    "<| endoftext |>",
    "<|endoftext|><|endoftext|> !<|endoftext|>!",
    "a</w> b</w>",
    "(masterpiece:1.2), ((best quality)), [blurry]",
    "the " * 100,
    "a photo of a cat, " * 20 + "and this is the end",
    "東京の夜景" * 30,
    "😀" * 40,
    "a" * 300,
    "!" * 90,
    "word " * 75,
    "word " * 74 + "cafe\u0301",
    "word " * 72 + "👩‍🚀 tail",
]


def byte_names() -> tuple[dict[int, str], list[int]]:
    """The character that stands for each byte, and the bytes that stand for themselves, which come first in the vocabulary."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    names = {byte: chr(byte) for byte in printed}
    for byte in range(256):
        if byte not in names:
            names[byte] = chr(256 + len(names) - len(printed))
    return names, printed


def train(text: str, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The vocabulary and the merges: the most frequent pair again and again, the last of several in the order of characters."""
    names, printed = byte_names()
    order = [names[byte] for byte in [*printed, *(b for b in range(256) if b not in printed)]]
    words = Counter()
    for word in text.lower().split():
        symbols = [names[byte] for byte in word.encode()]
        words[(*symbols[:-1], symbols[-1] + "</w>")] += 1
    merges, made = [], set(order) | {name + "</w>" for name in order}
    for _ in range(count):
        pairs = Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        # Another way to a token that is there already would give it two numbers.
        best = max((pair for pair in pairs if "".join(pair) not in made), key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        made.add("".join(best))
        joined = Counter()
        for word, times in words.items():
            new, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    new.append(word[i] + word[i + 1])
                    i += 2
                else:
                    new.append(word[i])
                    i += 1
            joined[tuple(new)] += times
        words = joined
    vocabulary = [*order, *(name + "</w>" for name in order), *("".join(pair) for pair in merges)]
    assert len(set(vocabulary)) == len(vocabulary)
    return [*vocabulary, "<|startoftext|>", "<|endoftext|>"], merges


def dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tokenizers(out: Path) -> CLIPTokenizer:
    vocabulary, merges = train(TEXT, MERGES)
    lists = {token: i for i, token in enumerate(vocabulary)}
    size = len(vocabulary)

    def token(content: str, normalized: bool = True, **more) -> dict:
        return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False) | more

    begin, end = token("<|startoftext|>"), token("<|endoftext|>")
    typed = {"__type": "AddedToken"}
    base = dict(add_prefix_space=False, do_lower_case=True, errors="replace", model_max_length=77, tokenizer_class="CLIPTokenizer")
    first = base | dict(bos_token=typed | begin, eos_token=typed | end, unk_token=typed | end, pad_token="<|endoftext|>")
    listed = {
        "0": token("!", False, special=True),
        str(size - 2): begin | dict(special=True),
        str(size - 1): end | dict(special=True),
    }
    second = base | dict(
        added_tokens_decoder=listed, bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="!", unk_token="<|endoftext|>"
    )
    configs = {
        "first": (first, dict(bos_token=begin, eos_token=end, pad_token="<|endoftext|>", unk_token=end)),
        "second": (second, dict(bos_token=begin, eos_token=end, pad_token="!", unk_token=end)),
    }
    tokens = {}
    for name, (config, special) in configs.items():
        folder = out / "tokenizer" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(lists, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        dump(folder / "tokenizer_config.json", config)
        dump(folder / "special_tokens_map.json", special)
        tokens[name] = CLIPTokenizer.from_pretrained(folder)

    fast = out / "tokenizer" / "fast"
    shutil.rmtree(fast, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tokens["first"].save_pretrained(folder)
        fast.mkdir(parents=True)
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(Path(folder) / name, fast / name)
    tokens["fast"] = CLIPTokenizer.from_pretrained(fast)

    cases = []
    for prompt in PROMPTS:
        case = dict(prompt=prompt)
        for name, tokenizer in tokens.items():
            ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
            case[name] = dict(ids=ids, all=tokenizer(prompt, add_special_tokens=False).input_ids)
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (out / "tokens.json").write_text(f"[\n{lines}\n]\n")
    print(f"tokens.json: {len(cases)} prompts, {size} tokens")
    return tokens["first"]


def fill(model: torch.nn.Module, seed: int) -> None:
    """Parameters that let every part of the model matter."""
    rng = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        if name == "logit_scale":
            continue
        if "norm" in name or "layrnorm" in name:
            parameter.data = 1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise
        elif parameter.ndim == 1:
            parameter.data = 0.3 * noise
        elif "embedding" in name and "patch" not in name:
            parameter.data = noise
        else:
            parameter.data = noise * (2.0 / parameter[0].numel()) ** 0.5


def store(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in sorted(state.items())}, str(path), metadata={"format": "pt"})
    path.chmod(0o644)
    print(f"{path.name}: {len(state)} tensors, {path.stat().st_size / 1e6:.3f} MB")


def config_file(path: Path, config, architecture: str) -> None:
    written = json.loads(config.to_json_string(use_diff=False))
    written["architectures"] = [architecture]
    path.write_text(json.dumps(written, indent=2) + "\n")


def texts(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    return tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def text_tensors(model: CLIPTextModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    output = model(ids, output_hidden_states=True)
    hidden = output.hidden_states
    tensors = {"input_ids": ids, "states": output.last_hidden_state, "pooled": output.pooler_output}
    for skip in range(1, len(hidden)):
        tensors[f"states_skip{skip}"] = model.final_layer_norm(hidden[-(skip + 1)])
    return tensors


def text_models(out: Path, tokenizer: CLIPTokenizer) -> None:
    size = len(tokenizer)
    ids = texts(tokenizer, ["a photo of a cat", "", "the " * 100])
    shapes = dict(vocab_size=size, hidden_size=24, intermediate_size=40, num_attention_heads=3, projection_dim=24)
    config = CLIPTextConfig(**shapes, num_hidden_layers=2, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2)
    model = CLIPTextModel(config).eval()
    fill(model, 1)
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor.clone() for name, tensor in model.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    store(out / "text_first.safetensors", state)
    config_file(out / "text_first.json", config, "CLIPTextModel")
    write(out / "text_first_tensors.safetensors", text_tensors(model.double(), ids))

    # A vocabulary in which the end is not the last token.
    config = CLIPTextConfig(
        **(shapes | dict(vocab_size=size + 3, hidden_size=32, num_attention_heads=4)),
        num_hidden_layers=3, hidden_act="gelu", layer_norm_eps=1e-6, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=0,
    )
    model = CLIPTextModel(config).eval()
    fill(model, 2)
    state = {name.removeprefix("text_model."): tensor.clone() for name, tensor in model.state_dict().items()}
    store(out / "text_second.safetensors", state)
    config_file(out / "text_second.json", config, "CLIPTextModel")
    filled = ids.clone()
    end = int((ids[0] == size - 1).nonzero()[0])
    filled[0, end + 1 :], filled[1, 2:] = 0, 0
    filled[0, 1] = size + 2
    write(out / "text_second_tensors.safetensors", text_tensors(model.double(), filled))


def clip(out: Path, tokenizer: CLIPTokenizer) -> None:
    size = len(tokenizer)
    text = CLIPTextConfig(
        vocab_size=size, hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2,
        bos_token_id=size - 2, eos_token_id=size - 1,
    )
    # A rest of four pixels at the right and at the bottom belongs to no patch.
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_hidden_layers=2, image_size=28, patch_size=8, num_channels=3
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=20)
    model = CLIPModel(config).eval()
    fill(model, 3)
    store(out / "clip.safetensors", {name: tensor.clone() for name, tensor in model.state_dict().items()})
    config_file(out / "clip.json", config, "CLIPModel")
    model = model.double()
    ids = texts(tokenizer, ["a photo of a cat", "the quick brown fox jumps over the lazy dog", ""])
    pixels = torch.randn((2, 3, 28, 28), generator=torch.Generator().manual_seed(4))
    text_out, vision_out = model.text_model(ids), model.vision_model(pixels.double())
    output = model(input_ids=ids, pixel_values=pixels.double())
    tensors = {
        "input_ids": ids,
        "pixels": pixels,
        "pooled": text_out.pooler_output,
        "image_pooled": vision_out.pooler_output,
        # Before they are divided by their lengths.
        "text_embeds": model.text_projection(text_out.pooler_output),
        "image_embeds": model.visual_projection(vision_out.pooler_output),
        "cosine": output.logits_per_image / model.logit_scale.exp(),
    }
    write(out / "clip_tensors.safetensors", tensors)


def pictures(out: Path) -> None:
    rng = np.random.default_rng(5)
    cases = {
        "shrunk": ((53, 37), dict(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})),
        "wide": ((20, 61), dict(size={"shortest_edge": 13}, crop_size={"height": 12, "width": 15})),
        "enlarged": ((10, 13), dict(size={"shortest_edge": 23}, crop_size={"height": 23, "width": 23})),
        # A case in which every version of Pillow goes along the rows first.
        "bilinear": ((29, 31), dict(size={"height": 40, "width": 17}, resample=2, crop_size={"height": 21, "width": 20})),
        "same": ((28, 28), dict(size={"shortest_edge": 28}, crop_size={"height": 27, "width": 26}, do_normalize=False)),
    }
    tensors, configs = {}, {}
    for name, ((h, w), config) in cases.items():
        y, x = np.mgrid[0:h, 0:w]
        smooth = 127 + 120 * np.sin(0.3 * y + 0.2 * x)
        picture = np.stack([smooth, rng.integers(0, 256, (h, w)), np.where((x + y) % 7 < 3, 255, 0)], 2).astype(np.uint8)
        processor = CLIPImageProcessorPil(**config)
        prepared = processor(picture, return_tensors="np", input_data_format="channels_last").pixel_values[0]
        tensors[f"{name}/picture"] = torch.from_numpy(picture)
        tensors[f"{name}/pixels"] = torch.from_numpy(np.ascontiguousarray(prepared)).float()
        configs[name] = config
    store(out / "pictures.safetensors", tensors)
    dump(out / "pictures.json", configs)


def cheap_decoder(z: torch.Tensor) -> torch.Tensor:
    """Three channels at twice the size, which depend on where a tile begins as a real decoder's do."""
    x = z.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = x[:, :3] * x[:, 1:4]
    h = torch.arange(x.shape[2], dtype=x.dtype)[:, None]
    w = torch.arange(x.shape[3], dtype=x.dtype)[None]
    return x + 0.01 * h - 0.02 * w


def tiles(out: Path) -> None:
    from diffusers import AutoencoderKL

    # Tiles of 8 latents, 16 pixels.
    vae = AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, sample_size=16, use_post_quant_conv=False,
    )
    vae.decoder = None
    vae.use_tiling = True
    object.__setattr__(vae, "decoder", cheap_decoder)
    rng = torch.Generator().manual_seed(6)
    tensors = {}
    for name, (n, h, w) in {"wide": (1, 7, 29), "large": (2, 21, 18), "one": (1, 8, 8), "edge": (1, 9, 14)}.items():
        z = torch.randn((n, 4, h, w), generator=rng)
        tensors[f"{name}/latents"] = z
        tensors[f"{name}/pictures"] = vae._decode(z.double()).sample if max(h, w) > 8 else cheap_decoder(z.double())
    write(out / "tiles.safetensors", tensors)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "latent/tests/golden")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers(options.out)
    text_models(options.out, tokenizer)
    clip(options.out, tokenizer)
    pictures(options.out)
    tiles(options.out)


if __name__ == "__main__":
    main()
