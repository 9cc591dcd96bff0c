"""VMAF and PSNR-HVS, which weigh errors as people see them, by the libvmaf of the ffmpeg in the package imageio-ffmpeg.

VMAF (Li et al. 2016) is the model vmaf_v0.6.1neg, which gives nothing for sharpening; 97.4 is its best for a single
picture, since nothing moves. PSNR-HVS (Egiazarian et al. 2006), in dB, weighs errors by frequency, and luma 8 times as
much as either chroma.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

MODEL = "vmaf_v0.6.1neg"
SMALLEST = 64  # side of a picture that VMAF is asked about
BEST_PSNR_HVS = 100.0  # of equal pictures, for which there is no finite one
# 10 bits, so that the conversion's own rounding does not count, and full chroma.
TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,format=yuv444p10le"


@lru_cache
def ffmpeg() -> str | None:
    """The program, if it is there and has libvmaf."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        program = get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # no package, or no program for this machine
        return None
    gray = np.full((SMALLEST, SMALLEST, 3), 128, np.uint8)
    try:
        _measured(program, gray, gray)
    except (OSError, subprocess.CalledProcessError):  # it has no libvmaf, or one without the model
        return None
    return program


def library() -> str:
    """What `looks` measures with."""
    return "no libvmaf" if ffmpeg() is None else f"imageio-ffmpeg {version('imageio-ffmpeg')}"


def looks(pixels: np.ndarray, decoded: np.ndarray) -> dict[str, float | None]:
    """vmaf (0..100) and psnr_hvs (dB) of two (H, W, 3) uint8 pictures; None without libvmaf, or for a side under 64."""
    program = ffmpeg()
    if program is None or min(pixels.shape[:2]) < SMALLEST:
        return {"vmaf": None, "psnr_hvs": None}
    return _measured(program, pixels, decoded)


def _measured(program: str, pixels: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
    height, width, _ = pixels.shape
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-hide_banner", "-loglevel", "error", "-filter_complex_threads", "1"]
        for name, picture in (("decoded", decoded), ("original", pixels)):
            Path(folder, name).write_bytes(picture.tobytes())
            command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", name]
        measured = f"libvmaf=model=version={MODEL}:feature=name=psnr_hvs:log_fmt=json:log_path=log.json:n_threads=1"
        command += ["-lavfi", f"[0:v]{TO_YUV}[d];[1:v]{TO_YUV}[o];[d][o]{measured}", "-f", "null", "-"]
        subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        found = json.loads(Path(folder, "log.json").read_text())["frames"][0]["metrics"]
    hvs = found["psnr_hvs"]
    return {"vmaf": found["vmaf"], "psnr_hvs": BEST_PSNR_HVS if hvs is None else min(hvs, BEST_PSNR_HVS)}
