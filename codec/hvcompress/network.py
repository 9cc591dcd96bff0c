"""The hierarchical VAE: Encoder (bottom-up, posterior), TopDown (prior, exact), Synthesis (pixels).

    image x --Encoder--> features at 1/4 .. 1/64
    TopDown visits the latents z_1 (coarsest) .. z_L (finest):
        prior      p(z_l | z_<l): mean, scale, step        from the top-down feature h
        posterior  q(z_l | z_<l, x): mean                  from h and the encoder's feature
        z_l = mean_p + step * level / 2, with levels that quantize (mean_q - mean_p) / step (`trellis.py`)
        h   = h + project(z_l), then the residual blocks of the next layer
    Synthesis turns the last h into pixels.

TopDown is written once, as a generator that yields each prior and receives each latent (`TopDown.walk`), so training,
encoding, decoding and sampling run the very same lines. Once frozen, TopDown and Synthesis work on the integers of
`exact.py`, units of 2^-10; the Encoder stays in floating point, because no decoder depends on it. Features are
`Rows` (`rows.py`), made as they are asked for, so that a large picture goes through a few rows (`chunk`) at a time.

Shapes: B images, C channels, H x W pixels, both multiples of 64; a stride s means H/s x W/s positions.
Related work: QRes-VAE and QARV (Duan et al. 2023) for quantization-aware hierarchical VAEs with a rate control input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .exact import (
    ACTIVATION_BITS,
    TABLE_BITS,
    Conv2d,
    ExactConv2d,
    QualityTable,
    Snap,
    Unbounded,
    add,
    leaky,
    rounding_shift,
    scale_and_shift,
    to_values,
)
from .plan import MAX_STRIDE
from .quality import LAMBDA_MAX, LAMBDA_MIN
from .rows import Rows, cut, looking_further, through, upsampled
from .scales import LOG_SCALE_STEP, SCALE_LEVELS, SCALE_MIN

POSTERIOR_REACH = 1  # rows beyond its own that a posterior looks at
PIXEL_STRIDE = 4  # finest resolution at which the network works
PIXEL_SCALE = 4.0  # x in [0, 1] enters as (x - 1/2) * PIXEL_SCALE, i.e. one unit is 64 grey levels
DOWN_GAIN = 0.5  # initial gain of a downsampling: a flat area has the same value at every stride
BAND = 1 << 20  # values of a block's input that a CPU works on at a time, about
RAW_SCALE = 16  # scale indices per unit of the prior network's second output


@dataclass(frozen=True)
class Latent:
    """One latent layer: its stride, its channels, and the residual blocks of the top-down path before its prior."""

    stride: int
    channels: int
    blocks: int


@dataclass(frozen=True)
class Config:
    """Sizes of a network. Widths and blocks are given per stride 4, 8, 16, 32, 64."""

    widths: dict[int, int] = field(default_factory=lambda: {4: 80, 8: 160, 16: 256, 32: 256, 64: 192})
    encoder_blocks: dict[int, int] = field(default_factory=lambda: {4: 2, 8: 3, 16: 3, 32: 1, 64: 1})
    latents: tuple[Latent, ...] = (
        Latent(64, 32, 0),
        Latent(32, 32, 1),
        Latent(16, 48, 2),
        Latent(16, 48, 2),
        Latent(16, 48, 2),
        Latent(8, 16, 1),
        Latent(8, 24, 1),
        Latent(8, 32, 1),
    )
    synthesis_blocks: dict[int, int] = field(default_factory=lambda: {8: 2, 4: 3})
    knots: int = 9

    @staticmethod
    def from_dict(values: dict) -> Config:
        """From JSON or TOML, where keys of tables are strings."""

        def by_stride(table: dict) -> dict[int, int]:
            return {int(stride): int(value) for stride, value in table.items()}

        return Config(
            widths=by_stride(values["widths"]),
            encoder_blocks=by_stride(values["encoder_blocks"]),
            latents=tuple(Latent(**latent) for latent in values["latents"]),
            synthesis_blocks=by_stride(values["synthesis_blocks"]),
            knots=int(values["knots"]),
        )


@dataclass(frozen=True)
class Prior:
    """What is known of a latent, or of a band of h rows of it, before it is decoded. w is W/s.

    From a frozen path feature and mean are int16 and steps int32, in units; from any other all is in floating point.
    """

    layer: int  # 0 is the coarsest
    top: int  # its first row
    feature: Tensor  # (B, C, above + h + below, w) top-down feature, which the posterior also sees
    above: int  # rows of the feature that belong to the neighbouring bands
    below: int
    mean: Tensor  # (B, c, h, w)
    scale_index: Tensor  # (B, c, h, w) uint8, 0..SCALE_LEVELS-1, when exact, continuous in training
    step: Tensor  # (B, c, 1, 1) quantization step

    def inside(self, x: Tensor) -> Tensor:
        """(B, C, above + h + below, w) -> (B, C, h, w)."""
        return cut(x, self.above, x.shape[2] - self.below)


# --------------------------------------------------------------------------------------------------------------------
# Building blocks


def full_precision(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution outside autocast. The linear path from pixels to latents and back carries values of which
    bfloat16's 8 bits would lose more than a quantization step; only the insides of the residual blocks are spared it.
    """
    with torch.autocast(x.device.type, enabled=False):
        return conv(x.to(conv.weight.dtype) if x.is_floating_point() else x)


