"""PLACEHOLDER. It stands where the authors' repository belongs, so that this folder runs before you change a line.

Replace it by a checkout of the original code at a fixed commit, and let recorder.py run that. What it does: DDIM
sampling (arXiv 2010.02502, equation 12) of a network that predicts the noise, on 1000 linear betas.
"""

import torch

NUM_TIMESTEPS = 1000


def make_alphas_bar():
    betas = torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0).float()


def make_times(steps):
    return [i * (NUM_TIMESTEPS // steps) for i in reversed(range(steps))]


def sample(model, x, steps, eta=0.0):
    """model(x, t) -> noise, x: (B, C, H, W), t: (B,); returns x_0 and the predictions of x_0 on the way."""
    alphas_bar = make_alphas_bar()
    times = make_times(steps)
    predictions = []
    for i, t in enumerate(times):
        eps = model(x, torch.full((x.shape[0],), t))
        a = alphas_bar[t]
        a_next = alphas_bar[times[i + 1]] if i + 1 < steps else torch.ones_like(a)

        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        predictions.append(x0)

        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        x = a_next.sqrt() * x0 + (1 - a_next - sigma**2).sqrt() * eps
        if i + 1 < steps:
            x = x + sigma * torch.randn_like(x)
    return x, predictions
