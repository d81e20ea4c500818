"""Writes the golden numbers of the noise schedulers: `cli/tests/golden/schedulers.json`.

The step functions are those of diffusers, untouched. Its tables are f32; for `betas`, `alphas_cumprod` and `states` they are
replaced by the same formulas in f64, so that an f64 implementation can be held to about 1e-9. What the stock f32 tables
give is kept beside it (`alphas_cumprod_stock`, `final_stock`), and this script stops if the two disagree by more than
rounding can explain. Arrays are row-major over `shape`.

  schedules      config, betas, alphas_cumprod (f64), alphas_cumprod_stock (f32): entry i belongs to diffusers timestep i,
                 that is to step t = i + 1
  timesteps      classes (each gives this list), config, num_inference_steps, timesteps
  trajectories   name, config (as scheduler_config.json holds it), num_inference_steps, eta and use_clipped_model_output
                 (DDIM only, else null and false), timesteps, states (first `initial`, then after each step),
                 final_stock, noise_on_last_step (true where diffusers adds visible noise in its very last step, because
                 that step's timestep is above 0 and variance_type is fixed_large)
  learned        as trajectories, with variance_type learned_range: the model's output has 2 C channels

The model at timestep t is 0.3 * x * cos(t / 100) + 0.1, whatever the prediction type; the learned half is 0.5 * cos(x + t).
Step k of a stochastic sampler uses noise[k]; DDPM uses none where t = 0, DDIM none where eta = 0.

Left out on purpose: DDIM where diffusers' p = t - T // K is not the next entry of its own list (linspace, or T not a
multiple of K), zero terminal SNR with epsilon (division by zero), fixed_large_log (square root of a logarithm), and as many
steps as T with steps_offset 1 (reads beyond the table).

Usage: python tools/reference/golden_schedulers.py [--out cli/tests/golden/schedulers.json]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from golden_common import config_of, flat, model, short, write_lines

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (2, 1, 3, 3)
MAX_STEPS = 20
CLASSES = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}


def exact_betas(config) -> torch.Tensor:
    """The schedule of `config` in f64."""
    T, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = np.linspace(start, end, T)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, T) ** 2
    elif config.beta_schedule == "squaredcos_cap_v2":
        def level(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        betas = np.array([min(1 - level((i + 1) / T) / level(i / T), 0.999) for i in range(T)])
    else:
        raise ValueError(config.beta_schedule)
    betas = torch.from_numpy(betas)
    return scheduling_ddpm.rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def widen(scheduler):
    """Replaces the scheduler's f32 tables by f64 ones, and checks that they are the same tables."""
    stock = scheduler.alphas_cumprod.double()
    scheduler.betas = exact_betas(scheduler.config)
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    one = torch.tensor(1.0, dtype=torch.float64)
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = one if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[0]
    else:
        scheduler.one = one
    worst = float((stock - scheduler.alphas_cumprod).abs().max())
    assert worst < 2e-6, f"f64 tables differ from diffusers by {worst}: {dict(scheduler.config)}"
    return scheduler


def trajectory(scheduler, steps, dtype, initial, noise, eta, clipped) -> list[torch.Tensor]:
    """All states of a run with the given noise."""
    scheduler.set_timesteps(steps)
    ddim = isinstance(scheduler, DDIMScheduler)
    learned = not ddim and scheduler.config.variance_type == "learned_range"
    x = initial.to(dtype)
    states = [x]
    for k, t in enumerate(scheduler.timesteps.tolist()):
        output = model(x, t, learned)
        if ddim:
            z = noise[k].to(dtype) if eta > 0 else None
            x = scheduler.step(
                output, t, x, eta=eta, use_clipped_model_output=clipped, variance_noise=z
            ).prev_sample
        else:
            original = scheduling_ddpm.randn_tensor
            scheduling_ddpm.randn_tensor = lambda *a, **b: noise[k].to(dtype)
            try:
                x = scheduler.step(output, t, x).prev_sample
            finally:
                scheduling_ddpm.randn_tensor = original
        states.append(x)
    return states


def schedules() -> list[dict]:
    rows = []
    for name, T, start, end, rescale in [
        ("linear", 1000, 1e-4, 0.02, False),
        ("scaled_linear", 1000, 0.00085, 0.012, False),
        ("squaredcos_cap_v2", 1000, 1e-4, 0.02, False),
        ("linear", 1000, 1e-4, 0.02, True),
        ("scaled_linear", 50, 0.00085, 0.012, True),
        ("squaredcos_cap_v2", 50, 1e-4, 0.02, False),
        ("linear", 50, 1e-3, 0.2, False),
        ("linear", 1, 1e-4, 0.02, False),
    ]:
        scheduler = DDPMScheduler(T, start, end, name, rescale_betas_zero_snr=rescale)
        stock = short(scheduler.alphas_cumprod)
        widen(scheduler)
        rows.append({
            "config": config_of(scheduler), "betas": flat(scheduler.betas),
            "alphas_cumprod": flat(scheduler.alphas_cumprod), "alphas_cumprod_stock": stock,
        })
    return rows


def timesteps() -> list[dict]:
    rows = []
    for spacing in ("leading", "linspace", "trailing"):
        for offset in (0, 1):
            for T, steps in [
                (1000, 1), (1000, 2), (1000, 7), (1000, 10), (1000, 50), (1000, 333), (100, 3), (100, 10), (100, 64),
                (100, 100), (50, 20), (17, 5), (1, 1),
            ]:
                if steps == T and offset == 1 and spacing == "leading":
                    continue
                settings = dict(num_train_timesteps=T, timestep_spacing=spacing, steps_offset=offset)
                lists = []
                for kind in CLASSES.values():
                    scheduler = kind(**settings)
                    scheduler.set_timesteps(steps)
                    lists.append(scheduler.timesteps.tolist())
                assert lists[0] == lists[1], f"{settings}, {steps} steps: the two classes differ"
                rows.append({
                    "classes": list(CLASSES), "config": settings, "num_inference_steps": steps, "timesteps": lists[0],
                })
    return rows