class Block(nn.Module):
    """Residual bottleneck: x + W3 act(gain_q * (W2 act(W1 x)) + shift_q), with W1, W3 1x1 and W2 3x3 at half width."""

    def __init__(self, channels: int, knots: int, snap: nn.Module):
        super().__init__()
        hidden = channels // 2
        self.reduce = ExactConv2d(channels, hidden)
        self.spatial = ExactConv2d(hidden, hidden, 3)
        self.expand = ExactConv2d(hidden, channels)
        self.gain = QualityTable(hidden, knots, start=1.0, limit=32.0)
        self.shift = QualityTable(hidden, knots)
        self.snap = snap
        nn.init.zeros_(self.expand.weight)  # every block starts as the identity
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor, quality: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """(B, C, h, w), (B,) -> rows first..last-1 of the result, (B, C, last - first, w); by default all of them."""
        gain, shift = self.gain(quality), self.shift(quality)
        height = x.shape[2]
        last = height if last is None else last
        rows = BAND // (x.numel() // height)
        if torch.is_grad_enabled() or x.device.type != "cpu" or rows >= last - first:
            return self._rows(x, gain, shift, first, last)
        # What is larger than the caches goes through in bands: memory that stays warm costs less than arithmetic.
        out = torch.empty_like(x[:, :, first:last])
        rows = max(rows, 4)
        for top in range(first, last, rows):
            bottom = min(top + rows, last)
            out[:, :, top - first : bottom - first] = self._rows(x, gain, shift, top, bottom)
        return out

    def _rows(self, x: Tensor, gain: Tensor, shift: Tensor, top: int, bottom: int) -> Tensor:
        """Rows top..bottom-1 of the result, which depend on one row more of x on either side."""
        snap = self.snap
        first = max(top - 1, 0)
        if self.spatial.runs_in_tiles(x):
            return self._tiles(x, gain, shift, (top, bottom, first, min(bottom + 1, x.shape[2])))
        y = snap(leaky(snap(self.reduce(x[:, :, first : bottom + 1]))))
        y = snap.bound(self.spatial(y)[:, :, top - first : bottom - first])
        y = snap(leaky(snap(scale_and_shift(y, gain, shift))))
        y = snap.bound(self.expand(y))
        if x.is_floating_point():
            y = y.to(x.dtype)  # torch adds mixed types slowly
        return snap(add(y, x[:, :, top:bottom]))

    def _tiles(self, x: Tensor, gain: Tensor, shift: Tensor, rows: tuple[int, int, int, int]) -> Tensor:
        """`_rows` of units on CUDA, in three kernels. gain, shift: (B, C/2, 1, 1), or (1, C/2, 1, 1) for all."""
        from .kernels.convolve import residual_block

        weights = (part.tile_weights for part in (self.reduce, self.spatial, self.expand))
        tables = (t.flatten(1).expand(len(x), -1).contiguous() for t in (gain, rounding_shift(shift)))
        return residual_block(x, *weights, *tables, TABLE_BITS, rows)


