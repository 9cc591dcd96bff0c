"""Encode to a size, a rate or a PSNR: settings are tried with the real coder until a real file is near enough.

What is searched is a number that grows by about 3 % with every quality step: the logarithm of the file's size, or of
the inverse squared error. First the quality index is found, by interpolation. Its steps are too coarse to come within
1 % of everything, so then some of the finest layers get the neighbouring quality, by their offsets: what that adds is
about their share of a whole step.

Nothing here imports torch before a picture is encoded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Real
from typing import TYPE_CHECKING

from .container import read_info
from .errors import TargetError, UsageError, verification
from .quality import LEVELS, MAX_OFFSET, is_whole, quality_of

if TYPE_CHECKING:
    from .codec import Codec
    from .picture import Picture

TOLERANCE = math.log(1.01)  # 1 % of the size, or of the squared error (0.04 dB)
QUALITY = 60  # where nothing else is asked for

# About what the shipped model does on photographs: the search starts from it, and then goes by what it finds.
_BPP_AT_0, _SIZE_SLOPE = 0.083, 0.030
_PSNR_AT_0, _PSNR_SLOPE = 26.8, 0.034
_ALONE = 1.2  # a layer that goes ahead alone grows by more than it does when the coarser ones go with it

# How many of the finest layers may differ from the others: the coarser ones then stay as they are, so that the effect
# can be foretold. A change of a coarse layer moves all finer ones by some tenths of a percent, one way or the other. So
# more of them are only taken where the quality steps are large, and what a few layers offer lies too far apart.
_SHIFTED = (4, 8)
_APART = 3  # qualities, of two trials that tell the slope: steps between neighbours are uneven
_PATIENCE = 6  # qualities tried by interpolation; then the interval is halved
_SHIFTS = 4  # trials with shifted layers
_REPEATS = 3  # encodings at an effort above 1
_USUAL_TRIALS = 5  # for the progress
_MOST = 10**12  # of what may be asked for: no picture has it
_MOST_DB = 200.0  # stands for infinite PSNR

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Target:
    """What a file shall reach: exactly one of the three. Raises UsageError where a number makes no sense.

    bpp: bits per pixel, of the whole file. size: bytes of the whole file. psnr: dB, of the decoded 8-bit RGB picture.
    strict: a size or rate is never exceeded, a PSNR never missed.
    """

    bpp: float | None = None
    size: int | None = None
    psnr: float | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.bpp, self.size, self.psnr)) != 1:
            raise UsageError("a target is exactly one of bpp, size and psnr")
        if self.size is not None and not (is_whole(self.size) and _is_positive(self.size)):
            raise UsageError(f"size must be a whole number of bytes from 1, not {self.size!r}")
        for name, kind in (("size", int), ("bpp", float), ("psnr", float)):
            value = getattr(self, name)
            if value is not None:
                if not _is_positive(value):
                    raise UsageError(f"{name} must be a positive number, not {value!r}")
                object.__setattr__(self, name, kind(value))  # numpy's numbers overflow


@dataclass(frozen=True)
class Reached:
    """An encoding that reaches a target, and how it came about; as `codec.Encoded`."""

    data: bytes
    picture: Picture | None  # the decoded picture where it was verified
    seconds: dict[str, float]  # of all encodings together
    encodings: int  # how many it took


def rate_of(
    quality: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    lmbda: float | None = None,
    strict: bool = False,
) -> int | Target:
    """The quality that at most one of these means, 60 if none is given, or the target to search for.

    lmbda: the Lagrange multiplier in bits per pixel + lmbda * MSE, the squared error on the 0..255 scale.
    Raises UsageError.
    """
    given = {"quality": quality, "bpp": bpp, "size": size, "psnr": psnr, "lambda": lmbda}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other; give one of them")
    if names and names[0] in ("bpp", "size", "psnr"):
        return Target(bpp, size, psnr, strict)
    if strict:
        raise UsageError("strict is for a target of bpp, size or psnr")
    if lmbda is not None:
        if not _is_positive(lmbda):
            raise UsageError(f"lambda must be a positive number, not {lmbda!r}")
        return quality_of(lmbda)
    return QUALITY if quality is None else quality


# --------------------------------------------------------------------------------------------------------------------
# The search, which knows nothing of pictures


@dataclass(frozen=True)
class Trial:
    """A setting that was tried, and what came of it."""

    quality: int
    shifts: tuple[int, ...]  # per layer, coarse to fine: its quality index is the global one - its offset + this
    value: float  # what is searched; grows with quality
    growth: tuple[float, ...]  # per layer: about what one quality step adds to the value through it, above 0
    shift_cost: float = 0.0  # what it adds to the value that there are any shifts: offsets take bytes


@dataclass(frozen=True)
class Goal:
    """Which values are wanted."""

    target: float
    lowest: float = -math.inf  # what strictness allows
    highest: float = math.inf

    @property
    def window(self) -> tuple[float, float]:
        """The values that end the search."""
        return max(self.lowest, self.target - TOLERANCE), min(self.highest, self.target + TOLERANCE)

    @property
    def aim(self) -> float:
        return sum(self.window) / 2

    def met(self, trial: Trial) -> bool:
        return self.window[0] <= trial.value <= self.window[1]

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The nearest of those that are allowed, if there are any."""
        allowed = [trial for trial in trials if self.lowest <= trial.value <= self.highest]
        return min(allowed, key=lambda trial: abs(trial.value - self.target), default=None)

    def moved(self, by: float) -> Goal:
        return Goal(self.target + by, self.lowest + by, self.highest + by)


