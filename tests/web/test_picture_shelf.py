"""Pictures in memory: checked, previewed, and gone when nobody shows them."""

import io

import pytest
from drawing import draw, encode
from PIL import Image

from minigpt4_serve.boxes import parse_groundings
from minigpt4_serve.errors import InvalidImage, PayloadTooLarge
from minigpt4_serve.images import ImageLimits
from minigpt4_serve.web.pictures import Shelf


def test_a_large_picture_gets_a_small_preview_and_stays_itself() -> None:
    data = encode(draw(size=(3000, 1500)), "JPEG")
    shown = Shelf(ImageLimits()).put(data)
    assert shown.picture.data == data
    with Image.open(io.BytesIO(shown.preview)) as preview:
        assert (preview.format, preview.size) == ("WEBP", (1024, 512))


@pytest.mark.parametrize("data", [b"", b"hello", encode(draw())[:60], b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        Shelf(ImageLimits()).put(data)


def test_limits_hold() -> None:
    with pytest.raises(PayloadTooLarge):
        Shelf(ImageLimits(max_bytes=10)).put(encode(draw()))


def test_unasked_pictures_make_room_for_newer_ones() -> None:
    shelf = Shelf(ImageLimits(), unasked=2)
    keys = [shelf.put(encode(draw())).key for _ in range(3)]
    assert [shelf.get(key) is not None for key in keys] == [False, True, True]
    size = len(encode(draw()))
    small = Shelf(ImageLimits(), unasked_bytes=size)
    keys = [small.put(encode(draw())).key for _ in range(2)]
    assert [small.get(key) is not None for key in keys] == [False, True]


def test_a_taken_picture_lives_as_long_as_its_chat() -> None:
    shelf = Shelf(ImageLimits(), unasked=1)
    taken = shelf.take(shelf.put(encode(draw())).key)
    assert taken is not None
    shelf.put(encode(draw()))
    key = taken.key
    assert shelf.get(key) is taken
    del taken
    assert shelf.get(key) is None
    assert shelf.take("unknown") is None


def test_keys_cannot_be_guessed() -> None:
    shelf = Shelf(ImageLimits())
    keys = {shelf.put(encode(draw())).key for _ in range(20)}
    assert len(keys) == 20
    assert all(len(key) >= 20 for key in keys)


def test_boxes_are_drawn_on_a_copy() -> None:
    shelf = Shelf(ImageLimits())
    shown = shelf.put(encode(draw("blue", (600, 400))))
    drawn = shelf.with_boxes(shown, parse_groundings("<p>disc</p> {<25><25><75><75>}"))
    assert (drawn.width, drawn.height) == (600, 400)
    assert drawn.preview != shown.preview
    assert drawn.picture is shown.picture
