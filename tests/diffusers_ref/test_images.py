from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_ref.images import PixelRounding, postprocess, to_integers, to_pil, to_unit_range

# Every 16-bit-ish value around the borders between integers, in [-1, 1] and a bit beyond.
SAMPLE = torch.linspace(-1.1, 1.1, 3 * 64 * 64, dtype=torch.float32).reshape(1, 3, 64, 64)
HALVES = torch.tensor([0.5, 1.5, 2.5, 253.5, 254.5]) / 255


def torchvision_save_image(x):
    """ermongroup/ddim and luping-liu/PNDM: inverse_data_transform, then torchvision.utils.save_image."""
    x = torch.clamp((x + 1.0) / 2.0, 0.0, 1.0)
    return x.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def openai_image_sample(x):
    """openai/improved-diffusion, scripts/image_sample.py."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def huggingface_numpy_to_pil(x):
    x = (x / 2 + 0.5).clamp(0, 1).numpy()
    return torch.from_numpy((x * 255).round().astype("uint8"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rounding", "original"),
    [("round", torchvision_save_image), ("truncate", openai_image_sample), ("half_even", huggingface_numpy_to_pil)],
)
def test_integers_equal_the_originals(rounding, original, dtype):
    sample = torch.cat([SAMPLE.to(dtype).flatten(), 2 * HALVES.to(dtype) - 1])
    assert torch.equal(to_integers(to_unit_range(sample), rounding), original(sample))


def test_the_conventions_differ_where_they_should():
    halves = torch.tensor([0.5, 1.5, 2.25, 2.75], dtype=torch.float64) / 255
    assert to_integers(halves, "half_even").tolist() == [0, 2, 2, 3]
    assert to_integers(halves, "round").tolist() == [1, 2, 2, 3]
    assert to_integers(halves, PixelRounding.TRUNCATE).tolist() == [0, 1, 2, 2]


def test_half_precision_is_quantised_in_float32():
    pixels = torch.tensor([0.4], dtype=torch.float16)
    assert to_integers(pixels, "truncate").item() == int(255 * pixels.float().item())


def test_output_types():
    sample = SAMPLE.expand(2, -1, -1, -1)
    for output_type in ("latent", "raw"):
        assert postprocess(sample, output_type, "round") is sample
    tensor = postprocess(sample, "pt", "round")
    assert tensor.shape == (2, 3, 64, 64) and tensor.min() == 0 and tensor.max() == 1
    array = postprocess(sample.half(), "np", "round")
    assert array.shape == (2, 64, 64, 3) and array.dtype == np.float32
    images = postprocess(sample, "pil", "round")
    assert [image.size for image in images] == [(64, 64)] * 2
    np.testing.assert_array_equal(np.asarray(images[1]), to_integers(tensor[1], "round").permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels_of_pil_images(channels, mode):
    (image,) = to_pil(torch.rand(1, channels, 4, 6), "round")
    assert image.mode == mode and image.size == (6, 4)


def test_bad_input():
    with pytest.raises(ValueError, match=r"images of 2 channels are not PIL images"):
        to_pil(torch.rand(1, 2, 4, 4), "round")
    with pytest.raises(ValueError, match="output_type is 'jpeg'; allowed: pil, np, pt, latent, raw"):
        postprocess(SAMPLE, "jpeg", "round")
    with pytest.raises(ValueError, match="pixel_rounding is 'floor'; allowed: half_even, round, truncate"):
        to_integers(SAMPLE, "floor")
