"""Images on their way to the model: decoded in a thread pool, their encoded features cached by digest.

An image is looked up by the SHA-256 of its bytes before it is decoded, so a cached one is not decoded at all.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.images import DecodedImage, EncodedImage, ImageLimits
from minigpt4_serve.images.decoding import load_container
from minigpt4_serve.images.validation import open_container
from minigpt4_serve.memory import return_free_memory

__all__ = ["ImageCache", "ImageEntry", "MemoryBudget"]

_LARGE = 64 * 2**20  # bytes to decode an image: 16 million pixels of most formats


@dataclass(eq=False)
class ImageEntry:
    """One image's pixels and features. Requests with the same image share the entry and keep it until they end.

    Attributes:
        pixels: ``[3, side, side]``; empty once the image is encoded.
        features: rows for the LLM ``[image tokens, hidden size]``, once the image is encoded.
    """

    digest: str
    pixels: Future[torch.Tensor]
    features: torch.Tensor | None = None

    def __del__(self) -> None:
        """Cancel a queued decode once no request references it."""
        self.pixels.cancel()


class MemoryBudget:
    """Memory that threads share. A reservation waits for its turn; one above the total waits until it is alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Hold ``size`` bytes within the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self._total)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class ImageCache:
    """Image features, of which the least recently used are evicted. Thread-safe.

    Args:
        to_tensor: an image as pixels ``[3, side, side]``.
        max_bytes: of all cached features; the latest is kept in any case.
        decode_threads: images decoded and resized at the same time, besides one of more than 64 MiB: such take a second
            or more, for which others' images don't wait.
        decode_bytes: memory of all images that are being decoded; one that needs more is decoded alone.

    Attributes:
        decodes: images decoded.
        hits: lookups that found features.
    """

    def __init__(
        self,
        to_tensor: Callable[[DecodedImage], torch.Tensor],
        *,
        max_bytes: int,
        decode_threads: int,
        decode_bytes: int = ImageLimits().max_decode_bytes,
    ) -> None:
        self.decodes = 0
        self.hits = 0
        self._to_tensor = to_tensor
        self._max_bytes = max_bytes
        # Every entry that a request or ``_cached`` references.
        self._alive: WeakValueDictionary[str, ImageEntry] = WeakValueDictionary()
        self._cached: OrderedDict[str, ImageEntry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # event loops look up, the engine thread stores
        self._memory = MemoryBudget(decode_bytes)
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="minigpt4-decode")
        self._large_pool = ThreadPoolExecutor(1, thread_name_prefix="minigpt4-decode-large")

    async def resolve(self, images: Sequence[EncodedImage]) -> list[ImageEntry]:
        """Entries of these images, decoded or already encoded. Equal images share one entry and one decode.

        Raises:
            InvalidImage: an image is damaged.
            EngineFailed: the cache is closed.
        """
        with self._lock:
            entries = [self._find_or_decode(image) for image in images]
            decoding = {entry.pixels for entry in entries if entry.features is None}
        try:
            # Shielded: a canceled caller must not cancel a decode that another one awaits.
            await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(pixels)) for pixels in decoding))
        except BaseException:
            entries.clear()  # the exception's traceback references this frame and would keep the entries alive
            raise
        return entries

    def _find_or_decode(self, image: EncodedImage) -> ImageEntry:
        entry = self._alive.get(image.digest)
        if entry is None:
            try:
                pool = self._large_pool if image.decode_bytes >= _LARGE else self._pool
                pixels = pool.submit(self._decode, image.data)
            except RuntimeError as error:
                raise EngineFailed("The engine has stopped and is being replaced; try again in a moment.") from error
            self.decodes += 1
            entry = ImageEntry(image.digest, pixels)
            self._alive[image.digest] = entry
        elif entry.features is not None:
            self.hits += 1
            if image.digest in self._cached:
                self._cached.move_to_end(image.digest)
        return entry

    def _decode(self, data: bytes) -> torch.Tensor:
        found, container = open_container(data)
        with self._memory.reserve(container.decode_bytes):
            try:
                return self._to_tensor(load_container(found, container))
            finally:
                if container.decode_bytes >= _LARGE:
                    return_free_memory()

    def put(self, entry: ImageEntry, features: torch.Tensor) -> None:
        """Store an encoded image's features, evicting the least recently used ones if there are too many."""
        with self._lock:
            entry.features = features
            entry.pixels = Future()  # frees the pixels' memory
            self._cached[entry.digest] = entry
            self._bytes += features.nbytes
            while self._bytes > self._max_bytes and len(self._cached) > 1:
                _, evicted = self._cached.popitem(last=False)
                assert evicted.features is not None
                self._bytes -= evicted.features.nbytes

    def close(self) -> None:
        """Accept no more images. Decodes in progress finish, because a caller may await them."""
        self._pool.shutdown(wait=False)
        self._large_pool.shutdown(wait=False)
