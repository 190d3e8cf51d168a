"""Pictures inside the page: as images, in which nothing can run, load or act on the page, whoever made the file."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from xml.etree import ElementTree

from circuitlab.errors import FormatError
from circuitlab.report.markup import Html, element

# Bitmaps are drawn at 160 dots per inch; a CSS pixel is a ninety-sixth of an inch.
_CSS_PIXELS = 96 / 160
_POINT = 96 / 72
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDEST = 20_000  # CSS pixels


def bitmap(png: bytes, words: str) -> Html:
    """A PNG as an image of the page, with what it shows in words.

    Raises:
        FormatError: It is no PNG.
    """
    png = checked_png(png)
    # The first chunk holds width and height, after 16 bytes of signature and chunk head.
    width, height = struct.unpack(">II", png[16:24])
    return _image("png", png, words, width * _CSS_PIXELS, height * _CSS_PIXELS)


def drawing(svg: str, words: str) -> Html:
    """An SVG file as an image of the page, with what it shows in words.

    Browsers run no script of an image, follow no link in it and load nothing for it.

    Raises:
        FormatError: It is no SVG.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise FormatError(f"it is no SVG ({error})") from error
    if root.tag.rsplit("}", 1)[-1] != "svg":
        raise FormatError(f"it is no SVG (its outermost element is {root.tag[:80]!r})")
    sizes = [re.match(r"\d+(\.\d+)?", root.attrib.get(side, "")) for side in ("width", "height")]
    width, height = (float(size[0]) * _POINT if size else 0.0 for size in sizes)
    return _image("svg+xml", svg.encode("utf-8"), words, width, height)


def checked_png(data: bytes) -> bytes:
    """The chunks of a PNG file, without what may follow them.

    Raises:
        FormatError: It is no PNG: another signature, a chunk that is cut off or whose checksum is wrong, or no pixels.
    """
    if not data.startswith(_SIGNATURE):
        raise FormatError("it is no PNG picture")
    at, kinds = len(_SIGNATURE), []
    while len(data) >= at + 12:
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if len(data) < end or zlib.crc32(data[at + 4 : end - 4]) != struct.unpack(">I", data[end - 4 : end])[0]:
            break
        kinds.append(kind)
        at = end
        if kind == b"IEND":
            break
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds:
        raise FormatError("it is no PNG picture, or a damaged one")
    return data[:at]


def _image(kind: str, content: bytes, words: str, width: float, height: float) -> Html:
    return element(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        alt=words,
        width=f"{min(width, _WIDEST):.0f}" if width else None,
        height=f"{min(height, _WIDEST):.0f}" if height else None,
    )