class Down(nn.Module):
    """Halve the resolution: pixel unshuffle, then 1x1."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.mix = ExactConv2d(4 * in_channels, out_channels).start_orthogonal(DOWN_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        return full_precision(self.mix, F.pixel_unshuffle(x, 2))


class Up(nn.Module):
    """Double the resolution: 1x1, then pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int, snap: nn.Module, *, wide: bool = False):
        super().__init__()
        self.mix = ExactConv2d(in_channels, 4 * out_channels, wide=wide).start_orthogonal(1 / DOWN_GAIN)
        self.snap = snap

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.snap(full_precision(self.mix, x)), 2)


# --------------------------------------------------------------------------------------------------------------------
# The three parts


class Posterior(nn.Module):
    """Mean of q(z_l | z_<l, x) from the top-down feature and the encoder's feature at the same stride."""

    def __init__(self, width: int, channels: int, knots: int):
        super().__init__()
        self.merge = Conv2d(2 * width, width, 1)
        self.block = Block(width, knots, Unbounded())
        self.mean = Conv2d(width, channels, 1).start_orthogonal()
        with torch.no_grad():  # start by listening to the encoder alone
            nn.init.zeros_(self.merge.bias)
            self.merge.weight.zero_()
            self.merge.weight[:, width:] = torch.eye(width)[:, :, None, None]

    def forward(self, feature: Tensor, encoded: Tensor, quality: Tensor) -> Tensor:
        merged = full_precision(self.merge, torch.cat((feature, encoded), 1))
        return full_precision(self.mean, self.block(merged, quality))  # (B, c, H/s, W/s)


