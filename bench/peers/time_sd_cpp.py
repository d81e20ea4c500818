"""Times a picture by stable-diffusion.cpp from the same diffusers directory, as JSON.

Its Python package builds from source: pip install stable-diffusion-cpp-python==0.4.7. A step is a guided one: with a negative
prompt the network is evaluated twice, one latent after the other, where tweedie evaluates both at once.
"""

import argparse
import json
import statistics
import time

from stable_diffusion_cpp import StableDiffusion


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a diffusers directory, or a single file")
    parser.add_argument("--prompt", default="a fox in the snow")
    parser.add_argument("--negative", default="blurry")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash-attention", action="store_true", help="attention without its scores in memory")
    parser.add_argument("--direct-convolution", action="store_true", help="convolutions without im2col")
    parser.add_argument("--out", help="where the picture goes, if anywhere")
    a = parser.parse_args()

    begin = time.perf_counter()
    model = StableDiffusion(
        model_path=a.model,
        n_threads=a.threads,
        diffusion_flash_attn=a.flash_attention,
        diffusion_conv_direct=a.direct_convolution,
        vae_conv_direct=a.direct_convolution,
        verbose=False,
    )
    loaded = time.perf_counter() - begin

    # (step, seconds since the last one), as the library counts them.
    steps = []

    def progress(step, steps_in_all, seconds):
        if steps_in_all == a.steps and step > 0:
            steps.append((step, seconds, time.perf_counter()))

    begin = time.perf_counter()
    pictures = model.generate_image(
        prompt=a.prompt,
        negative_prompt=a.negative,
        width=a.size,
        height=a.size,
        cfg_scale=a.guidance,
        sample_method="euler",
        sample_steps=a.steps,
        seed=0,
        progress_callback=progress,
    )
    total = time.perf_counter() - begin
    if a.out:
        pictures[0].save(a.out)
    times = [seconds for _, seconds, _ in steps]
    print(
        json.dumps(
            {
                "load_seconds": loaded,
                "picture_seconds": total,
                "before_first_step_ended": steps[0][2] - begin if steps else None,
                "step_seconds": times,
                "step_seconds_median": statistics.median(times) if times else None,
                "flash_attention": a.flash_attention,
                "direct_convolution": a.direct_convolution,
            }
        )
    )


if __name__ == "__main__":
    main()
