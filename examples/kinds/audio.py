"""Sound and its class: a .wav and a .cls. Workers decode the samples of the wave, the device makes the spectrogram."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rhostream

RATE, SIDE = 8000, 64  # values a second; of the spectrogram, bins and frames
WINDOW = HOP = 2 * (SIDE - 1)  # 64 bins of 126 values, and 64 windows in a second


class Sounds(rhostream.Kind):
    """One second of one channel of 16 bits, 8,000 values a second; what is shorter ends in silence."""

    members = {"sound": ("wav",)}
    pictures = True  # a spectrogram is one: networks for pictures take it, and --augment shift moves it in time

    def fields(self, view: Any = None) -> Mapping[str, rhostream.FieldSpec]:
        """The wave, -1 to 1."""
        return {"wave": rhostream.FieldSpec((RATE,), "float32")}

    def decode(self, members: Mapping[str, bytes], out: dict[str, Any], view: Any = None, rng: Any = None) -> str:
        """Its first second."""
        with wave.open(io.BytesIO(members["sound"])) as sound:
            if (sound.getframerate(), sound.getsampwidth(), sound.getnchannels()) != (RATE, 2, 1):
                return f"{sound.getnchannels()} channels of {sound.getframerate()} values a second"
            values = np.frombuffer(sound.readframes(RATE), "<i2")
        if not len(values):
            return "silence of no length"
        out["wave"][: len(values)] = values / 32768
        return "ok"

    def inputs(self, fields: Any) -> Tensor:
        """The logarithm of the power spectrum, (n, 1, 64 bins, 64 frames), about -1 to 1."""
        wave = fields["wave"]
        window = torch.hann_window(WINDOW, device=wave.device)
        spectrum = torch.stft(wave, WINDOW, HOP, window=window, return_complex=True)  # (n, bins, frames)
        return (spectrum.abs().square() + 1e-6).log10()[:, None] / 6

    def model_arguments(self, view: Any = None) -> dict[str, Any]:
        """As a grey picture, so that built-in networks are made for it."""
        return {"image_size": SIDE, "channels": 1}