class Encoder(nn.Module):
    """Bottom-up features and the posteriors that use them. Floating point; needed for encoding only."""

    def __init__(self, config: Config):
        super().__init__()
        widths, knots = config.widths, config.knots
        self.stem = Conv2d(3 * PIXEL_STRIDE**2, widths[PIXEL_STRIDE], 1).start_orthogonal()
        self.downs, self.stages = nn.ModuleDict(), nn.ModuleDict()
        self.strides, stride = [], PIXEL_STRIDE
        while True:
            self.strides.append(stride)
            blocks = [Block(widths[stride], knots, Unbounded()) for _ in range(config.encoder_blocks[stride])]
            self.stages[str(stride)] = nn.ModuleList(blocks)
            if stride == MAX_STRIDE:
                break
            self.downs[str(2 * stride)] = Down(widths[stride], widths[2 * stride])
            stride *= 2
        self.posteriors = nn.ModuleList(
            Posterior(widths[latent.stride], latent.channels, knots) for latent in config.latents
        )

    def forward(self, image: Tensor, quality: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) in [0, 1], (B,) -> features by stride, (B, C, H/s, W/s)."""
        features = self.features(Rows.whole(image), quality, self.strides)
        return {stride: rows.all() for stride, rows in features.items()}

    def features(
        self, image: Rows, quality: Tensor, kept: Collection[int], chunk: int | None = None
    ) -> dict[int, Rows]:
        """Features by stride, (B, C, H/s, W/s), which are made as they are asked for.

        kept: strides whose features are still wanted when the next coarser ones have been made of them.
        """
        features: dict[int, Rows] = {}
        finer = image
        for stride in self.strides:
            enter = self._stem if stride == PIXEL_STRIDE else self.downs[str(stride)]
            entered = _downsampled(enter, finer, image.height // stride, stride // 2 not in kept, chunk)
            features[stride] = finer = through(self.stages[str(stride)], entered, quality, chunk)
            finer.packed = stride in kept
        return features

    def _stem(self, image: Tensor) -> Tensor:
        """(B, 3, 4 h, 4 w) -> (B, C, h, w)."""
        return full_precision(self.stem, F.pixel_unshuffle((image - 0.5) * PIXEL_SCALE, PIXEL_STRIDE))


def _downsampled(down: Callable[[Tensor], Tensor], x: Rows, height: int, forget: bool, chunk: int | None) -> Rows:
    """A coarser map, of that height. forget: nobody else reads x."""
    factor = x.height // height

    def make(first: int, last: int) -> Tensor:
        finer = x.take(factor * first, factor * last)
        if forget:
            x.forget_above(factor * last)
        return down(finer)

    return Rows(height, make, chunk)


def log_step_start(stride: int, place: Tensor | float) -> Tensor | float:
    """Logarithm of the quantization step to start from; place runs from 0 (quality 0) to 1 (quality 100).

    High-resolution theory: with R = -1/2 log2 D per coefficient and D = step^2 / 12, the Lagrangian's minimum is at
    step = 5.09 / sqrt(lambda) grey levels for orthonormal coefficients; units shrink by DOWN_GAIN per halving.
    """
    log_lambda = math.log(LAMBDA_MIN) + place * math.log(LAMBDA_MAX / LAMBDA_MIN)
    units = math.log(PIXEL_SCALE / 255) + math.log2(stride / PIXEL_STRIDE) * math.log(DOWN_GAIN)
    return math.log(5.09) - 0.5 * log_lambda + units


class Step(QualityTable):
    """Quantization steps: the trained curve is their logarithm, the stored table the steps themselves."""

    def table(self) -> Tensor:
        return torch.exp(super().table()).clamp_min(2.0**-9)

    def forward(self, quality: Tensor) -> Tensor:
        rows = super().forward(quality)
        return rows if self.exact else torch.exp(rows)


class LatentLayer(nn.Module):
    """Prior of one latent, and what becomes of the top-down feature once the latent is known."""

    def __init__(self, latent: Latent, index: int, width: int, up: Up | None, knots: int, snap: nn.Module):
        super().__init__()
        self.index = index
        self.up = up
        self.blocks = nn.ModuleList(Block(width, knots, snap) for _ in range(latent.blocks))
        self.prior = ExactConv2d(width, 2 * latent.channels)
        self.project = ExactConv2d(latent.channels, width).start_orthogonal()
        self.snap = snap
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)
        places = torch.linspace(0.0, 1.0, knots)[:, None]
        log_step = log_step_start(latent.stride, places)  # (knots, 1)
        self.step = Step(latent.channels, knots, log_step, limit=32.0)
        # An index counts the logarithm of (deviation / step): as the step shrinks with quality, the index grows.
        log_ratio = log_step_start(latent.stride, 0.0) - log_step - math.log(SCALE_MIN)
        self.scale_shift = QualityTable(latent.channels, knots, log_ratio / LOG_SCALE_STEP)

    def enter(self, h: Rows, quality: Tensor, chunk: int | None) -> Rows:
        """The feature before the latent is known, from that after the latent before."""
        return through(self.blocks, h if self.up is None else upsampled(self.up, h, chunk), quality, chunk)

    def look(self, entered: Rows, top: int, bottom: int, quality: Tensor) -> Prior:
        """The prior p(z_l | z_<l) of rows top..bottom-1, which are looked at only once."""
        height = entered.height
        first, last = max(0, top - POSTERIOR_REACH), min(height, bottom + POSTERIOR_REACH)
        feature = entered.take(first, last)
        entered.forget_above(bottom - POSTERIOR_REACH if bottom < height else height)
        inside = cut(feature, top - first, bottom - first)
        mean, raw = self.snap(full_precision(self.prior, inside)).chunk(2, dim=1)
        index, step = self.scale_index(raw, self.scale_shift(quality)), self.step(quality)
        return Prior(self.index, top, feature, top - first, last - bottom, mean, index, step)

    def scale_index(self, raw: Tensor, shift: Tensor) -> Tensor:
        """RAW_SCALE * raw + shift; of units the index of a table. raw: (B, c, h, w); shift: (B, c, 1, 1)."""
        if raw.is_floating_point():
            return RAW_SCALE * raw + shift
        index = RAW_SCALE * raw.to(torch.int32) + (shift + (1 << TABLE_BITS - 1))
        return (index >> TABLE_BITS).clamp_(0, SCALE_LEVELS - 1).to(torch.uint8)

    def absorb(self, prior: Prior, z: Tensor) -> Tensor:
        """The feature (B, C, h, w) once the latent z (B, c, h, w) is known."""
        return self.snap(add(self.snap.bound(full_precision(self.project, z)), prior.inside(prior.feature)))


class TopDown(nn.Module):
    """The generative path down to the last latent. Exact once frozen."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.snap = Snap()
        self.start = nn.Parameter(torch.zeros(config.widths[MAX_STRIDE]))
        self.layers = nn.ModuleList()
        stride = MAX_STRIDE
        for index, latent in enumerate(config.latents):
            up = None
            if latent.stride != stride:
                up = Up(config.widths[stride], config.widths[latent.stride], self.snap)
            width = config.widths[latent.stride]
            self.layers.append(LatentLayer(latent, index, width, up, config.knots, self.snap))
            stride = latent.stride

    def walk(
        self,
        qualities: Tensor,
        height: int,
        width: int,
        steps: Sequence[tuple[int, int, int]] | None = None,
        last: Rows | None = None,
        chunk: int | None = None,
    ) -> Generator[Prior, Tensor, Rows]:
        """Visit the latents coarse to fine: yields each Prior, is sent each latent (B, c, h, w).

        qualities: (B, L) int64, the quality index of every layer. height, width: of the image, multiples of 64.
        steps: (layer, top, bottom), the rows to visit one after another, each layer's from top to bottom; what they
        depend on (`rows_before`) must have been visited. None: one layer after another, all rows at once.
        last: to which the feature after the last latent is added; rows of it may be forgotten. None: a new one.
        chunk: rows that are computed at a time between the latents; None: all that a step needs.
        Returns the feature (B, C, H/8, W/8) after the last latent, for the synthesis.
        """
        heights = [height // latent.stride for latent in self.config.latents]
        steps = steps or [(index, 0, rows) for index, rows in enumerate(heights)]
        start = self.start[None, :, None, None].expand(len(qualities), -1, height // MAX_STRIDE, width // MAX_STRIDE)
        after = [Rows(rows) for rows in heights]  # the feature after each latent
        after[-1] = after[-1] if last is None else last
        entered = [
            layer.enter(h, qualities[:, layer.index], chunk)
            for layer, h in zip(self.layers, (Rows.whole(start), *after), strict=False)
        ]
        for index, top, bottom in steps:
            layer = self.layers[index]
            prior = layer.look(entered[index], top, bottom, qualities[:, index])
            z = yield prior
            after[index].add(top, layer.absorb(prior, z))
        return after[-1]

    def rows_before(self, index: int, top: int, bottom: int, height: int) -> tuple[int, int]:
        """Which rows of the feature before a layer its prior of rows top..bottom-1, of `height`, depends on."""
        reach = len(self.layers[index].blocks) + POSTERIOR_REACH
        first, last = max(0, top - reach), min(height, bottom + reach)
        return (first, last) if self.layers[index].up is None else (first // 2, -(-last // 2))


class Synthesis(nn.Module):
    """From the last top-down feature to pixels. Exact once frozen."""

    def __init__(self, config: Config):
        super().__init__()
        stride, self.strides, self.snap = config.latents[-1].stride, [], Snap()
        self.ups, self.stages = nn.ModuleDict(), nn.ModuleDict()
        while True:
            self.strides.append(stride)
            blocks = [
                Block(config.widths[stride], config.knots, self.snap) for _ in range(config.synthesis_blocks[stride])
            ]
            self.stages[str(stride)] = nn.ModuleList(blocks)
            if stride == PIXEL_STRIDE:
                break
            self.ups[str(stride // 2)] = Up(config.widths[stride], config.widths[stride // 2], self.snap, wide=True)
            stride //= 2
        self.out = ExactConv2d(config.widths[PIXEL_STRIDE], 3 * PIXEL_STRIDE**2, 3, wide=True)
        self.out.start_orthogonal()  # as the 1x1 map that the encoder's stem starts as

    def forward(self, h: Tensor, quality: Tensor) -> Tensor:
        """(B, C, H/8, W/8), (B,) -> (B, 3, H, W), nominally in [0, 1], not clamped."""
        return pixels_of(self.patches(Rows.whole(h), quality).all())

    def patches(self, h: Rows, quality: Tensor, chunk: int | None = None) -> Rows:
        """The image as 4x4 patches, (B, 48, H/4, W/4), made as they are asked for. h: (B, C, H/8, W/8)."""
        x = h
        for stride in self.strides:
            entered = upsampled(self.ups[str(stride)], x, chunk) if str(stride) in self.ups else x
            x = through(self.stages[str(stride)], entered, quality, chunk)

        def compute(around: Tensor, first: int, last: int) -> Tensor:
            return self.snap(cut(full_precision(self.out, around), first, last))

        return looking_further(x, compute, chunk)

    def rows_before(self, first: int, last: int, height: int) -> tuple[int, int]:
        """Which rows of the last feature rows first..last-1, of `height`, at stride 4 depend on."""
        first, last, stride = max(0, first - 1), min(height, last + 1), PIXEL_STRIDE
        while True:
            reach = len(self.stages[str(stride)])
            first, last = max(0, first - reach), min(height, last + reach)
            if str(stride) not in self.ups:
                return first, last
            first, last, height, stride = first // 2, -(-last // 2), height // 2, 2 * stride


def pixels_of(patches: Tensor) -> Tensor:
    """(B, 48, h, w) -> (B, 3, 4 h, 4 w), nominally in [0, 1]."""
    return F.pixel_shuffle(to_values(patches), PIXEL_STRIDE) / PIXEL_SCALE + 0.5


def samples_of(patches: Tensor, white: int) -> Tensor:
    """(B, 48, h, w) in units -> (B, 3, 4 h, 4 w) int32, 0..white: `pixels_of` times `white`, rounded half up."""
    half = int(PIXEL_SCALE / 2) << ACTIVATION_BITS  # half of the range of a sample, in units
    units = F.pixel_shuffle(patches, PIXEL_STRIDE).clamp(-half, half).to(torch.int32)
    return (units * white + half * (white + 1)) >> ACTIVATION_BITS + 2  # log2 of 2 * half


class HierarchicalVAE(nn.Module):
    """The three parts together, as they are trained."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.topdown = TopDown(config)
        self.synthesis = Synthesis(config)


# --------------------------------------------------------------------------------------------------------------------
# Walking down


def descend(walk: Generator[Prior, Tensor, Rows], choose: Callable[[Prior], Tensor]) -> Rows:
    """Drive `TopDown.walk`: `choose` maps each prior to its latent. Returns the last feature."""
    try:
        prior = next(walk)
        while True:
            prior = walk.send(choose(prior))
    except StopIteration as stop:
        return stop.value


def dequantize(prior: Prior, levels: Tensor, snap: Snap) -> Tensor:
    """z = mean + step * level / 2, of units rounded half up. levels: (B, c, h, w), whole numbers of any type."""
    if prior.mean.is_floating_point():
        return snap(prior.mean + prior.step * (0.5 * levels))
    doubled = levels.to(torch.int32).mul(prior.step).add_(prior.mean, alpha=2)  # below 2^15 * 2^15 + 2^16
    return snap(doubled.add_(1).bitwise_right_shift_(1))


def scale_of(scale_index: Tensor) -> Tensor:
    """Standard deviation, in quantization steps, of a (possibly continuous) scale index."""
    return torch.exp(scale_index * LOG_SCALE_STEP + math.log(SCALE_MIN))


def count_parameters(parts: Sequence[nn.Module]) -> int:
    """Number of trained values in `parts`."""
    return sum(p.numel() for part in parts for p in part.parameters())
