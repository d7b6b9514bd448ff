"""References to images in a request → validated images, within the limits of the settings."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error, PayloadTooLarge
from minigpt4_serve.images import EncodedImage, ImageLimits, is_data_url, parse_data_url, run_image_work, validate_image
from minigpt4_serve.images.fetch import ImageFetcher
from minigpt4_serve.settings import ServeSettings

__all__ = ["ImageReader"]


class ImageReader:
    """Reads ``data:`` URLs and, from allowed hosts, https addresses.

    Args:
        fetcher: replaced in tests; made from the settings if not given.
    """

    def __init__(self, settings: ServeSettings, fetcher: ImageFetcher | None = None) -> None:
        self._limits = ImageLimits(
            settings.max_image_bytes,
            settings.max_image_pixels,
            settings.max_image_frames,
            settings.max_decode_bytes,
        )
        self._max_total = settings.max_body_bytes
        hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._fetches = bool(hosts)
        self._fetcher = fetcher or ImageFetcher(
            settings.max_image_bytes, timeout_s=settings.fetch_timeout_s, hosts=None if "*" in hosts else hosts
        )

    async def read(self, references: Sequence[tuple[str, str]]) -> list[EncodedImage]:
        """The images of (URL, name of the field), in order.

        All images fetched for a request together have at most ``max_body_bytes``.

        Raises:
            InvalidRequest, InvalidImage, PayloadTooLarge: ``param`` names the field.
        """
        images: list[EncodedImage] = []
        left = self._max_total
        for url, param in references:
            if is_data_url(url):
                # Decoding and hashing megabytes on the event loop would delay all other streams.
                check = partial(parse_data_url, url, self._limits, param=param)
                images.append(await run_image_work(check, size=len(url)))
                continue
            data = await self._fetch(url, left, param)
            left -= len(data)
            check = partial(validate_image, data, self._limits, param=param)
            images.append(await run_image_work(check, size=len(data)))
        return images

    async def _fetch(self, url: str, left: int, param: str) -> bytes:
        if not url[:8].lower() == "https://":
            raise InvalidRequest(
                "Pictures are data: URLs (data:image/png;base64,…)"
                + (" or https:// addresses." if self._fetches else "; no addresses are fetched here."),
                param=param,
            )
        if not self._fetches:
            raise InvalidRequest(
                "This server fetches no addresses; send the picture itself as a data: URL (data:image/png;base64,…).",
                param=param,
            )
        if left <= 0:
            raise PayloadTooLarge(
                f"The pictures have more than {self._max_total / 2**20:.0f} MiB together; send fewer.", param=param
            )
        try:
            return await replace(self._fetcher, max_bytes=min(self._limits.max_bytes, left)).fetch(url)
        except MiniGPT4Error as error:
            error.param = param
            raise
