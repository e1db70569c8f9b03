"""Makes the media that tests are about: every frame of a video shows its own number.

The number is drawn as black and white columns, upright in the upper half and inverted in the lower, so that it
survives lossy coding and scaling, and a picture that is half one frame and half another cannot be read.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 12
WIDTH, HEIGHT = 192, 128


def draw_number(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """H x W x 3 uint8 picture of a number below 2 ** BITS."""
    bits = np.array([number >> bit & 1 for bit in range(BITS)], dtype=np.uint8)
    row = np.repeat(bits * 220 + 16, width // BITS)
    row = np.pad(row, (0, width - len(row)))
    upper = np.broadcast_to(row, (height // 2, width))
    lower = np.broadcast_to(252 - row, (height - height // 2, width))
    return np.ascontiguousarray(np.concatenate([upper, lower])[:, :, None].repeat(3, 2))


def read_number(picture: np.ndarray) -> int:
    """The number that a picture shows; ValueError where it is not clear."""
    height, width = picture.shape[:2]
    grey = picture.astype(float).mean(2)
    columns = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    upper, lower = (grey[int(height * part), columns] for part in (0.25, 0.75))
    if np.abs(upper - 126).min() < 50 or np.abs(lower - 126).min() < 50 or ((upper > 126) == (lower > 126)).any():
        raise ValueError(f"no number: {upper.round()} over {lower.round()}")
    return sum(int(bit) << place for place, bit in enumerate(upper > 126))


def write_video(
    file: str | Path | io.IOBase,
    *,
    numbers: Sequence[int] = tuple(range(60)),
    times_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    container: str = "mp4",
    codec: str = "libx264",
    rotation: int = 0,
    audio: bool = False,
    wave: np.ndarray | None = None,
    sound_ms: int = 0,
    gop: int = 10,
    options: dict[str, str] | None = None,
) -> None:
    """A video of numbered frames, 20 a second or at `times_ms`; B-frames where the codec has them.

    Args:
        audio: with sound: `wave`, mono at 16 kHz, or a tone.
        sound_ms: when the sound starts.
    """
    times_ms = times_ms or [50 * n for n in range(len(numbers))]
    target = str(file) if isinstance(file, Path) else file
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=20, options={"g": str(gop), **(options or {})})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream("aac", rate=16000, layout="mono") if audio else None
        for number, time in zip(numbers, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(draw_number(number, *size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound:
            _write_wave(output, sound, tone(times_ms[-1] / 1000 + 0.05) if wave is None else wave, 16 * sound_ms)


def tone(seconds: float) -> np.ndarray:
    """440 Hz at 16 kHz."""
    return (np.sin(2 * np.pi * 440 * np.arange(int(16000 * seconds)) / 16000) * 0.5).astype(np.float32)


def _write_wave(output: av.container.OutputContainer, stream: av.AudioStream, wave: np.ndarray, first: int = 0) -> None:
    for start in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, first + start, Fraction(1, 16000)
        output.mux(stream.encode(frame))
    output.mux(stream.encode())


class Unseekable(io.RawIOBase):
    """Takes bytes and cannot go back, as a pipe does: what is written to it has no index and no duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data)
        return len(data)


def packet_places(path: Path) -> list[tuple[int, int]]:
    """(offset, size) of each video packet in the file, in order of decoding."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def claim_duration(data: bytes, seconds: int) -> bytes:
    """An mp4 whose headers claim another duration (version 0 mvhd, tkhd and mdhd boxes)."""
    out = bytearray(data)
    timescale = 1000
    for name, skip, has_scale in ((b"mvhd", 12, True), (b"tkhd", 20, False), (b"mdhd", 12, True)):
        at = out.find(name)
        while at >= 0:
            place = at + 4 + skip
            if has_scale:
                (timescale,) = struct.unpack(">I", out[place : place + 4])
                place += 4
            else:
                (timescale,) = struct.unpack(">I", out[out.find(b"mvhd") + 16 :][:4])
            out[place : place + 4] = struct.pack(">I", min(seconds * timescale, 2**32 - 1))
            at = out.find(name, at + 4)
    return bytes(out)


def claim_duration_mkv(data: bytes, seconds: int) -> bytes:
    """A Matroska file whose header claims another duration, in milliseconds as a 64-bit float."""
    at = data.find(b"\x44\x89\x88")
    return data[: at + 3] + struct.pack(">d", seconds * 1000.0) + data[at + 11 :]


def without_rate(data: bytes) -> bytes:
    """A Matroska file whose video track says nothing of a frame rate: its DefaultDuration becomes a Void element."""
    at = data.find(b"\x23\xe3\x83")  # DefaultDuration, a 3-byte id
    size = data[at + 3] & 0x7F
    return data[:at] + b"\xec" + bytes([0x80 | (size + 2)]) + bytes(size + 2) + data[at + 4 + size :]


def write_sound_in_pieces(path: Path, pieces: Sequence[tuple[float, np.ndarray]], packet: int = 1600) -> None:
    """A Matroska file with PCM of 16 kHz: (second at which it starts, samples) of each piece, in packets."""
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("pcm_f32le", rate=16000, layout="mono")
        for start, wave in pieces:
            for number in range(0, len(wave), packet):
                part = wave[None, number : number + packet]
                frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16000, round(start * 16000) + number, Fraction(1, 16000)
                output.mux(stream.encode(frame))
        output.mux(stream.encode())


def write_sound(path: Path, seconds: float = 1.0, container: str = "mp4") -> None:
    """A file with nothing but a 440 Hz tone of AAC."""
    with av.open(str(path), "w", format=container) as output:
        _write_wave(output, output.add_stream("aac", rate=16000, layout="mono"), tone(seconds))