def search(
    measure: Callable[[int, tuple[int, ...]], Trial],
    goal: Goal,
    offsets: Sequence[int],
    start: int,
    known: Sequence[Trial] = (),
) -> list[Trial]:
    """Measure settings, none twice, until one meets the goal or no better one is to be expected.

    measure: of a quality and the layers' shifts. offsets: quality offset per layer, coarse to fine, without shifts.
    start: the quality to begin with. known: trials that were made before.
    Returns all trials. If the target is beyond the values of all of them, it is beyond those of quality 0 or 100.
    """
    trials = list(known)
    while not any(map(goal.met, trials)):
        shifted = sum(any(trial.shifts) for trial in trials[len(known) :])
        setting = _next_setting(trials, goal, offsets, start, shifted < _SHIFTS)
        if setting is None:
            break
        trials.append(measure(*setting))
    return trials


def _next_setting(
    trials: Sequence[Trial], goal: Goal, offsets: Sequence[int], start: int, shifting: bool
) -> tuple[int, tuple[int, ...]] | None:
    """Quality and shifts to try next, or None."""
    unshifted = (0,) * len(offsets)
    plain = sorted((trial for trial in trials if not any(trial.shifts)), key=lambda trial: trial.quality)
    if not plain:
        return start, unshifted
    below, above = _bracket(plain, goal.aim)
    quality = _estimate(plain, below, above, goal.aim)
    if shifting and round(quality) in (trial.quality for trial in plain):
        setting = _shifted_setting(trials, plain, goal, offsets)
        if setting is not None:
            return setting
    first = 0 if below is None else below.quality + 1
    last = LEVELS - 1 if above is None else above.quality - 1
    if first > last:
        return None
    if len(plain) >= _PATIENCE:
        quality = first if below is None else last if above is None else (first + last) / 2
    return min(max(round(quality), first), last), unshifted


def _bracket(plain: Sequence[Trial], aim: float) -> tuple[Trial | None, Trial | None]:
    """The neighbours, nearest to each other, between which the value passes the aim; one is missing at the ends.

    plain: in the order of their qualities. Their values need not be: small pictures have plateaus and steps back.
    """
    pairs = [(a, b) for a, b in zip(plain, plain[1:], strict=False) if a.value <= aim < b.value]
    if pairs:
        return min(pairs, key=lambda pair: pair[1].quality - pair[0].quality)
    return (plain[-1], None) if plain[-1].value <= aim else (None, plain[0])


