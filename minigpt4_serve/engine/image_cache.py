"""Pictures on their way to the model: decoded in a few threads, encoded features kept by digest. Knows no scheduling.

A picture is looked up by the SHA-256 of its bytes before anything is decoded, so that a known one costs nothing.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from PIL import Image

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.images import EncodedImage, decode_image

__all__ = ["ImageCache", "ImageEntry"]


@dataclass(eq=False)
class ImageEntry:
    """A picture as the model sees it. All requests that show it share this one, and keep it until their end.

    Attributes:
        pixels: ``[3, side, side]``, being decoded or there.
        features: rows for the LLM ``[slots, hidden size]``, once it is encoded.
    """

    digest: str
    pixels: Future[torch.Tensor]
    features: torch.Tensor | None = None

    def __del__(self) -> None:
        """Nobody waits any more: what is still in the line to be decoded leaves it."""
        self.pixels.cancel()


class ImageCache:
    """Features of pictures, least recently used ones dropped.

    Args:
        to_tensor: an upright RGB picture as pixels ``[3, side, side]``.
        max_bytes: of all features kept; the latest is kept in any case.
        decode_threads: pictures decoded and resized at a time.
    """

    def __init__(
        self, to_tensor: Callable[[Image.Image], torch.Tensor], *, max_bytes: int, decode_threads: int
    ) -> None:
        self.decodes = 0
        self.hits = 0
        self._to_tensor = to_tensor
        self._max_bytes = max_bytes
        self._alive: WeakValueDictionary[str, ImageEntry] = (
            WeakValueDictionary()
        )  # whatever a request or the next one holds
        self._kept: OrderedDict[str, ImageEntry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # event loops ask, the engine's thread stores
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="minigpt4-decode")

    async def resolve(self, pictures: Sequence[EncodedImage]) -> list[ImageEntry]:
        """Each picture decoded, or already encoded. Equal ones are one, and are decoded once.

        Raises:
            InvalidImage: a picture is damaged.
            EngineFailed: the cache is closed.
        """
        with self._lock:
            seen = [self._find(picture) for picture in pictures]
            decoding = {one.pixels for one in seen if one.features is None}
        try:
            # Shielded: a caller who leaves must not cancel what another one waits for, too.
            await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(pixels)) for pixels in decoding))
        except BaseException:
            seen.clear()  # the error's traceback would keep them, as if somebody still waited
            raise
        return seen

    def _find(self, picture: EncodedImage) -> ImageEntry:
        seen = self._alive.get(picture.digest)
        if seen is None:
            try:
                pixels = self._pool.submit(lambda: self._to_tensor(decode_image(picture.data)))
            except RuntimeError as error:
                raise EngineFailed("The engine has stopped and is being replaced; try again in a moment.") from error
            self.decodes += 1
            self._alive[picture.digest] = seen = ImageEntry(picture.digest, pixels)
        elif seen.features is not None:
            self.hits += 1
            if picture.digest in self._kept:
                self._kept.move_to_end(picture.digest)
        return seen

    def put(self, seen: ImageEntry, features: torch.Tensor) -> None:
        """It is encoded: keep its features; the least recently used ones make room."""
        with self._lock:
            seen.features, seen.pixels = features, Future()  # the pixels' memory is free
            self._kept[seen.digest] = seen
            self._bytes += features.nbytes
            while self._bytes > self._max_bytes and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                assert dropped.features is not None
                self._bytes -= dropped.features.nbytes

    def close(self) -> None:
        """Take nothing more. What is being decoded ends by itself: somebody may be waiting for it."""
        self._pool.shutdown(wait=False)