def cases() -> list[tuple]:
    """(class name, scheduler settings, steps, eta, use_clipped_model_output)"""
    rows = []

    def ddpm(steps=10, **settings):
        rows.append(("DDPMScheduler", settings, steps, None, False))

    def ddim(steps=10, eta=0.0, clipped=False, **settings):
        rows.append(("DDIMScheduler", settings, steps, eta, clipped))

    latent = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    zero = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    strong = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.5)
    for prediction in ("epsilon", "sample", "v_prediction"):
        for clip in (True, False):
            ddpm(prediction_type=prediction, clip_sample=clip)
            for eta in (0.0, 0.5, 1.0):
                ddim(prediction_type=prediction, clip_sample=clip, eta=eta)
    for spacing in ("leading", "linspace", "trailing"):
        for offset in (0, 1):
            ddpm(timestep_spacing=spacing, steps_offset=offset, **latent)
            if spacing != "linspace":
                ddim(timestep_spacing=spacing, steps_offset=offset, eta=0.5, **latent)
                ddim(
                    timestep_spacing=spacing, steps_offset=offset, eta=0.5, set_alpha_to_one=False, clip_sample=False,
                    **latent,
                )
    for variance in ("fixed_small", "fixed_small_log", "fixed_large"):
        ddpm(variance_type=variance, beta_schedule="squaredcos_cap_v2")
        ddpm(variance_type=variance, timestep_spacing="trailing", clip_sample=False)
    ddpm(clip_sample_range=0.5)
    ddim(clip_sample_range=2.0, eta=1.0)
    ddim(clipped=True)
    ddim(clipped=True, eta=0.5, prediction_type="v_prediction")
    ddim(set_alpha_to_one=False)
    ddim(set_alpha_to_one=False, eta=1.0, timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2")
    for prediction in ("epsilon", "sample", "v_prediction"):
        ddpm(prediction_type=prediction, **strong)
        ddim(prediction_type=prediction, eta=0.5, **strong)
    ddpm(clip_sample=False, **zero)
    ddpm(clip_sample=True, **zero, **latent)
    ddim(clip_sample=False, **zero)
    # Not eta = 1: at zero SNR the stock tables then take the root of a rounding error below zero.
    ddim(clip_sample=False, eta=0.5, **zero, **latent)
    # Every step of the process, and step counts that do not divide it.
    for spacing in ("leading", "linspace", "trailing"):
        ddpm(steps=20, num_train_timesteps=20, beta_start=0.001, beta_end=0.3, timestep_spacing=spacing)
        ddim(steps=20, num_train_timesteps=20, beta_start=0.001, beta_end=0.3, timestep_spacing=spacing, eta=1.0)
        ddpm(steps=7, num_train_timesteps=100, beta_end=0.15, timestep_spacing=spacing)
    ddim(steps=1, clip_sample=False, timestep_spacing="trailing")
    ddpm(steps=1, timestep_spacing="trailing")
    return rows


def run(case, initial, noise) -> dict:
    kind, settings, steps, eta, clipped = case
    states = trajectory(widen(CLASSES[kind](**settings)), steps, torch.float64, initial, noise, eta, clipped)
    stock = CLASSES[kind](**settings)
    final = trajectory(stock, steps, torch.float32, initial, noise, eta, clipped)[-1]
    scale = float(states[-1].abs().max())
    worst = float((states[-1] - final.double()).abs().max())
    assert worst < 2e-5 * max(scale, 1.0), f"{case}: f32 and f64 differ by {worst} of {scale}"
    assert all(bool(torch.isfinite(state).all()) for state in states), case
    name = ", ".join([kind.removesuffix("Scheduler"), f"{steps} steps"] + [f"{k} {v}" for k, v in settings.items()])
    if eta is not None:
        name += f", eta {eta}" + (", use_clipped_model_output" if clipped else "")
    visible = settings.get("variance_type") == "fixed_large" and stock.timesteps.tolist()[-1] > 0
    return {
        "name": name, "config": config_of(stock), "num_inference_steps": steps, "eta": eta,
        "use_clipped_model_output": clipped, "timesteps": stock.timesteps.tolist(), "noise_on_last_step": visible,
        "states": [flat(state) for state in states], "final_stock": short(final),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "cli/tests/golden/schedulers.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(7)
    # Rounded to f32, so that both precisions start from the same numbers.
    initial = torch.randn(SHAPE, generator=rng)
    noise = torch.randn((MAX_STEPS, *SHAPE), generator=rng)
    document = {
        "diffusers": diffusers.__version__,
        "model": "0.3 * x * cos(t / 100) + 0.1",
        "shape": list(SHAPE),
        "initial": flat(initial.double()),
        "noise": [flat(z.double()) for z in noise],
        "schedules": schedules(),
        "timesteps": timesteps(),
        "trajectories": [run(case, initial, noise) for case in cases()],
        "learned": [
            run(("DDPMScheduler", dict(variance_type="learned_range", timestep_spacing=spacing), 10, None, False), initial, noise)
            for spacing in ("leading", "trailing")
        ],
    }
    write_lines(options.out, document)
    size = options.out.stat().st_size / 1e6
    print(f"{options.out.name}: {len(document['trajectories'])} trajectories, {size:.3f} MB")


if __name__ == "__main__":
    main()
