"""The way down recorded as CUDA graphs: kernels that a CPU takes longer to launch than a GPU to run are launched layer
by layer, not one by one, once some pictures of a size have come by.

`TopDown.walk` runs once while the device records instead of working: its own lines, from one latent to the next, become
one graph. A graph reads and writes the very memory that it was recorded with, so a recording serves one picture at a
time. What it gives is compared with what the walk itself gives, once; where a device records nothing, or something
else, the walk goes on as it is.

Recording is a function: (work) -> (what work returned, a function that has the device do it again). With another in
place of CUDA's all of this runs without a GPU (`tests/test_graphs.py`).
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..network import Prior, TopDown, descend
from ..rows import Rows

Result = TypeVar("Result")
Replay = Callable[[], None]
Record = Callable[[Callable[[], Result]], tuple[Result, Replay]]
Size = tuple[int, int]  # height and width, multiples of 64

PATIENCE = 2  # pictures of a size that are walked as ever, before one is recorded
LARGEST = 1 << 22  # pixels of a picture that is recorded: larger ones give a device enough to do
KEPT = 1 << 24  # pixels of all recordings together; they take some 140 bytes each
SIZES = 256  # that are remembered as seen

_recording = threading.Lock()  # a device is waited for before it records, which must not be while it does
_failed: list[torch.cuda.CUDAGraph] = []  # torch's allocators, of a GPU's memory and of pinned, may refer to them


def cuda_recorder(device: torch.device) -> Record:
    """Records what is launched on a device. Graphs that it records share memory: they are replayed in their order."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(work: Callable[[], Result]) -> tuple[Result, Replay]:
        graph = torch.cuda.CUDAGraph()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.cuda.device(device))
            # Not in inference mode, in which the state of random generators, made now, could never be changed outside.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            # A recording that fails is left on its own stream: with this one goes back from there.
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream(device)))
            try:
                # thread_local: other threads may allocate memory meanwhile.
                with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                    result = work()
            except BaseException:
                _failed.append(graph)
                _end_recording(device, pool)
                raise
        return result, graph.replay

    return record


