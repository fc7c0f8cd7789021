"""What an audio file's container declares, compared with the bytes that are there.

libsndfile shortens the audio of a truncated file without a word, or believes what a forged header says. Here each
container that a speech corpus comes in is looked at before it is decoded.
"""

from __future__ import annotations

import re
import struct

from mfhca_cache.errors import AudioError

#: No speech corpus lies outside these; a value beyond them is a damaged header.
SAMPLE_RATES = (4_000, 384_000)  # Hz
#: More chunks than this before the audio are no recorder's work.
_MAX_CHUNKS = 1_000
_UNSTATED = 0xFFFFFFFF
#: PCM, float, A-law, µ-law, and the extensible form of these: one block is one sample of each channel.
_PLAIN_WAVE = (1, 3, 6, 7, 0xFFFE)


def check_container(data: bytes) -> None:
    """Refuse a file whose header declares other audio than the file holds, and the usual impostors by name.

    Raises:
        AudioError: with ``reason`` one of not-audio, bad-header, truncated, no-frames.
    """
    _check_impostor(data)
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        _check_riff(data)
    elif data[:4] == b"riff":
        _check_w64(data)
    elif data[:4] == b"FORM":
        _check_aiff(data)
    elif data[:4] == b".snd":
        _check_au(data)
    elif data[:8] == b"NIST_1A\n":
        _check_sphere(data)
    elif data[:4] == b"OggS":
        _check_ogg(data)


def with_flac_frames(data: bytes, frames: int) -> bytes:
    """A FLAC file whose header declares so many frames a channel, whatever it held before."""
    # STREAMINFO comes first: 4 bytes of magic, 4 of block header, 10, then 28 bits of format and 36 bits of frames.
    fields = int.from_bytes(data[18:26], "big") >> 36 << 36
    return data[:18] + (fields | frames).to_bytes(8, "big") + data[26:]


def _check_impostor(data: bytes) -> None:
    """Name the usual impostors, which libsndfile only calls an unknown format."""
    head = data[:64].lstrip().lower()
    if data[:4] == b"\x00\x05\x16\x07":
        raise AudioError("not-audio", "an AppleDouble file (macOS metadata), not audio; delete it")
    if head.startswith(b"version https://git-lfs"):
        raise AudioError("not-audio", "a Git LFS pointer, not audio; run `git lfs pull` in the corpus")
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise AudioError("not-audio", "a web page, not audio; download the file again")


def _check_riff(data: bytes) -> None:
    """RIFF/WAVE and RF64. The usual tail chunks and odd padding are allowed; less audio than declared is not."""
    if len(data) < 12 or data[8:12] != b"WAVE":
        raise AudioError("bad-header", "starts as RIFF but is no WAVE file")
    order = ">" if data[:4] == b"RIFX" else "<"
    long_size = _rf64_data_size(data) if data[:4] == b"RF64" else None
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name = data[position : position + 4]
        size = struct.unpack_from(f"{order}I", data, position + 4)[0]
        body = position + 8
        if name == b"fmt " and body + 16 <= len(data):
            _check_format(*struct.unpack_from(f"{order}HHIIHH", data, body))
        if name == b"data":
            declared = long_size if long_size is not None and size == _UNSTATED else size
            _check_size(declared, len(data) - body)
            return
        position = body + size + (size & 1)
    raise AudioError("no-frames", "a WAVE header without a data chunk: no audio follows it")


