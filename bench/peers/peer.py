"""One peer with one work in one process: checks itself, then takes its turns at the benchmark.

Lines of JSON on stdin and stdout (see bench/README.md). First it says, without being asked,

    {"ready": true, "error": E, "idle_rss_mb": M, "setup_seconds": S, "versions": {...}, "losses": [...]}

where E is the relative L2 distance of its output from the expected one or, for training, the largest relative difference
of the first losses. Then it answers {"run": SECONDS} with {"seconds": [each step]} and {"quit": true} with
{"peak_rss_mb": P}. P is the highest resident memory since it was ready, so that the memory of a compiler does not count.

Usage: python bench/peers/peer.py --peer NAME --model NAME --task forward|train --batch N --threads N --folder FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

TORCH = {
    "pytorch-eager": (False, False),
    "pytorch-eager-cl": (False, True),
    "pytorch-compile": (True, False),
    "pytorch-compile-cl": (True, True),
}
PEERS = (*TORCH, "onnxruntime", "openvino")
#: Steps before the first timed one, besides those of the check.
WARM_UP = 2


def resident(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"/proc/self/status has no {field}")


class Torch:
    """PyTorch, eager or compiled, with contiguous or channels-last tensors."""

    def __init__(self, job: argparse.Namespace):
        import torch

        import networks

        self.torch, self.networks, self.job = torch, networks, job
        torch.set_num_threads(job.threads)
        self.versions = {"torch": torch.__version__}
        if job.model != "book":
            import diffusers

            # The classes are imported here, so that they belong to the idle process.
            _ = diffusers.UNet2DModel
            self.versions["diffusers"] = diffusers.__version__
        if job.model == "sd15-text":
            import transformers

            _ = transformers.CLIPTextModel
            self.versions["transformers"] = transformers.__version__

    def prepare(self) -> None:
        from safetensors.torch import load_file

        torch, job = self.torch, self.job
        compiled, channels_last = TORCH[job.peer]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = self.networks.load(job.files / "model").to(memory_format=layout)
        tensors = load_file(job.files / f"input-{job.batch}.safetensors")
        if "sample" in tensors:
            tensors["sample"] = tensors["sample"].to(memory_format=layout)
        names = ("sample", "timestep", "class_labels", "encoder_hidden_states", "input_ids")
        self.arguments = [tensors[name] for name in names if name in tensors]
        self.expected = load_file(job.files / f"expected-{job.batch}.safetensors")
        if job.task == "train":
            self.model.train()
            self.target = self.expected["target"].to(memory_format=layout)
            # The fused optimiser is the fastest that PyTorch has on a CPU.
            self.optimiser = torch.optim.Adam(self.model.parameters(), lr=self.networks.LEARNING_RATE, fused=True)
        else:
            self.model.eval()
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
        if compiled:
            if job.task == "forward":
                # Folds normalisations into weights and lays the weights out for the kernels, as the other peers do.
                import torch._inductor.config

                torch._inductor.config.freezing = True
            self.model = torch.compile(self.model)

    def train_step(self):
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.torch.nn.functional.mse_loss(self.model(*self.arguments), self.target)
        loss.backward()
        self.optimiser.step()
        return loss

    def step(self) -> None:
        if self.job.task == "train":
            self.train_step()
        else:
            with self.torch.no_grad():
                self.model(*self.arguments)

    def check(self) -> tuple[float, list[float]]:
        if self.job.task == "train":
            losses = [float(self.train_step().detach()) for _ in self.expected["losses"]]
            wrong = [abs(a - b) / b for a, b in zip(losses, self.expected["losses"].tolist())]
            return max(wrong), losses
        with self.torch.no_grad():
            output = self.model(*self.arguments)
        return relative_l2(output.numpy(), self.expected["output"].numpy()), []


class Exported:
    """What the two runtimes of exported networks have in common."""

    def read(self) -> None:
        from safetensors.numpy import load_file

        job = self.job
        self.inputs = load_file(job.files / f"input-{job.batch}.safetensors")
        self.expected = load_file(job.files / f"expected-{job.batch}.safetensors")["output"]
        self.path = str(job.files / f"model-{job.batch}.onnx")

    def check(self) -> tuple[float, list[float]]:
        return relative_l2(self.step(), self.expected), []


class OnnxRuntime(Exported):
    def __init__(self, job: argparse.Namespace):
        import onnxruntime

        self.library, self.job = onnxruntime, job
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def prepare(self) -> None:
        self.read()
        options = self.library.SessionOptions()
        options.intra_op_num_threads = self.job.threads
        options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = self.library.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])

    def step(self):
        return self.session.run(None, self.inputs)[0]


class OpenVino(Exported):
    def __init__(self, job: argparse.Namespace):
        import openvino

        self.library, self.job = openvino, job
        self.versions = {"openvino": version("openvino")}

    def prepare(self) -> None:
        self.read()
        options = {
            # Without this hint it computes in half precision where the processor can.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.job.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = self.library.Core()
        self.request = core.compile_model(core.read_model(self.path), "CPU", options).create_infer_request()

    def step(self):
        return self.request.infer(self.inputs, share_inputs=True, share_outputs=True)[0]


def relative_l2(found, expected) -> float:
    """The relative L2 distance of two arrays, evaluated in f64; without PyTorch, which not every peer imports."""
    import numpy as np

    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", choices=("forward", "train"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    job = parser.parse_args()
    job.files = job.folder / job.model
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((job.folder / "inductor").resolve()))

    # Whatever a library prints goes to stderr: stdout is for the answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**message) -> None:
        print(json.dumps(message), file=answers, flush=True)

    start = time.perf_counter()
    if job.peer in TORCH:
        peer = Torch(job)
    elif job.task == "train":
        parser.error(f"{job.peer} does not train")
    else:
        peer = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[job.peer](job)
    import numpy
    import safetensors  # noqa: F401

    peer.versions["numpy"] = numpy.__version__
    idle = resident("VmRSS")
    peer.prepare()
    error, losses = peer.check()
    for _ in range(WARM_UP):
        peer.step()
    # From here on the system counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    answer(
        ready=True, error=error, losses=losses, idle_rss_mb=round(idle, 1), versions=peer.versions,
        setup_seconds=round(time.perf_counter() - start, 2),
    )
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            times = []
            while sum(times) < request["run"] or len(times) < 2:
                begin = time.perf_counter()
                peer.step()
                times.append(time.perf_counter() - begin)
            answer(seconds=times)
        elif "quit" in request:
            answer(peak_rss_mb=round(resident("VmHWM"), 1))
            return


if __name__ == "__main__":
    main()
