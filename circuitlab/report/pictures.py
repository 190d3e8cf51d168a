"""Pictures of a page, embedded as images: browsers run no script of an image, follow no link and load nothing."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from xml.etree import ElementTree

from circuitlab.errors import FormatError

# Bitmaps are drawn at 160 dots per inch; a CSS pixel is a ninety-sixth of an inch.
_CSS_PIXELS = 96 / 160
_POINT = 96 / 72
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDEST = 20_000  # CSS pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture to embed; shown by `picture.html.j2`.

    Attributes:
        kind: "png" or "svg+xml".
        content: The file.
        words: Alternative text.
        width: CSS pixels; 0 if unknown.
        height: CSS pixels; 0 if unknown.
    """

    kind: str
    content: bytes
    words: str
    width: int
    height: int


def bitmap(png: bytes, words: str) -> Picture:
    """A PNG file with its alternative text.

    Returns:
        The picture, at the size at which it was drawn.

    Raises:
        FormatError: It is no PNG.
    """
    png = checked_png(png)
    # The first chunk holds width and height, after 16 bytes of signature and chunk head.
    width, height = (_pixels(size * _CSS_PIXELS) for size in struct.unpack(">II", png[16:24]))
    return Picture(kind="png", content=png, words=words, width=width, height=height)


def drawing(svg: str, words: str) -> Picture:
    """An SVG file with its alternative text.

    Returns:
        The picture, at the size at which it was drawn.

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
    width, height = (_pixels(float(size[0]) * _POINT) if size else 0 for size in sizes)
    return Picture(kind="svg+xml", content=svg.encode("utf-8"), words=words, width=width, height=height)


def checked_png(data: bytes) -> bytes:
    """The chunks of a PNG file, without what may follow them.

    Returns:
        The file up to its last chunk.

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


def _pixels(size: float) -> int:
    return round(min(size, _WIDEST))