def _estimate(plain: Sequence[Trial], below: Trial | None, above: Trial | None, aim: float) -> float:
    """The quality, not a whole number, at which the aim is to be expected."""
    if below is not None and above is not None:
        share = (aim - below.value) / (above.value - below.value)
        return below.quality + share * (above.quality - below.quality)
    nearest = below or above
    return nearest.quality + (aim - nearest.value) / (_correction(plain, aim) * sum(nearest.growth))


def _correction(plain: Sequence[Trial], aim: float) -> float:
    """By what factor the value grows faster with quality than the trials' own estimates of that say."""
    nearest, *others = sorted(plain, key=lambda trial: abs(trial.value - aim))
    for other in others:
        steps = other.quality - nearest.quality
        if abs(steps) >= _APART:
            slope = (other.value - nearest.value) / steps
            return min(max(slope / sum(nearest.growth), 0.5), 2.0)
    return 1.0


def _shift_correction(trials: Sequence[Trial], plain: Sequence[Trial], aim: float) -> float:
    """The same factor for layers that are shifted: foreseen, and then more and more as they were found to behave."""
    bases = {trial.quality: trial for trial in plain}
    expected = sum(plain[0].growth) / 8  # so much weight has what is foreseen
    found = expected * _ALONE * _correction(plain, aim)
    for trial in trials:
        if any(trial.shifts):
            base = bases[trial.quality]
            way = max(trial.shifts) or -1
            expected += sum(abs(shift) * growth for shift, growth in zip(trial.shifts, base.growth, strict=True))
            found += way * (trial.value - base.value - base.shift_cost)
    return min(max(found / expected, 0.5), 4.0)


def _shifted_setting(
    trials: Sequence[Trial], plain: Sequence[Trial], goal: Goal, offsets: Sequence[int]
) -> tuple[int, tuple[int, ...]] | None:
    """The untried setting with shifts that is expected nearest to the aim, if it is to be better than what there is."""
    scale = _shift_correction(trials, plain, goal.aim)
    tried = {(trial.quality, trial.shifts) for trial in trials}
    found = []
    for count in _SHIFTED:
        for base in sorted(plain, key=lambda trial: abs(trial.value - goal.aim))[:4]:
            relatives = [trial for trial in trials if trial.quality == base.quality]
            for shifts in _all_shifts(base.quality, offsets, count):
                value = min((_expected(relative, shifts, scale) for relative in relatives), key=lambda pair: pair[0])[1]
                if goal.lowest <= value <= goal.highest and (base.quality, shifts) not in tried:
                    found.append((value, base.quality, shifts))
        value, quality, shifts = min(found, key=lambda one: abs(one[0] - goal.aim), default=(math.inf, 0, ()))
        if goal.window[0] <= value <= goal.window[1]:
            return quality, shifts
    best = goal.best(trials)
    better = math.isfinite(value) and (best is None or abs(value - goal.target) < abs(best.value - goal.target))
    return (quality, shifts) if better else None


def _expected(relative: Trial, shifts: tuple[int, ...], scale: float) -> tuple[float, float]:
    """How far in value a setting is from a trial of the same quality, and the value to be expected of it."""
    differences = (b - a for a, b in zip(relative.shifts, shifts, strict=True))
    change = scale * sum(d * growth for d, growth in zip(differences, relative.growth, strict=True))
    return abs(change), relative.value + change + relative.shift_cost * (any(shifts) - any(relative.shifts))


