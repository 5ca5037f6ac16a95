"""A small network that has everything a contract looks at, and one broken on purpose for every contract."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffusers_ref.configuration import register_to_config
from diffusers_ref.modeling import ModelMixin
from diffusers_ref.models.embeddings import Timesteps
from diffusers_ref.outputs import BaseOutput

WIDTH = 4


@dataclass(eq=False)
class Output(BaseOutput):
    sample: Tensor


class SoundNetwork(ModelMixin):
    """Convolution, time, class, dropout, cross-attention to tokens under a mask, convolution."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 4,
        in_channels: int = 2,
        num_class_embeds: int = 3,
        cross_attention_dim: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, WIDTH, 3, padding=1)
        self.table = Timesteps(WIDTH, flip_sin_to_cos=True, freq_shift=0)
        self.time = nn.Linear(WIDTH, WIDTH)
        self.classes = nn.Embedding(num_class_embeds, WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.key_and_value = nn.Linear(cross_attention_dim, 2 * WIDTH)
        self.conv_out = nn.Conv2d(WIDTH, in_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        sample = self.prepare(sample)
        self.check(sample, encoder_hidden_states, class_labels)
        embedded = self.time(self.embed(timestep, sample)) + self.label(class_labels)
        h = F.silu(self.conv_in(sample) + embedded[:, :, None, None])
        h = h + self.attend(self.drop(h), encoder_hidden_states, encoder_attention_mask)
        return self.finish(self.conv_out(h), return_dict)

    def prepare(self, sample: Tensor) -> Tensor:
        return sample

    def check(self, sample: Tensor, tokens: Tensor, labels: Tensor | None) -> None:
        if labels is None or len(labels) != len(sample) or not 0 <= labels.min() <= labels.max() < 3:
            raise ValueError("class_labels: one in [0, 3) a sample")
        if len(tokens) != len(sample):
            raise ValueError("encoder_hidden_states: one sequence a sample")

    def embed(self, timestep: Tensor | float, sample: Tensor) -> Tensor:
        return self.table(torch.as_tensor(timestep).expand(len(sample))).to(sample.dtype)

    def label(self, labels: Tensor) -> Tensor:
        return self.classes(labels)

    def drop(self, h: Tensor) -> Tensor:
        return self.dropout(h)

    def attend(self, h: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        key, value = self.key_and_value(tokens).chunk(2, dim=-1)  # (B, tokens, WIDTH)
        logits = h.flatten(2).transpose(1, 2) @ key.transpose(1, 2)  # (B, HW, tokens)
        if mask is not None:
            logits = logits.masked_fill(~mask.bool()[:, None], -torch.inf)
        return (logits.softmax(-1) @ value).transpose(1, 2).reshape(h.shape)

    def finish(self, output: Tensor, return_dict: bool) -> Any:
        return Output(sample=output) if return_dict else (output,)


# --- one broken on purpose for every contract ------------------------------------------------------------------------


class NotANumber(SoundNetwork):
    def attend(self, h, tokens, mask):
        return super().attend(h, tokens, mask).log()


class NoisyInEvaluation(SoundNetwork):
    def drop(self, h):
        return h + 0.01 * torch.randn_like(h)


class WastefulDraw(SoundNetwork):
    def drop(self, h):
        torch.rand(())
        return h


class InPlace(SoundNetwork):
    def prepare(self, sample):
        return sample.mul_(2)


class MovingAverage(SoundNetwork):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("average", torch.zeros(()))

    def drop(self, h):
        self.average.lerp_(h.mean(), 0.1)
        return h


class DropoutAlways(SoundNetwork):
    def drop(self, h):
        return F.dropout(h, self.config.dropout, training=True)


class NoDropout(SoundNetwork):
    def drop(self, h):
        return h


class BatchStatistics(SoundNetwork):
    def drop(self, h):
        return h - h.mean(0, keepdim=True)


class FirstTimeForAll(SoundNetwork):
    def embed(self, timestep, sample):
        return super().embed(torch.as_tensor(timestep).reshape(-1)[:1], sample)


class PositionInBatch(SoundNetwork):
    def drop(self, h):
        return h + torch.arange(len(h)).reshape(-1, 1, 1, 1)


class AssumesContiguous(SoundNetwork):
    def prepare(self, sample):
        return sample.as_strided(sample.shape, torch.empty(sample.shape).stride())


class OtherTuple(SoundNetwork):
    def finish(self, output, return_dict):
        return Output(sample=output) if return_dict else (2 * output,)


class SharedByCopies(SoundNetwork):
    def __deepcopy__(self, memo):
        twin = type(self)()
        twin._modules = self._modules
        return twin


class NoClasses(SoundNetwork):
    def label(self, labels):
        return self.classes(torch.zeros_like(labels))


class IntegerTimes(SoundNetwork):
    def embed(self, timestep, sample):
        return super().embed(torch.as_tensor(timestep).long(), sample)


class OtherTimeAsNumber(SoundNetwork):
    def embed(self, timestep, sample):
        return super().embed(timestep if isinstance(timestep, Tensor) else timestep + 1, sample)


class DeadLayer(SoundNetwork):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.skip = nn.Linear(WIDTH, WIDTH)

    def drop(self, h):
        return h + 0 * self.skip(h.mean((2, 3)))[:, :, None, None]


class Detached(SoundNetwork):
    def attend(self, h, tokens, mask):
        return super().attend(h, tokens.detach(), mask)


class MaskOnTheTokens(SoundNetwork):
    """Masked tokens become zeros, and still get their share of the attention."""

    def attend(self, h, tokens, mask):
        return super().attend(h, tokens if mask is None else tokens * mask[..., None], None)


class MaskDropped(SoundNetwork):
    def attend(self, h, tokens, mask):
        return super().attend(h, tokens, None)


class Float32Output(SoundNetwork):
    def finish(self, output, return_dict):
        return super().finish(output.float(), return_dict)


class TimeInHalf(SoundNetwork):
    def embed(self, timestep, sample):
        return super().embed(torch.as_tensor(timestep).to(sample.dtype), sample)


class CoarseInHalf(SoundNetwork):
    def drop(self, h):
        return h if h.dtype.itemsize > 2 else (2 * h).round() / 2


class TableInHalf(SoundNetwork):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("frequencies", self.table.frequencies.clone(), persistent=False)

    def embed(self, timestep, sample):
        self.table.frequencies = self.frequencies.float()
        return super().embed(timestep, sample)


class FixedSize(SoundNetwork):
    def finish(self, output, return_dict):
        return super().finish(output[..., : self.config.sample_size, : self.config.sample_size], return_dict)


class EvenSizes(SoundNetwork):
    def finish(self, output, return_dict):
        return super().finish(F.interpolate(F.avg_pool2d(output, 2), scale_factor=2.0), return_dict)


class TakesAnything(SoundNetwork):
    def prepare(self, sample):
        return sample[:, : self.config.in_channels]


class UncheckedLabels(SoundNetwork):
    def check(self, sample, tokens, labels):
        pass

    def label(self, labels):
        return super().label(labels.clamp(0, 2))


class SavedInHalf(SoundNetwork):
    def save_pretrained(self, folder: Any, **options: Any) -> None:
        ModelMixin.save_pretrained(copy.deepcopy(self).half(), folder, **options)


class ForgottenOption(SoundNetwork):
    scale = 1.0

    def finish(self, output, return_dict):
        return super().finish(self.scale * output, return_dict)

    @classmethod
    def scaled(cls) -> ForgottenOption:
        network = cls()
        network.scale = 0.5
        return network


class LenientLoading(SoundNetwork):
    """Loads what fits by name, broadcasts what does not fit by shape, and ignores the rest."""

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Any:
        network = cls()
        state = load_file(next(Path(folder).glob("*.safetensors")))
        for name, parameter in network.named_parameters():
            if name in state:
                parameter.data.copy_(state[name])
        return network


BROKEN: dict[str, list[tuple[Callable[[], nn.Module], str]]] = {
    "evaluates": [(NotANumber, "NaN")],
    "evaluation_repeats": [(NoisyInEvaluation, "second evaluation")],
    "evaluation_draws_nothing": [(WastefulDraw, "global generator")],
    "inputs_stay_unchanged": [(InPlace, "sample after the evaluation")],
    "evaluation_keeps_the_network": [(MovingAverage, "average after an evaluation")],
    "dropout_is_off_in_evaluation": [(DropoutAlways, "made with dropout=0.5"), (NoDropout, "changed nothing")],
    "batch_equals_singles": [(BatchStatistics, "sample 0 in a batch of 2"), (FirstTimeForAll, "sample 1 in a batch")],
    "permuting_the_batch_permutes_the_output": [(PositionInBatch, "the permuted batch")],
    "memory_layout_does_not_matter": [(AssumesContiguous, "strided sample")],
    "tuple_and_record_agree": [(OtherTuple, "the tuple's tensor")],
    "copies_are_independent": [(SharedByCopies, "weights changed")],
    "every_input_matters": [(NoClasses, "another class_labels changed nothing")],
    "fractional_times_matter": [(IntegerTimes, "half a step")],
    "forms_of_a_time_agree": [(OtherTimeAsNumber, "timestep as a float")],
    "every_parameter_matters": [(DeadLayer, "skip.weight, skip.bias")],
    "gradients_reach_the_inputs": [(Detached, "no gradient reaches encoder_hidden_states")],
    "masked_tokens_do_not_matter": [(MaskOnTheTokens, "without the masked tokens"), (MaskDropped, "masked tokens")],
    "attention_masks_matter": [(MaskDropped, "changed nothing")],
    "dtype_and_device_are_kept": [(Float32Output, "returns torch.float32")],
    "half_precision_is_close": [(CoarseInHalf, "its rounding explains")],
    "half_precision_keeps_times_apart": [(TimeInHalf, "a torch.float16 network gives the same output at the times")],
    "half_precision_leaves_tables_alone": [(TableInHalf, "torch.float16 and back")],
    "output_shape_follows_the_input": [(FixedSize, r"output of shape \(2, 2, 4, 4\) instead of \(2, 2, 8, 4\)")],
    "odd_sizes_are_right_or_refused": [(EvenSizes, r"a sample of \(5, 4\) gave an output of \(4, 4\)")],
    "misfitting_inputs_raise": [(TakesAnything, "channel too many was accepted"), (UncheckedLabels, "negative class")],
    "save_and_load_keep_every_bit": [(SavedInHalf, "after loading")],
    "config_round_trip_keeps_the_network": [(ForgottenOption.scaled, "made from the configuration")],
    "missing_weights_raise": [(LenientLoading, "missing from the file")],
    "unused_weights_raise": [(LenientLoading, "an unknown not_a_layer.weight")],
    "misshapen_weights_raise": [(LenientLoading, r"of shape \(1,\) instead of")],
}
"""Contract -> networks that break it, each with what the reason must say."""
