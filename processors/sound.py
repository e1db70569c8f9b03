"""Decodes sound to mono samples: soundfile first, FFmpeg for what it does not know and for the sound of a video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile

from mmrl.processors.probe import UnusableError, clock_start, open_container, reason
from mmrl.processors.sampling import clip_span
from mmrl.types import SAMPLE_RATE, TimeSpan

AUDIO_CODECS = (
    *("aac", "aac_latm", "mp3", "mp3float", "mp2", "mp2float", "mp1", "mp1float", "opus", "libopus", "vorbis"),
    *("libvorbis", "flac", "alac", "ac3", "eac3", "amrnb", "amrwb", "wmav1", "wmav2", "wmapro"),
    *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f32be"),
    *("pcm_f64le", "pcm_u8", "pcm_s8", "pcm_mulaw", "pcm_alaw", "adpcm_ima_wav", "adpcm_ms"),
)
BLOCK = 65_536
"""Samples that are read at a time."""
PREROLL_S = 1.0
"""Decoding starts so long before a span: the first packets after a seek are not exact."""
MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_TAPS = 16_000_000
"""Numbers in the filter that converts a sampling rate; odd rates need gigabytes of them."""
DRIFT_S = 0.05
"""Time stamps of sound may be off by so much, about two frames, before they count more than the samples."""
Blocks = Iterator[np.ndarray]


def read_sound(
    file: BinaryIO, span: TimeSpan | None, min_seconds: float, max_seconds: float
) -> tuple[np.ndarray, int, TimeSpan]:
    """(float32 samples, samples a second, the part that they cover), all channels averaged.

    Never more than `max_seconds` are decoded, whatever the header says.
    """
    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError:
        samples, rate, start = _read_container(file, span, max_seconds)
    else:
        with sound:
            samples, rate, start = _read_soundfile(sound, span, max_seconds)
    if not len(samples):
        raise UnusableError("holds no sound in this part")
    if len(samples) < min_seconds * rate:
        raise UnusableError(f"{len(samples) / rate:g} s is less than min_seconds = {min_seconds:g}")
    if not np.isfinite(samples).all():
        raise UnusableError("holds samples that are not finite numbers")
    return samples, rate, (start, start + len(samples) / rate)


def too_long(max_seconds: float) -> UnusableError:
    return UnusableError(f"lasts longer than max_seconds = {max_seconds:g}; give a span or raise it")


def check_rate(rate: int) -> int:
    """A sampling rate that can be converted; UnusableError for any other."""
    taps = rate * SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) ** 2
    if not (MIN_RATE <= rate <= MAX_RATE) or taps > MAX_TAPS:
        raise UnusableError(f"its sampling rate of {rate} Hz is not supported; convert the file to {SAMPLE_RATE} Hz")
    return rate


def _read_soundfile(sound: Any, span: TimeSpan | None, max_seconds: float) -> tuple[np.ndarray, int, float]:
    rate = check_rate(sound.samplerate)
    start, end = _clip(span, sound.frames / rate)
    if end - start > max_seconds:
        raise too_long(max_seconds)
    first, count = round(start * rate), round(end * rate) - round(start * rate)
    try:
        sound.seek(first)
        blocks = [block.mean(1) for block in sound.blocks(BLOCK, frames=count, dtype="float32", always_2d=True)]
    except soundfile.LibsndfileError as error:
        raise UnusableError(f"cannot be decoded ({error})") from None
    return np.concatenate([np.empty(0, np.float32), *blocks]), rate, first / rate


def _clip(span: TimeSpan | None, duration: float) -> TimeSpan:
    try:
        return clip_span(span, duration)
    except ValueError as error:
        raise UnusableError(str(error)) from None


def _read_container(file: BinaryIO, span: TimeSpan | None, max_seconds: float) -> tuple[np.ndarray, int, float]:
    with open_container(file) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise UnusableError("holds no sound")
        if stream.codec_context.name not in AUDIO_CODECS:
            raise UnusableError(f"codec {stream.codec_context.name} is not supported; convert the file to wav")
        stream.codec_context.options = {"err_detect": "explode"}
        try:
            return _cut(container, stream, span, max_seconds)
        except av.FFmpegError as error:
            raise UnusableError(f"cannot be decoded ({reason(error)})") from None


def _cut(container: Any, stream: Any, span: TimeSpan | None, max_seconds: float) -> tuple[np.ndarray, int, float]:
    rate, origin = check_rate(stream.codec_context.sample_rate), clock_start(container)
    start, end = span or (0.0, math.inf)
    if not start < end or end <= 0:
        raise UnusableError(f"the span {start:g}-{end:g} s is empty or outside")
    start = max(0.0, start)
    if start > PREROLL_S:
        container.seek(int((origin + start - PREROLL_S) / stream.time_base), stream=stream)
    first, stop = round(start * rate), end * rate
    parts: list[np.ndarray] = []
    filled, heard = first, False
    for position, samples in _positioned(container, stream, rate, origin):
        gap = max(0, int(min(position, stop)) - filled)
        part = samples[max(0, filled - position) : int(min(len(samples), max(0, stop - position)))]
        filled += gap + len(part)
        if filled - first > max_seconds * rate + 1:  # before anything is made for what a time stamp claims
            raise too_long(max_seconds)
        parts += [np.zeros(gap, np.float32), part]
        heard = heard or len(part) > 0
        if position >= stop:
            break
    return np.concatenate([np.empty(0, np.float32), *(parts if heard else [])]), rate, first / rate


def _positioned(container: Any, stream: Any, rate: int, origin: float) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first sample from the start of the file, mono samples) of each decoded frame.

    Samples count, since time stamps are rounded, until these say that some are missing or too many.
    """
    resampler = av.AudioResampler(format="fltp", rate=rate)
    position: int | None = None
    for frame in container.decode(stream):
        if frame.pts is not None:
            due = round((float(frame.pts * frame.time_base) - origin) * rate)
            if position is None or abs(due - position) > DRIFT_S * rate:
                position = due
        position = position or 0
        if frame.sample_rate != rate:
            raise UnusableError("changes its sampling rate; convert the file to one rate")
        for part in resampler.resample(frame):
            samples = part.to_ndarray().mean(0)
            yield position, samples
            position += len(samples)