def _end_recording(device: torch.device, pool: tuple[int, int]) -> None:
    """After a failure: else torch's allocator, and its random generator, would go on as if it were recorded."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None) or torch._C._cuda_endAllocateCurrentStreamToPool  # < 2.8
    with contextlib.suppress(Exception):
        end(device.index, pool)
    with contextlib.suppress(Exception):  # the generator's state is put right by a recording that succeeds
        stream = torch.cuda.Stream(device)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            torch.zeros(1, device=device).add_(1)


class RecordedWalk:
    """`TopDown.walk` for pictures of one size, recorded."""

    def __init__(self, topdown: TopDown, size: Size, device: torch.device, record: Record):
        self.size = size
        self._qualities = torch.zeros(1, len(topdown.layers), dtype=torch.int64, device=device)
        self._layers: list[tuple[Prior, Replay, Tensor]] = []  # what is known of a latent, how to get there, the latent
        descend(topdown.walk(self._qualities, *size), lambda prior: prior.mean)  # what is set up at first use is, here
        walk = topdown.walk(self._qualities, *size)
        reached, replay = record(partial(next, walk))
        while isinstance(reached, Prior):
            z = torch.zeros_like(reached.mean)
            self._layers.append((reached, replay, z))
            reached, replay = record(partial(_sent, walk, z))
        self._feature, self._finish = reached, replay

    def walk(self, qualities: Tensor, last: Rows) -> Generator[Prior, Tensor, Rows]:
        """As `TopDown.walk`. What it yields is overwritten by its next picture."""
        self._qualities.copy_(qualities)
        for prior, replay, z in self._layers:
            replay()
            z.copy_((yield prior))
        self._finish()
        last.add(0, self._feature.clone())
        return last


def _sent(walk: Generator[Prior, Tensor, Rows], z: Tensor) -> Prior | Tensor:
    """The next prior, or the last feature."""
    try:
        return walk.send(z)
    except StopIteration as stop:
        return stop.value.all()


class RecordedWalks:
    """Recordings of `TopDown.walk`, as many at a time as there are pictures at a time. Threads may share it."""

    def __init__(self, topdown: TopDown, device: torch.device, recorder: Callable[[torch.device], Record]):
        self._topdown, self._device, self._recorder = topdown, device, recorder
        self._lock = threading.RLock()  # where memory is collected under it, `_used` may come to its end
        self._seen: OrderedDict[Size, int] = OrderedDict()  # the least recent first, as below
        self._idle: OrderedDict[Size, list[RecordedWalk]] = OrderedDict()
        self._pixels = 0  # of all recordings, those in use among them
        self.works = True

    def walk(self, qualities: Tensor, height: int, width: int, last: Rows) -> Generator[Prior, Tensor, Rows] | None:
        """The way down for a picture, all rows of a layer at once; None where it is not recorded.

        qualities: (1, L) int64. last: to which the last feature is added.
        """
        recorded = self._take((height, width))
        return None if recorded is None else self._used(recorded, qualities, last)

    def _used(self, recorded: RecordedWalk, qualities: Tensor, last: Rows) -> Generator[Prior, Tensor, Rows]:
        try:
            return (yield from recorded.walk(qualities, last))
        finally:  # also where the picture's file turns out to be damaged
            with self._lock:
                if self.works:
                    self._idle.setdefault(recorded.size, []).append(recorded)
                    self._idle.move_to_end(recorded.size)

    def _take(self, size: Size) -> RecordedWalk | None:
        """An idle recording, or a new one."""
        pixels = size[0] * size[1]
        if not self.works or pixels > LARGEST:
            return None
        with self._lock:
            seen = self._seen[size] = self._seen.pop(size, 0) + 1
            if len(self._seen) > SIZES:
                self._seen.popitem(last=False)
            if self._idle.get(size):
                return self._idle[size].pop()
            if seen <= PATIENCE or not self._make_room(pixels) or not _recording.acquire(blocking=False):
                return None
            self._pixels += pixels
        try:
            recorded = RecordedWalk(self._topdown, size, self._device, self._recorder(self._device))
            self.works = self._agrees(recorded)
        except RuntimeError:  # nothing can be recorded here, or there is no memory for it
            self.works = False
        finally:
            _recording.release()
        if not self.works:
            self.give_up()
            return None
        return recorded

    def count(self) -> int:
        """Recordings that are there, and not in use."""
        with self._lock:
            return sum(map(len, self._idle.values()))

    def give_up(self) -> None:
        """Give back the memory of all recordings that are not in use."""
        with self._lock:
            for size, idle in self._idle.items():
                self._pixels -= len(idle) * size[0] * size[1]
            self._idle.clear()

    def _make_room(self, pixels: int) -> bool:
        """Give up idle recordings of other sizes, those that were not in use for longest first, as far as necessary."""
        for other in list(self._idle):
            idle = self._idle[other]
            while self._pixels + pixels > KEPT and idle:
                idle.pop()
                self._pixels -= other[0] * other[1]
            if not idle:
                del self._idle[other]
        return self._pixels + pixels <= KEPT

    def _agrees(self, recorded: RecordedWalk) -> bool:
        """Whether a recording gives what the walk itself does, for latents far from zero."""
        qualities = torch.arange(len(self._topdown.layers), device=self._device)[None] + 40
        generator = torch.Generator().manual_seed(0)
        given: list[Tensor] = []

        def draw(prior: Prior) -> Tensor:
            given.append(torch.randint(-2000, 2000, prior.mean.shape, generator=generator).to(prior.mean))
            expected.extend((prior.feature, prior.mean, prior.scale_index, prior.step))
            return given[-1]

        def repeat(prior: Prior) -> Tensor:
            found.extend(x.clone() for x in (prior.feature, prior.mean, prior.scale_index, prior.step))
            return given[prior.layer]

        expected: list[Tensor] = []
        found: list[Tensor] = []
        expected.append(descend(self._topdown.walk(qualities, *recorded.size), draw).all())
        for _ in range(2):  # the second time over what the first has left
            found.clear()
            found.append(descend(recorded.walk(qualities, Rows(expected[-1].shape[2])), repeat).all())
            if not all(map(torch.equal, found, expected)):
                return False
        return True
