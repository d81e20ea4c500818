"""Opens what `tweedie convert` writes in Python diffusers: f32, f16, bf16, in one file and in shards, as pipeline and component.

Every tensor has to be there, without a warning, and equal to the one that `tweedie` converted: bit for bit in f32, and rounded
to nearest in f16 and bf16. For shards, what diffusers itself saves with the same limit has to have the same index.

Usage: python tools/reference/check_saved_model.py MODEL_DIR --tweedie target/release/tweedie
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DModel

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHARD = 200_000


def opened(folder: Path, subfolder: str | None, dtype: torch.dtype) -> UNet2DModel:
    model, info = UNet2DModel.from_pretrained(
        folder, subfolder=subfolder, output_loading_info=True, low_cpu_mem_usage=False, torch_dtype=dtype,
        local_files_only=True, use_safetensors=True,
    )
    faults = {name: found for name, found in info.items() if found}
    if faults:
        raise SystemExit(f"{folder}: the weights do not fit the config: {faults}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tweedie", type=Path, required=True)
    options = parser.parse_args()
    original = opened(options.model, "unet", torch.float32).state_dict()
    with tempfile.TemporaryDirectory() as scratch:
        for name, dtype in TYPES.items():
            for layout in ("pipeline", "component"):
                for shards in (None, SHARD):
                    out = Path(scratch) / f"{name}-{layout}-{shards}"
                    command = [options.tweedie, "convert", "--model", options.model, "--out", out, "--dtype", name]
                    command += ["--layout", layout, "--quiet"]
                    command += ["--max-shard-size", str(shards)] if shards else []
                    subprocess.run([str(word) for word in command], check=True)
                    subfolder = "unet" if layout == "pipeline" else None
                    found = opened(out, subfolder, dtype).state_dict()
                    if found.keys() != original.keys():
                        raise SystemExit(f"{out}: other tensors than in {options.model}")
                    for key, value in found.items():
                        if not torch.equal(value, original[key].to(dtype)):
                            raise SystemExit(f"{out}: {key} differs")
                    files = sorted(path.name for path in (out / (subfolder or "")).glob("*.safetensors"))
                    if shards:
                        index = json.loads(next(out.rglob("*.index.json")).read_text())
                        theirs = Path(scratch) / f"theirs-{name}-{layout}"
                        opened(out, subfolder, dtype).save_pretrained(theirs, max_shard_size=shards)
                        other = json.loads(next(theirs.glob("*.index.json")).read_text())
                        if index["metadata"]["total_size"] != other["metadata"]["total_size"]:
                            raise SystemExit(f"{out}: the index has another total size than diffusers writes")
                        if index["weight_map"].keys() != other["weight_map"].keys():
                            raise SystemExit(f"{out}: the index has other tensors than diffusers writes")
                    print(f"{name} {layout}: {len(found)} tensors equal, {len(files)} file(s)")


if __name__ == "__main__":
    main()
