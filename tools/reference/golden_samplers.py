"""Writes golden trajectories of every scheduler class: `cli/tests/golden/samplers/CLASS.json`, and of a small network.

The code that runs is diffusers' own, with every `float32` of the scheduler's file replaced by `float64`, so that an f64
implementation can be held to about 1e-9. The stock f32 run stands beside it (`stock`), and this script stops if the two
disagree by more than rounding explains, unless the case says that they may (`stock_error`, `stock_timesteps`).

  class, form    `vp`: states are x = alpha x0 + sigma e. `ve`: they are x / alpha = x0 + s e, where s = sigma / alpha is an entry
                 of `sigmas`. Either is the variable of diffusers' own class.
  time_scale     of the fake network, whose output at the scaled input u and the number t is 0.3 u cos(t / time_scale) + 0.1;
                 a learned variance is 0.5 cos(u + t), on further channels.
  initial, noise standard normal; a case uses the first numbers of each, as many as its shape has. Draw k takes noise[k].
  cases          name; config (as scheduler_config.json holds it, with infinities as strings); steps; options (arguments of
                 `step`; `begin_index` for set_begin_index); shape [N, C, H, W]; timesteps (what the network sees, one for
                 each call of `step`); sigmas; init_noise_sigma; draws (the calls that drew noise); states (first
                 initial * init_noise_sigma, then after each call); stock (last state in f32); stock_timesteps (only where
                 rounding leads f32 to another list); error (the f64 run raised, or met a NaN: keys that it did not reach
                 are absent); stock_error (the same of the stock run alone).

The network is a UNet2DModel with random parameters, in `network/`: `config.json` and its weights, `noise.safetensors` (as
`tweedie sample --noise` reads it), `cases.json` (name, config, steps, options) and `finals.safetensors` (the last state of
diffusers' f32 loop by name).

Usage: python tools/reference/golden_samplers.py [--out cli/tests/golden/samplers]
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import logging
import math
import sys
import warnings
from pathlib import Path

import diffusers
import scipy  # noqa: F401  (diffusers leaves out LMS and the beta sigmas without it)
import torch
from safetensors.torch import save_file

from golden_common import config_of, flat, model, rounded, short, wide, write_lines

ROOT = Path(__file__).resolve().parents[2]
SHAPE, THREE = (2, 1, 2, 2), (1, 3, 1, 2)
DRAWS = 24
# Classes whose state is x0 + s e.
VE = {
    "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete",
    "EDMEuler", "EDMDPMSolverMultistep", "CMStochasticIterative",
}
LATENT = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
STRONG = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.5)
SPACINGS = ("linspace", "leading", "trailing")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Failure(Exception):
    """What upstream said instead of a result."""


@contextlib.contextmanager
def replayed(module, noise, draws: list[int], position: list[int]):
    """Hands out `noise` in order wherever the scheduler draws, and notes the calls of `step` that drew."""
    original = getattr(module, "randn_tensor", None)

    def draw(shape, generator=None, device=None, dtype=None, layout=None):
        draws.append(position[0])
        return noise[len(draws) - 1].to(dtype)

    if original is not None:
        module.randn_tensor = draw
    try:
        yield
    finally:
        if original is not None:
            module.randn_tensor = original


def run(name, settings, steps, options, shape, network=None, initial=None, noise=None, dtype=torch.float32) -> dict:
    """One trajectory. `network` is a function of (x, t); the keys that were reached before a failure are kept."""
    kind = getattr(diffusers, f"{name}Scheduler")
    module = sys.modules[kind.__module__]
    found = {"error": None}
    step_options = {k: float(v) if v == "inf" else v for k, v in options.items() if k != "begin_index"}
    try:
        scheduler = kind(**settings)
        found["config"] = config_of(scheduler)
        scheduler.set_timesteps(steps)
        if "begin_index" in options:
            scheduler.set_begin_index(options["begin_index"])
        found["timesteps"] = scheduler.timesteps.double().tolist()
        sigmas = getattr(scheduler, "sigmas", None)
        found["sigmas"] = None if sigmas is None else sigmas.double().tolist()
        found["init_noise_sigma"] = float(scheduler.init_noise_sigma)
        draws, position = [], [0]
        count = math.prod(shape)
        noise = [z.flatten()[:count].reshape(shape) for z in noise]
        x = initial.flatten()[:count].reshape(shape).to(dtype) * scheduler.init_noise_sigma
        found["states"], found["draws"] = [x], draws
        with replayed(module, noise, draws, position):
            for k, t in enumerate(scheduler.timesteps):
                position[0] = k
                output = network(scheduler.scale_model_input(x, t), t, scheduler.config)
                x = scheduler.step(output, t, x, **step_options).prev_sample
                if not bool(torch.isfinite(x).all()):
                    raise Failure("NaN")
                found["states"].append(x)
    except Failure as failure:
        found["error"] = str(failure)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return found


def plain(value):
    """Infinities as strings, which JSON has not."""
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def full_config(name, settings) -> dict:
    """The config of a scheduler that could not be made."""
    kind = getattr(diffusers, f"{name}Scheduler")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {"_class_name": kind.__name__, "_diffusers_version": diffusers.__version__,
            **{p.name: p.default for p in parameters}, **settings}


def case(name, settings, steps, options, shape, initial, noise) -> dict:
    """The f64 run of a case with what the stock one adds to it."""
    module = sys.modules[getattr(diffusers, f"{name}Scheduler").__module__]
    scale = 1 if name.startswith("EDM") else 100

    def network(x, t, config):
        learned = getattr(config, "variance_type", None) in ("learned", "learned_range")
        return model(x, float(t), learned, scale)

    stock = run(name, settings, steps, options, shape, network, initial, noise, torch.float32)
    with wide(module):
        found = run(name, settings, steps, options, shape, network, initial, noise, torch.float64)
    label = ", ".join([f"{steps} steps"] + [f"{k} {v}" for k, v in {**settings, **options}.items()])
    config = found.get("config") or full_config(name, settings)
    row = {"name": label, "config": {k: plain(v) for k, v in config.items()}, "steps": steps, "options": options, "shape": list(shape)}
    row["precision"] = "f64"
    for key in ("timesteps", "sigmas"):
        if key in found:
            row[key] = None if found[key] is None else rounded(found[key], 12)
    for key in ("init_noise_sigma", "draws"):
        if key in found:
            row[key] = found[key]
    if "states" in found:
        assert found["states"][-1].dtype == torch.float64, f"{name}: {label} is not in f64"
        row["states"] = [rounded(flat(state), 11) for state in found["states"]]
    row["error"] = found["error"]
    if stock["error"] is not None:
        if stock["error"] != found["error"]:
            row["stock_error"] = stock["error"]
    elif found["error"] is None:
        row["stock"] = short(stock["states"][-1])
        ours, theirs = (torch.tensor(f["timesteps"], dtype=torch.float64) for f in (found, stock))
        if bool(((ours - theirs).abs() > 1e-2).any()):
            row["stock_timesteps"] = stock["timesteps"]
        else:
            last = found["states"][-1]
            size = max(float(last.abs().max()), 1.0)
            worst = float((last - stock["states"][-1].double()).abs().max()) / size
            loose = config.get("rescale_betas_zero_snr") or config.get("use_beta_sigmas")
            if worst > (2e-3 if loose else 1e-4):
                print(f"  {name}: {label}: f32 differs from f64 by {worst:.2g}", file=sys.stderr)
            row["stock_difference"] = float(f"{worst:.2g}")
    return row


def sigma_family(prefix=(), predictions=("epsilon", "v_prediction"), sigmas=SIGMAS) -> list[tuple]:
    """(steps, settings, options): what all classes with interpolated sigmas share."""
    rows = [(8, dict(prediction_type=p, **LATENT), {}) for p in predictions]
    rows += [(8, dict(timestep_spacing=s, steps_offset=o, **LATENT), {}) for s in SPACINGS for o in (0, 1)]
    rows += [(n, dict(timestep_spacing=s), {}) for s in SPACINGS for n in (1, 2, 3, 7)]
    rows += [(8, {key: True, "timestep_spacing": s, **LATENT}, {}) for key in sigmas for s in SPACINGS]
    rows += [(8, {key: True, "steps_offset": 1, "timestep_spacing": "leading", "prediction_type": predictions[-1]}, {}) for key in sigmas]
    rows += [(n, {key: True}, {}) for key in sigmas for n in (1, 2)]
    rows += [(8, {key: True, **COSINE}, options) for key in sigmas for options in ({}, {"begin_index": 0})]
    rows += [(8, COSINE, {}), (8, dict(timestep_spacing="trailing", **COSINE), {}), (16, LATENT, {})]
    rows += [(5, dict(num_train_timesteps=20, beta_end=0.3, timestep_spacing=s), {}) for s in SPACINGS]
    rows += [(4, dict(trained_betas=[0.01, 0.03, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4], num_train_timesteps=8), {})]
    return rows


def log_snr_family(**extra) -> list[tuple]:
    """What the multistep classes in lambda share."""
    rows = [(8, dict(prediction_type=p, **LATENT, **extra), {}) for p in ("epsilon", "sample", "v_prediction")]
    rows += [(8, dict(timestep_spacing=s, steps_offset=o, **LATENT, **extra), {}) for s in SPACINGS for o in (0, 1)]
    rows += [(n, dict(timestep_spacing=s, **extra), {}) for s in SPACINGS for n in (1, 2, 3, 7)]
    rows += [(8, {key: True, **LATENT, **extra}, {}) for key in SIGMAS]
    # Karras' first timesteps are rounded to the same number, whose second place upstream then starts at.
    rows += [(8, {key: True, **COSINE, **extra}, options) for key in SIGMAS for options in ({}, {"begin_index": 0})]
    rows += [(n, {key: True, **extra}, {}) for key in SIGMAS for n in (1, 2)]
    rows += [(8, dict(COSINE, **extra), {}), (16, dict(LATENT, **extra), {})]
    rows += [(8, dict(prediction_type=p, **STRONG, **extra), {}) for p in ("epsilon", "v_prediction")]
    return rows


def zero_snr(predictions) -> list[tuple]:
    return [
        (8, dict(rescale_betas_zero_snr=True, timestep_spacing=s, prediction_type=p, **LATENT), {})
        for p in predictions for s in ("trailing", "linspace")
    ]


def ddpm() -> list[tuple]:
    rows = []
    for prediction in ("epsilon", "sample", "v_prediction"):
        rows += [(8, dict(prediction_type=prediction, clip_sample=clip), {}) for clip in (True, False)]
        rows += [(8, dict(prediction_type=prediction, **STRONG), {})]
    for spacing in SPACINGS:
        rows += [(n, dict(timestep_spacing=spacing), {}) for n in (1, 2, 3, 7)]
    for variance in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned"):
        rows.append((8, dict(variance_type=variance, clip_sample=False, **COSINE), {}))
    rows.append((8, dict(variance_type="learned_range", clip_sample=False, **COSINE), {}))
    rows += [(8, dict(beta_schedule=s, clip_sample_range=0.7), {}) for s in ("sigmoid", "laplace")]
    rows += [(8, dict(rescale_betas_zero_snr=True, prediction_type=p, timestep_spacing="trailing"), {}) for p in ("v_prediction", "epsilon")]
    rows += [(20, dict(num_train_timesteps=20, beta_end=0.3, steps_offset=o), {}) for o in (0, 1)]
    return rows


def ddim() -> list[tuple]:
    rows = []
    for prediction in ("epsilon", "sample", "v_prediction"):
        rows += [(8, dict(prediction_type=prediction, clip_sample=clip), {"eta": eta}) for clip in (True, False) for eta in (0.0, 0.7)]
    # 7 does not divide 1000: diffusers' own rule for the next timestep leaves its list.
    for spacing in SPACINGS:
        rows += [(n, dict(timestep_spacing=spacing, steps_offset=o, **LATENT), {"eta": 0.0}) for n in (1, 2, 3, 7, 8) for o in (0, 1)]
    rows += [(8, dict(set_alpha_to_one=False, **STRONG), {"eta": 1.0, "use_clipped_model_output": True})]
    rows += [(8, dict(rescale_betas_zero_snr=True, prediction_type=p, timestep_spacing="trailing"), {"eta": 0.0}) for p in ("v_prediction", "epsilon")]
    return rows


def pndm() -> list[tuple]:
    rows = []
    for skip in (True, False):
        rows += [(8, dict(skip_prk_steps=skip, prediction_type=p, set_alpha_to_one=one, **LATENT), {}) for p in ("epsilon", "v_prediction") for one in (False, True)]
        rows += [(10, dict(skip_prk_steps=skip, timestep_spacing=s, steps_offset=o, **LATENT), {}) for s in SPACINGS for o in (0, 1)]
        rows += [(n, dict(skip_prk_steps=skip, timestep_spacing=s), {}) for s in SPACINGS for n in (1, 2, 3, 4, 7)]
        rows += [(8, dict(skip_prk_steps=skip, **COSINE), {}), (12, dict(skip_prk_steps=skip, num_train_timesteps=60, beta_end=0.2), {})]
        rows += [(8, dict(skip_prk_steps=skip, prediction_type="sample"), {})]
    return rows


def euler() -> list[tuple]:
    rows = sigma_family(predictions=("epsilon", "sample", "v_prediction"))
    churn = dict(s_churn=3.0)
    rows += [
        (8, LATENT, churn), (8, LATENT, dict(s_churn=100.0)), (8, LATENT, dict(s_churn=3.0, s_noise=1.2)),
        (8, LATENT, dict(s_churn=3.0, s_tmin=0.3, s_tmax=5.0, s_noise=1.003)),
        (8, dict(prediction_type="v_prediction", use_karras_sigmas=True, **LATENT), churn),
        (8, dict(prediction_type="sample", **LATENT), churn),
    ]
    rows += [(n, dict(interpolation_type="log_linear", timestep_spacing=s, **LATENT), {}) for s in SPACINGS for n in (1, 8)]
    rows += [(8, dict(final_sigmas_type="sigma_min", timestep_spacing=s, **LATENT), {}) for s in SPACINGS]
    rows += [(8, {"final_sigmas_type": "sigma_min", key: True, **LATENT}, {}) for key in SIGMAS]
    rows += [(8, {"sigma_min": 0.1, "sigma_max": 9.0, key: True, **LATENT}, {}) for key in SIGMAS]
    rows += [(8, dict(sigma_min=0.1, sigma_max=9.0, **LATENT), {})]
    continuous = dict(timestep_type="continuous", prediction_type="v_prediction")
    rows += [(8, dict(continuous, **LATENT), {}), (8, dict(continuous, use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0), {})]
    rows += [(8, dict(timestep_type="continuous", **LATENT), {})]
    rows += zero_snr(("v_prediction", "epsilon"))
    rows += [(8, dict(use_karras_sigmas=True, use_beta_sigmas=True), {}), (20, dict(num_train_timesteps=20, steps_offset=1, timestep_spacing="leading"), {})]
    return rows


def lms() -> list[tuple]:
    rows = sigma_family(predictions=("epsilon", "sample", "v_prediction"))
    return rows + [(8, dict(prediction_type=p, **LATENT), {"order": o}) for o in (1, 2, 3) for p in ("epsilon", "v_prediction")]


def heun() -> list[tuple]:
    rows = sigma_family(predictions=("epsilon", "sample", "v_prediction"))
    rows += [(6, dict(clip_sample=True, clip_sample_range=r, prediction_type=p), {}) for r in (1.0, 0.5) for p in ("epsilon", "v_prediction")]
    return rows + [(6, dict(beta_schedule="exp"), {})]


def dpm() -> list[tuple]:
    rows = log_snr_family()
    for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"):
        base = dict(algorithm_type=algorithm, final_sigmas_type="sigma_min" if not algorithm.endswith("++") else "zero", **LATENT)
        for solver in ("midpoint", "heun"):
            for order in (1, 2, 3):
                rows += [(8, dict(base, solver_type=solver, solver_order=order), {})]
        rows += [(8, dict(base, solver_order=3, lower_order_final=False), {}), (16, dict(base, solver_order=3), {})]
        rows += [(16, dict(base, solver_order=3, euler_at_final=True, final_sigmas_type="sigma_min"), {})]
        rows += [(8, dict(base, prediction_type=p), {}) for p in ("sample", "v_prediction")]
        rows += [(8, dict(base, prediction_type=p, **STRONG), {}) for p in ("epsilon", "v_prediction")]
        rows += [(n, dict(base, solver_order=3), {}) for n in (1, 2, 3)]
        rows += [(8, dict(base, use_karras_sigmas=True), {}), (8, dict(base, lambda_min_clipped=-1.0), {})]
        rows += [(8, dict(base, variance_type="learned_range"), {})]
    rows += [(8, dict(final_sigmas_type="sigma_min", lower_order_final=lower, euler_at_final=euler, **LATENT), {}) for lower in (True, False) for euler in (True, False)]
    rows += [(8, {"final_sigmas_type": "sigma_min", key: True, **LATENT}, {}) for key in SIGMAS]
    rows += [(8, dict(lambda_min_clipped=-5.1, timestep_spacing=s, **COSINE), {}) for s in SPACINGS]
    rows += [(n, dict(use_lu_lambdas=True, **s), {}) for s in (LATENT, COSINE) for n in (2, 8)]
    rows += zero_snr(("v_prediction", "epsilon"))
    rows += [(8, dict(algorithm_type="deis"), {}), (8, dict(solver_type="bh2"), {}), (8, dict(algorithm_type="dpmsolver"), {})]
    rows += [(40, dict(use_karras_sigmas=True), {}), (40, dict(use_karras_sigmas=True), {"begin_index": 0})]
    return rows


def unipc() -> list[tuple]:
    rows = log_snr_family()
    for kind in ("bh1", "bh2"):
        for order in (1, 2, 3):
            rows += [(8, dict(solver_type=kind, solver_order=order, predict_x0=x0, final_sigmas_type="sigma_min", **LATENT), {}) for x0 in (True, False)]
            rows += [(8, dict(solver_type=kind, solver_order=order, **LATENT), {})]
    for order in (2, 3):
        rows += [(8, dict(solver_order=order, lower_order_final=False, final_sigmas_type="sigma_min", predict_x0=x0, **LATENT), {}) for x0 in (True, False)]
        rows += [(8, dict(solver_order=order, disable_corrector=off, final_sigmas_type="sigma_min", **LATENT), {}) for off in ([0], [0, 1, 2], list(range(8)))]
        rows += [(8, dict(solver_order=order, lower_order_final=False, **LATENT), {}), (16, dict(solver_order=order, **LATENT), {})]
    rows += [(8, dict(predict_x0=False, prediction_type=p, final_sigmas_type="sigma_min", **LATENT), {}) for p in ("epsilon", "sample", "v_prediction")]
    rows += [(8, {"final_sigmas_type": "sigma_min", key: True, "solver_order": 3, **LATENT}, {}) for key in SIGMAS]
    rows += [(8, {"sigma_min": 0.1, "sigma_max": 9.0, key: True, **LATENT}, {}) for key in SIGMAS]
    rows += [(n, dict(solver_order=3, final_sigmas_type="sigma_min"), {}) for n in (1, 2, 3)]
    rows += [(8, dict(solver_type="midpoint", **LATENT), {}), (8, dict(predict_x0=False, **STRONG), {})]
    return rows + zero_snr(("v_prediction", "epsilon"))


def edm(**extra) -> list[tuple]:
    rows = [(8, dict(sigma_schedule=s, final_sigmas_type=f, **extra), {}) for s in ("karras", "exponential") for f in ("zero", "sigma_min")]
    rows += [(8, dict(prediction_type=p, sigma_min=0.01, sigma_max=20.0, sigma_data=1.2, rho=5.0, **extra), {}) for p in ("epsilon", "v_prediction")]
    return rows + [(n, dict(extra), {}) for n in (1, 2, 3)]


def edm_euler() -> list[tuple]:
    return edm() + [
        (8, {}, dict(s_churn=3.0)), (8, {}, dict(s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)),
        (8, dict(prediction_type="v_prediction"), dict(s_churn=100.0, s_tmax="inf")), (8, dict(prediction_type="sample"), {}),
    ]


def edm_dpm() -> list[tuple]:
    rows = edm()
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        rows += [(8, dict(algorithm_type=algorithm, solver_type=s, solver_order=o), {}) for s in ("midpoint", "heun") for o in (1, 2, 3)]
        rows += [(8, dict(algorithm_type=algorithm, final_sigmas_type="sigma_min", lower_order_final=False, solver_order=2), {})]
        rows += [(8, dict(algorithm_type=algorithm, **STRONG), {}), (16, dict(algorithm_type=algorithm, euler_at_final=True, final_sigmas_type="sigma_min"), {})]
    return rows + [(16, dict(solver_order=3), {})]


def lcm() -> list[tuple]:
    rows = [(n, {}, {}) for n in (1, 2, 3, 4, 7, 8)]
    rows += [(4, dict(prediction_type=p), {}) for p in ("sample", "v_prediction")]
    rows += [(4, dict(original_inference_steps=o), {}) for o in (4, 30, 100, 1000, 2000)] + [(60, {}, {})]
    rows += [(4, dict(timestep_scaling=s), {}) for s in (1.0, 0.1)]
    rows += [(4, dict(clip_sample=True, clip_sample_range=r), {}) for r in (1.0, 0.5)] + [(4, STRONG, {})]
    rows += [(4, dict(beta_schedule="linear", set_alpha_to_one=False, steps_offset=1, timestep_spacing="trailing"), {}), (4, COSINE, {})]
    rows += [(4, dict(rescale_betas_zero_snr=True, prediction_type=p), {}) for p in ("v_prediction", "epsilon")]
    return rows


def cm() -> list[tuple]:
    rows = [(n, {}, {}) for n in (1, 2, 3, 7, 8, 20, 41)]
    rows += [(4, dict(s_noise=1.1, clip_denoised=False), {}), (4, dict(num_train_timesteps=18, rho=5.0, sigma_min=0.01, sigma_max=20.0, sigma_data=1.0), {})]
    return rows + [(2, dict(clip_denoised=False, num_train_timesteps=201), {}), (5, dict(num_train_timesteps=5), {})]


def deis() -> list[tuple]:
    rows = log_snr_family() + [(n, dict(solver_order=o, lower_order_final=lower, **LATENT), {}) for o in (1, 2, 3) for n in (8, 16) for lower in (True, False)]
    return rows + [(n, dict(solver_order=3), {}) for n in (1, 2, 3)]


def single() -> list[tuple]:
    rows = [(8, dict(prediction_type=p, **LATENT), {}) for p in ("epsilon", "sample", "v_prediction")]
    for algorithm in ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"):
        final = "sigma_min" if algorithm == "dpmsolver" else "zero"
        base = dict(algorithm_type=algorithm, final_sigmas_type=final, **LATENT)
        rows += [(n, dict(base, solver_order=o, solver_type=s, lower_order_final=True), {}) for n in (8, 9) for o in (1, 2, 3) for s in ("midpoint", "heun")]
        rows += [(6, dict(base, solver_order=o, lower_order_final=False, final_sigmas_type="sigma_min"), {}) for o in (1, 2, 3)]
        rows += [(8, dict(base, **STRONG), {})]
    rows += [(8, {key: True, "lower_order_final": True, **LATENT}, {}) for key in SIGMAS]
    rows += [(n, dict(solver_order=3), {}) for n in (1, 2, 3, 7)] + [(8, dict(lambda_min_clipped=-5.1, **COSINE), {})]
    return rows


CLASSES = {
    "DDPM": ddpm, "DDIM": ddim, "PNDM": pndm, "EulerDiscrete": euler,
    "EulerAncestralDiscrete": lambda: sigma_family(sigmas=()) + [(8, dict(prediction_type="sample"), {})] + zero_snr(("v_prediction", "epsilon")),
    "HeunDiscrete": heun, "LMSDiscrete": lms, "KDPM2Discrete": lambda: sigma_family(predictions=("epsilon", "v_prediction", "sample")),
    "KDPM2AncestralDiscrete": lambda: sigma_family() + [(8, dict(prediction_type="sample"), {})],
    "EDMEuler": edm_euler, "EDMDPMSolverMultistep": edm_dpm, "DPMSolverMultistep": dpm, "UniPCMultistep": unipc, "LCM": lcm,
    "CMStochasticIterative": cm, "DEISMultistep": deis, "DPMSolverSinglestep": single,
}


def write_class(name: str, out: Path, initial, noise) -> None:
    rows, seen = [], set()
    for steps, settings, options in CLASSES[name]():
        key = json.dumps([steps, {**settings, **options}], sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        shape = THREE if settings.get("variance_type") in ("learned_range", "learned") else SHAPE
        rows.append(case(name, settings, steps, options, shape, initial, noise))
    document = {
        "diffusers": diffusers.__version__, "class": f"{name}Scheduler", "form": "ve" if name in VE else "vp",
        "time_scale": 1 if name.startswith("EDM") else 100,
        "initial": flat(initial.double()), "noise": [flat(z.double()) for z in noise], "cases": rows,
    }
    path = out / f"{name}.json"
    write_lines(path, document)
    failures = sum(row["error"] is not None for row in rows)
    print(f"{path.name}: {len(rows)} cases, {failures} of them failures upstream, {path.stat().st_size / 1e6:.3f} MB")
    worst = max((row.get("stock_difference", 0), row["name"]) for row in rows)
    print(f"  f32 differs from f64 by at most {worst[0]:.2g} ({worst[1]})")
    for row in rows:
        if row["error"] or row.get("stock_error") or "stock_timesteps" in row:
            why = row["error"] or row.get("stock_error") and "stock: " + row["stock_error"] or "stock has other timesteps"
            print(f"  {row['name']}: {why}")


def network_cases() -> list[tuple]:
    """(class, settings, steps, options) of the runs with a network."""
    return [
        ("DDPM", {}, 10, {}), ("DDIM", dict(clip_sample=False), 10, {}), ("PNDM", dict(skip_prk_steps=True, **LATENT), 10, {}),
        ("PNDM", {}, 10, {}), ("EulerDiscrete", LATENT, 10, {}), ("EulerDiscrete", dict(use_karras_sigmas=True), 10, {}),
        ("EulerDiscrete", dict(final_sigmas_type="sigma_min", **LATENT), 10, {}),
        ("EulerAncestralDiscrete", LATENT, 10, {}), ("HeunDiscrete", {}, 10, {}), ("LMSDiscrete", LATENT, 10, {}),
        ("DPMSolverMultistep", LATENT, 10, {}), ("DPMSolverMultistep", dict(solver_order=3, use_karras_sigmas=True, **LATENT), 10, {}),
        ("DPMSolverMultistep", dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **LATENT), 10, {}),
        ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver++", **LATENT), 10, {}),
        ("DPMSolverMultistep", dict(algorithm_type="sde-dpmsolver", solver_type="heun", final_sigmas_type="sigma_min", **LATENT), 10, {}),
        ("UniPCMultistep", LATENT, 10, {}), ("UniPCMultistep", dict(solver_order=3, solver_type="bh1", final_sigmas_type="sigma_min", **LATENT), 10, {}),
        ("KDPM2Discrete", LATENT, 10, {}), ("KDPM2AncestralDiscrete", LATENT, 10, {}), ("EDMEuler", {}, 10, {}),
        ("EDMDPMSolverMultistep", {}, 10, {}), ("LCM", {}, 4, {}), ("CMStochasticIterative", {}, 4, {}),
        ("DEISMultistep", LATENT, 10, {}), ("DPMSolverSinglestep", LATENT, 10, {}),
    ]


def write_network(out: Path) -> None:
    torch.manual_seed(11)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # The zeros and ones of a fresh network would leave biases and norms untested.
        for parameter in unet.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
    initial = torch.randn((2, 1, 8, 8), generator=rng)
    noise = torch.randn((DRAWS, 2, 1, 8, 8), generator=rng)
    out.mkdir(parents=True, exist_ok=True)
    unet.save_pretrained(out)
    save_file({"initial": initial, "steps": noise}, out / "noise.safetensors")
    rows, finals = [], {}
    for name, settings, steps, options in network_cases():
        def network(x, t, config):
            with torch.no_grad():
                return unet(x, t).sample

        found = run(name, settings, steps, options, (2, 1, 8, 8), network, initial, noise)
        label = ", ".join([name] + [f"{k} {v}" for k, v in settings.items()])
        assert found["error"] is None, f"{label}: {found['error']}"
        last = found["states"][-1]
        finals[label] = last.float().contiguous()
        rows.append({"name": label, "config": {k: plain(v) for k, v in found["config"].items()}, "steps": steps, "options": options})
        print(f"  {label}: {float(last.min()):.3f} to {float(last.max()):.3f}, {len(found['draws'])} draws")
    write_lines(out / "cases.json", {"cases": rows})
    save_file(finals, out / "finals.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "cli/tests/golden/samplers")
    parser.add_argument("--only", help="one class, or `network`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    rng = torch.Generator().manual_seed(7)
    # Rounded to f32, so that both precisions start from the same numbers.
    initial = torch.randn(SHAPE, generator=rng)
    noise = torch.randn((DRAWS, *SHAPE), generator=rng)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in CLASSES:
        if options.only in (None, name):
            write_class(name, options.out, initial, noise)
    if options.only in (None, "network"):
        write_network(options.out / "network")


if __name__ == "__main__":
    main()