def _check_format(tag: int, channels: int, rate: int, bytes_a_second: int, block: int, bits: int) -> None:
    """The fields of a WAVE header say the rate and the channels twice over; a forged one contradicts the others."""
    check_rate(rate)
    if tag not in _PLAIN_WAVE or not channels or not block:
        return  # Where libsndfile reads these at all, its own figures are checked.
    # Some recorders leave the bytes a second at 0.
    if bytes_a_second not in (0, rate * block):
        stated = f"{bytes_a_second:,} bytes a second in blocks of {block}"
        raise AudioError(
            "bad-header", f"got a sample rate of {rate:,} Hz, but {stated}, which is {bytes_a_second // block:,} Hz"
        )
    if block < channels * -(-bits // 8):
        raise AudioError("bad-header", f"got {channels} channels of {bits} bits in blocks of {block} bytes")


def check_rate(rate: int) -> None:
    """Refuse a sample rate that no speech was recorded at."""
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise AudioError("bad-header", f"got a sample rate of {rate} Hz; expected 4,000 to 384,000")


def _rf64_data_size(data: bytes) -> int | None:
    at = data.find(b"ds64", 12, 64)
    return struct.unpack_from("<Q", data, at + 16)[0] if at >= 0 and at + 24 <= len(data) else None


def _check_w64(data: bytes) -> None:
    """Sony Wave64: chunks named by 16 bytes, of 64-bit sizes that count their 24 bytes of header, at multiples of 8."""
    position = 40
    for _ in range(_MAX_CHUNKS):
        if position + 24 > len(data):
            break
        size = struct.unpack_from("<Q", data, position + 16)[0]
        if data[position : position + 4] == b"data":
            _check_size(max(0, size - 24), len(data) - position - 24)
            return
        position += max(24, -(-size // 8) * 8)
    raise AudioError("no-frames", "a Wave64 header without a data chunk: no audio follows it")


def _check_aiff(data: bytes) -> None:
    """AIFF and AIFC: as RIFF, but big-endian, and the audio's chunk begins with 8 bytes that are no audio."""
    if data[8:12] not in (b"AIFF", b"AIFC"):
        raise AudioError("not-audio", "starts as an IFF file but is no AIFF")
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        size = struct.unpack_from(">I", data, position + 4)[0]
        if data[position : position + 4] == b"SSND":
            _check_size(max(0, size - 8), len(data) - position - 16)
            return
        position += 8 + size + (size & 1)
    raise AudioError("no-frames", "an AIFF header without an SSND chunk: no audio follows it")


def _check_au(data: bytes) -> None:
    if len(data) < 24:
        raise AudioError("bad-header", "starts as AU but ends inside its header")
    offset, size = struct.unpack_from(">II", data, 4)
    if size != _UNSTATED:
        _check_size(size, len(data) - offset)


def _check_sphere(data: bytes) -> None:
    """NIST SPHERE: a text header, whose length is its second line, of ``name -i value`` lines."""
    head = data[:4096]
    length = re.match(rb"NIST_1A\n\s*(\d{1,6})\n", head)
    stated = [re.search(rb"\n%s -i (\d{1,12})\n" % key, head) for key in _SPHERE_SIZE]
    if length is None or any(found is None for found in stated):
        return  # libsndfile has its say.
    declared = 1
    for found in stated:
        declared *= int(found[1]) if found else 1
    _check_size(declared, len(data) - int(length[1]))


_SPHERE_SIZE = (b"sample_count", b"sample_n_bytes", b"channel_count")


def _check_ogg(data: bytes) -> None:
    """Ogg: the last page says that it is the last, and is there to its end."""
    at = data.rfind(b"OggS")
    segments = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
    whole = at + 27 <= len(data) and len(segments) == data[at + 26] and at + 27 + len(segments) + sum(segments)
    if not whole or whole > len(data) or not data[at + 5] & 4:
        raise AudioError("truncated", "the stream's last page is missing; copy the file again")


def _check_size(declared: int, available: int) -> None:
    if declared > available:
        unstated = " (or the program that wrote it never stated how much it wrote)" if declared == _UNSTATED else ""
        raise AudioError(
            "truncated",
            f"the header declares {declared:,} bytes of audio, the file has {max(0, available):,}; "
            f"copy the file again{unstated}",
        )
    if declared == 0:
        detail = f"{available:,} bytes follow a data size of 0" if available > 0 else "no audio follows the header"
        raise AudioError("no-frames", detail)
