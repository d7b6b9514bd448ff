"""The pictures of all open chats, in memory only: nothing that a browser sends is ever written to a disk.

A picture belongs to the chat that shows it and vanishes with it; one that no question took yet lives while there is
room. Its key can't be guessed: whoever has it may look. Knows pictures, no chats and no HTTP.
"""

import io
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from PIL import Image

from minigpt4_serve.boxes import Grounding, draw_boxes
from minigpt4_serve.images import EncodedImage, ImageLimits, decode_image, validate_image

__all__ = ["Shelf", "ShownPicture"]

_PREVIEW_SIDE = 1024


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture and what the page shows of it.

    Attributes:
        key: its name in addresses.
        preview: a WebP of at most 1024 pixels a side.
        picture: the checked bytes as they came; what the server is sent.
    """

    key: str
    preview: bytes
    width: int
    height: int
    picture: EncodedImage


class Shelf:
    """All pictures that are shown now.

    Args:
        limits: of one picture.
        unasked: pictures kept that no question took yet; the oldest go first.
        unasked_bytes: and their bytes.
    """

    def __init__(self, limits: ImageLimits, *, unasked: int = 64, unasked_bytes: int = 256 * 2**20) -> None:
        self.limits = limits
        self._shown: WeakValueDictionary[str, ShownPicture] = WeakValueDictionary()
        self._unasked: OrderedDict[str, ShownPicture] = OrderedDict()
        self._room = unasked, unasked_bytes

    def put(self, data: bytes) -> ShownPicture:
        """Check and keep what a browser sent.

        Raises:
            InvalidImage, PayloadTooLarge: it can't be used.
        """
        picture = validate_image(data, self.limits)
        shown = self._show(decode_image(picture.data), picture)
        self._unasked[shown.key] = shown
        most, most_bytes = self._room
        while len(self._unasked) > most or sum(len(one.picture.data) for one in self._unasked.values()) > most_bytes:
            self._unasked.popitem(last=False)
        return shown

    def get(self, key: str) -> ShownPicture | None:
        """The picture of that name, if it's still shown anywhere."""
        return self._shown.get(key)

    def take(self, key: str) -> ShownPicture | None:
        """The same for a chat that keeps it from now on."""
        shown = self._shown.get(key)
        self._unasked.pop(key, None)
        return shown

    def with_boxes(self, shown: ShownPicture, groundings: Sequence[Grounding]) -> ShownPicture:
        """A copy with boxes drawn; whoever keeps it keeps it shown."""
        image = decode_image(shown.picture.data)
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        return self._show(draw_boxes(image, groundings), shown.picture)

    def _show(self, image: Image.Image, picture: EncodedImage) -> ShownPicture:
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=88)
        shown = ShownPicture(secrets.token_urlsafe(16), file.getvalue(), image.width, image.height, picture)
        self._shown[shown.key] = shown
        return shown