def _all_shifts(quality: int, offsets: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """All ways to have some of the `count` finest layers one quality higher, or lower, that a file can say."""
    count = min(count, len(offsets))
    for shift in (1, -1):
        free = []
        for offset in offsets[len(offsets) - count :]:
            level = quality - offset  # where it is cut off at 0 or 100, a shift changes nothing
            inside = 0 <= min(level, level + shift) and max(level, level + shift) < LEVELS
            free.append((0, shift) if inside and abs(offset - shift) <= MAX_OFFSET else (0,))
        for chosen in product(*free):
            if any(chosen):
                yield (0,) * (len(offsets) - count) + chosen


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def encode_to(
    codec: Codec,
    picture: Picture,
    target: Target,
    offsets: Sequence[int] | None = None,
    *,
    effort: int = 1,
    verify: bool = True,
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> Reached:
    """Compress a picture so that the whole file has a size or rate, or the decoded picture a PSNR, within 1 %.

    For a PSNR that is 1 % of the squared error, 0.04 dB. Of a small picture the sizes are far apart; then it is the
    nearest that was found, and with a strict target the nearest on the right side of it. It takes some 3 to 6
    encodings at effort 1, for a PSNR each with a decoding.

    offsets, memory_limit: as `Codec.encode` has them; the search starts from these offsets. effort: above 1 the setting
    is searched at effort 1, and searched again (up to twice) if the file that the greater effort then makes is not near
    enough. verify: decode the final bytes and compare the latents; done in any case for a PSNR and from effort 4 on.
    progress: told how many of about how many steps are done, from 0.
    Raises TargetError where the target is out of the range of this picture, and otherwise as `Codec.encode` does.
    """
    if effort != 1:
        from .effort import level_of

        level_of(effort)
    runs = _Runs(codec, picture, target, offsets, memory_limit, progress)
    goal, layers = runs.goal, runs.offsets or (0,) * codec.layers
    trials = search(runs.measure, goal, layers, runs.start)
    best = goal.best(trials)
    values = [trial.value for trial in trials]
    if best is None or not goal.met(best) and not min(values) <= goal.target <= max(values):
        raise TargetError(runs.out_of_range(trials))
    if effort != 1:
        best = goal.best([*_at_effort(runs, effort, goal, layers, trials, best), best])
    return runs.reached(best, verify)


def _at_effort(
    runs: _Runs, effort: int, goal: Goal, offsets: Sequence[int], trials: list[Trial], setting: Trial
) -> list[Trial]:
    """Encodings at an effort above 1, the last one meeting the goal if that can be had.

    trials: at effort 1. setting: the one of them to begin with. Effort makes a file larger or smaller by some
    percent, by about as much at the next setting: so the goal is moved by that.
    """
    made: list[Trial] = []
    done: set[Trial] = set()
    while setting not in done and len(done) < _REPEATS:
        done.add(setting)
        made.append(runs.measure(setting.quality, setting.shifts, effort))
        if goal.met(made[-1]):
            break
        moved = goal.moved(setting.value - made[-1].value)
        trials = search(runs.measure, moved, offsets, setting.quality, trials)
        setting = min(trials, key=lambda trial: abs(trial.value - moved.aim))
    return made


class _Runs:
    """Encodes one picture at one setting after another, and keeps the files."""

    def __init__(
        self,
        codec: Codec,
        picture: Picture,
        target: Target,
        offsets: Sequence[int] | None,
        memory_limit: int | None,
        progress: Progress | None,
    ):
        self.codec, self.picture, self.target = codec, picture, target
        self.offsets = None if offsets is None else tuple(offsets)
        self._memory_limit, self._progress = memory_limit, progress
        self._files: dict[Trial, bytes] = {}
        self._decoded: tuple[bytes, Picture | None] = b"", None  # the last file and its picture, if that is known
        self._seconds: dict[str, float] = {}
        self._encodings = 0
        self.pixels = picture.pixels.shape[0] * picture.pixels.shape[1]

    @property
    def goal(self) -> Goal:
        if self.target.psnr is not None:
            value = _value_of_psnr(self.target.psnr)
            return Goal(value, lowest=value if self.target.strict else -math.inf)
        value = math.log(self._bytes_wanted())
        return Goal(value, highest=value if self.target.strict else math.inf)

    @property
    def start(self) -> int:
        """A quality to begin with."""
        if self.target.psnr is not None:
            guess = _value_of_psnr(self.target.psnr - _PSNR_AT_0) / _PSNR_SLOPE
        else:
            guess = math.log(8 * self._bytes_wanted() / self.pixels / _BPP_AT_0) / _SIZE_SLOPE
        return min(max(round(guess), 0), LEVELS - 1)

    def _bytes_wanted(self) -> float:
        return self.target.size if self.target.size is not None else self.target.bpp * self.pixels / 8

    def measure(self, quality: int, shifts: tuple[int, ...], effort: int = 1) -> Trial:
        """Encode at a setting."""
        offsets = self.offsets
        if any(shifts):
            offsets = tuple(a - b for a, b in zip(offsets or (0,) * len(shifts), shifts, strict=True))
        encoded = self.codec.encode(
            self.picture,
            quality,
            offsets,
            effort=effort,
            verify=self.target.psnr is not None,
            memory_limit=self._memory_limit,
            progress=self._watched(),
        )
        self._encodings += 1
        for part, seconds in encoded.seconds.items():
            self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        trial = self._trial(quality, shifts, encoded.data, encoded.picture)
        self._files[trial] = encoded.data
        self._decoded = encoded.data, encoded.picture
        return trial

    def _trial(self, quality: int, shifts: tuple[int, ...], data: bytes, decoded: Picture | None) -> Trial:
        layer_bytes = read_info(data).layer_bytes
        if self.target.psnr is not None:
            from .metrics import psnr

            value = _value_of_psnr(min(psnr(self.picture.pixels, decoded.pixels), _MOST_DB))
            sizes = [max(size, 1) for size in layer_bytes]
            return Trial(quality, shifts, value, tuple(_PSNR_SLOPE * size / sum(sizes) for size in sizes))
        # Metadata and alpha count, but do not grow with quality.
        growth = tuple(_SIZE_SLOPE * max(size, 1) / len(data) for size in layer_bytes)
        given = self.offsets is not None and any(self.offsets)
        cost = 0.0 if given else math.log1p(len(layer_bytes) / len(data))
        return Trial(quality, shifts, math.log(len(data)), growth, cost)

    def _watched(self) -> Progress | None:
        """Progress of the next encoding, as a part of all."""
        if self._progress is None:
            return None
        before, total = self._encodings, max(_USUAL_TRIALS, self._encodings + 1)
        self._progress(before, total)
        return lambda done, parts: self._progress(before * parts + done, total * parts)

    def reached(self, trial: Trial, verify: bool) -> Reached:
        """The file of a trial, decoded and checked if that is wanted. Raises MismatchError."""
        data = self._files[trial]
        decoded = self._decoded[1] if data == self._decoded[0] else None
        checked = self.target.psnr is not None  # then each was
        if decoded is None and (verify or checked):
            began = time.perf_counter()
            with verification():
                decoded = self.codec.decode(data, memory_limit=self._memory_limit, progress=self._progress)
            self._seconds["verify_network"] = self._seconds.get("verify_network", 0.0) + time.perf_counter() - began
        return Reached(data, decoded, self._seconds, self._encodings)

    def out_of_range(self, trials: list[Trial]) -> str:
        """What to say of a target that cannot be reached."""
        tried = {trial.quality for trial in trials}
        unshifted = (0,) * self.codec.layers
        trials = trials + [self.measure(quality, unshifted) for quality in (0, LEVELS - 1) if quality not in tried]
        least, most = (pick(trials, key=lambda trial: trial.value) for pick in (min, max))
        if self.target.psnr is not None:
            decibels = [trial.value / _value_of_psnr(1.0) for trial in (least, most)]
            asked, possible = f"{self.target.psnr:g} dB", f"{decibels[0]:.2f} to {decibels[1]:.2f} dB"
        else:
            sizes = [len(self._files[trial]) for trial in (least, most)]
            if self.target.size is not None:
                asked, possible = f"{self.target.size:,} bytes", f"{sizes[0]:,} to {sizes[1]:,} bytes"
            else:
                rates = [8 * size / self.pixels for size in sizes]
                asked, possible = f"{self.target.bpp:g} bpp", f"{rates[0]:.4g} to {rates[1]:.4g} bpp"
        betas = ", with these betas" if self.offsets and any(self.offsets) else ""
        return f"{asked} cannot be reached: with model {self.codec.name}{betas} this picture can have {possible}"


def _value_of_psnr(decibels: float) -> float:
    """The natural logarithm of 255^2 / squared error."""
    return decibels * math.log(10) / 10


def _is_positive(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return 0 < float(value) <= _MOST
    except OverflowError:  # a whole number beyond what a float holds
        return False
