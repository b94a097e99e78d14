"""Batches drawn by worker processes, handed to the trainer on its device.

Drawing takes longer than learning from what is drawn. On a CPU the trainer waits for each batch, so that a run can be
repeated. On a GPU all batches stay in its memory, and while no new one has come, an old one is taken once more, its
pictures changed a little (`varied`).

Batches travel as plain arrays through pipes: shared memory may be small where a trainer runs.
"""

import contextlib
import multiprocessing
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

DEPTH = 3  # batches that each worker draws ahead
ENOUGH = 200  # old batches there must be before one of them is taken again
KEPT_BYTES = 40e9  # of the GPU's memory


def packed(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A batch in the smallest types that hold it: int16 or int32, float16, uint8."""
    small = {}
    for name, tensor in batch.items():
        array = tensor.numpy()
        if array.dtype == np.int64:
            array = array.astype(np.int16 if np.abs(array).max(initial=0) < 2**15 else np.int32)
        elif array.dtype == np.float32:
            array = array.astype(np.float16)
        small[name] = array
    return small


def unpacked(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as `data.Batches` made it."""
    wide = {torch.int16: torch.int64, torch.int32: torch.int64, torch.float16: torch.float32}
    return {name: tensor.to(wide.get(tensor.dtype, tensor.dtype)) for name, tensor in batch.items()}


def varied(pixels: torch.Tensor) -> torch.Tensor:
    """Pictures as another camera or another hand might show them; what is where and of which color stays.

    Each is moved by a pixel or two at most and made a little larger or smaller; most get another contrast, are blurred
    or sharpened, and get noise; some get dark lines where their brightness changes.

    Args:
        pixels: uint8 [N, 3, H, W].

    Returns:
        uint8 of the same shape, on the same device.
    """
    device, count = pixels.device, len(pixels)

    def chance(low: float, high: float, share: float = 1.0, other: float = 0.0) -> torch.Tensor:
        """A number for each picture, even between two bounds for a share of them; [N, 1, 1, 1]."""
        value = torch.empty(count, 1, 1, 1, device=device).uniform_(low, high)
        return torch.where(torch.rand(count, 1, 1, 1, device=device) < share, value, other)

    near = torch.zeros(count, 2, 3, device=device)
    near[:, :, :2] = torch.eye(2, device=device) * chance(0.96, 1.04, 0.5, 1.0)[:, 0]
    near[:, :, 2] = torch.cat([chance(-0.04, 0.04, 0.7), chance(-0.04, 0.04, 0.7)], dim=1).flatten(1)
    grid = F.affine_grid(near, list(pixels.shape), align_corners=False)
    value = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(value, 3, stride=1, padding=1, count_include_pad=False)
    edges = (value - soft).abs().mean(1, keepdim=True)
    value = value + (value - soft) * chance(-0.6, 0.9, 0.6)
    value = value * (1 - (edges * chance(0.005, 0.02, 0.15)).clamp(max=0.6))
    value = (value - 128) * chance(0.85, 1.15, 0.6, 1.0) + 128 + chance(-14, 14, 0.6)
    value = value + torch.randn_like(value) * chance(0, 6)
    return value.clamp(0, 255).to(torch.uint8)


def _draw(stream: Callable[[int], Iterator], worker: int, out) -> None:
    """What a worker process does: draws until it is ended, or its trainer is gone."""
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(5)  # the trainer comes first
    trainer = multiprocessing.parent_process()
    try:
        for batch in stream(worker):
            small, waiting = packed(batch), True
            while waiting and trainer.is_alive():
                with contextlib.suppress(queue.Full):
                    out.put(small, timeout=5)
                    waiting = False
            if waiting:
                return out.cancel_join_thread()  # nobody is there to take what is left
    except KeyboardInterrupt:
        pass
    except Exception:  # noqa: BLE001 (whatever it is, the trainer tells it)
        out.put(traceback.format_exc())


class Feeder:
    """Starts the workers; iterating gives batches without end.

    Args:
        stream: gives the batches of a worker, by its number; must be picklable where processes cannot be forked.
        workers: how many processes draw.
        device: where the batches go. The workers must be started before anything else uses a GPU.
    """

    def __init__(self, stream: Callable[[int], Iterator], workers: int, device: torch.device):
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.device, self.drawn, self.again = device, 0, 0  # batches that came; that were taken once more
        self._queue = context.Queue(DEPTH * workers)
        self._alive = workers
        self._workers = [
            context.Process(target=_draw, args=(stream, n, self._queue), daemon=True) for n in range(workers)
        ]
        for worker in self._workers:
            worker.start()
        self._kept: list[dict[str, torch.Tensor]] = []
        self._fresh: deque[dict[str, torch.Tensor]] = deque()
        self._bytes = 0
        self._chance = np.random.default_rng(0)
        self._failure = ""

    def _next_drawn(self) -> dict[str, torch.Tensor]:
        while True:
            try:
                came = self._queue.get(timeout=5)
            except queue.Empty:
                if not any(worker.is_alive() for worker in self._workers):
                    raise RuntimeError("every drawing process has ended") from None
                continue
            if not isinstance(came, str):
                return {name: torch.from_numpy(array) for name, array in came.items()}
            print(f"a drawing process failed:\n{came}", flush=True)
            self._alive -= 1
            if not self._alive:
                raise RuntimeError(f"every drawing process failed, the last one with\n{came}")

    def _keep(self) -> None:
        """Moves all that comes to the GPU; runs in a thread of its own."""
        try:
            on_gpu = self.device.type == "cuda"
            stream = torch.cuda.Stream(self.device) if on_gpu else None
            while True:
                came = self._next_drawn()
                # one of its own: else each copy would wait for all that was asked before
                with torch.cuda.stream(stream):
                    batch = {name: tensor.to(self.device) for name, tensor in came.items()}
                if on_gpu:
                    stream.synchronize()
                    for tensor in batch.values():
                        tensor.record_stream(torch.cuda.default_stream(self.device))
                self._fresh.append(batch)
                self.drawn += 1
                self._bytes += sum(tensor.nbytes for tensor in batch.values())
                if self._bytes < KEPT_BYTES:
                    self._kept.append(batch)
        except Exception as error:  # noqa: BLE001 (raised again by the trainer)
            self._failure = str(error)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        if self.device.type == "cpu":
            while True:
                batch = self._next_drawn()
                self.drawn += 1
                yield unpacked(batch)
        threading.Thread(target=self._keep, daemon=True).start()
        while True:
            if self._fresh:
                yield unpacked(self._fresh.popleft())
            elif len(self._kept) >= ENOUGH:
                self.again += 1
                old = self._kept[int(self._chance.integers(len(self._kept)))]
                yield unpacked(old | {"pixels": varied(old["pixels"])})
            elif self._failure:
                raise RuntimeError(self._failure)
            else:
                time.sleep(0.002)

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join(5)
        self._queue.cancel_join_thread()
        self._queue.close()
