"""Pictures on their way to the model: decoded in a few threads, encoded features kept by digest. Knows no scheduling.

A picture is looked up by the SHA-256 of its bytes before anything is decoded, so that a known one costs nothing.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from PIL import Image

from minigpt4_serve.errors import EngineFailed
from minigpt4_serve.pictures import Picture, decode_picture

__all__ = ["ImageCache"]

_MAX_PIXELS = 64  # decoded pictures that wait to be encoded; older ones are decoded again if they are asked for again


class ImageCache:
    """Features of pictures, least recently used ones dropped.

    Args:
        to_tensor: an upright RGB picture as pixels ``[3, side, side]``.
        max_bytes: of all features kept.
        decode_threads: pictures decoded and resized at a time.
    """

    def __init__(
        self, to_tensor: Callable[[Image.Image], torch.Tensor], *, max_bytes: int, decode_threads: int
    ) -> None:
        self.decodes = 0
        self.hits = 0
        self._to_tensor = to_tensor
        self._max_bytes = max_bytes
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._pixels: OrderedDict[str, Future[torch.Tensor]] = OrderedDict()  # until the features are here
        self._lock = threading.Lock()  # event loops ask, the engine's thread stores
        self._pool = ThreadPoolExecutor(decode_threads, thread_name_prefix="minigpt4-decode")

    async def resolve(self, pictures: Iterable[Picture]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """(digest → features) of known pictures, (digest → pixels) of the others. Equal ones are decoded once.

        Raises:
            InvalidImage: a picture is damaged.
            EngineFailed: the cache is closed.
        """
        known: dict[str, torch.Tensor] = {}
        wanted: dict[str, Future[torch.Tensor]] = {}
        with self._lock:
            for picture in pictures:
                features = self._find(picture.digest)
                if features is not None:
                    self.hits += 1
                    known[picture.digest] = features
                elif picture.digest not in wanted:
                    wanted[picture.digest] = self._decode_once(picture)
        # Shielded: a caller who leaves must not cancel what another one waits for, too.
        pixels = await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(future)) for future in wanted.values()))
        return known, dict(zip(wanted, pixels, strict=True))

    def _decode_once(self, picture: Picture) -> Future[torch.Tensor]:
        future = self._pixels.get(picture.digest)
        if future is None:
            try:
                future = self._pool.submit(lambda: self._to_tensor(decode_picture(picture.data)))
            except RuntimeError as error:
                raise EngineFailed("The engine has stopped and is being replaced; try again in a moment.") from error
            self.decodes += 1
            self._pixels[picture.digest] = future
            if len(self._pixels) > _MAX_PIXELS:
                self._pixels.popitem(last=False)
        return future

    def get(self, digest: str) -> torch.Tensor | None:
        """Features ``[slots, hidden size]`` of a picture, if they are here."""
        with self._lock:
            return self._find(digest)

    def _find(self, digest: str) -> torch.Tensor | None:
        features = self._features.get(digest)
        if features is not None:
            self._features.move_to_end(digest)
        return features

    def put(self, digest: str, features: torch.Tensor) -> None:
        """Keep features; the least recently used ones make room."""
        with self._lock:
            self._pixels.pop(digest, None)
            if digest not in self._features:
                self._features[digest] = features
                self._bytes += features.nbytes
            while self._bytes > self._max_bytes and len(self._features) > 1:
                _, dropped = self._features.popitem(last=False)
                self._bytes -= dropped.nbytes

    def close(self) -> None:
        """Take nothing more. What is being decoded ends by itself: somebody may be waiting for it."""
        self._pool.shutdown(wait=False)
