"""A page that needs nothing but itself, and runs nothing but what this package wrote.

The policy in its head names the one script of the page by its SHA-256: whatever stands in a prompt, a token or a
description is text to the browser, even if it were written into the page unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from circuitlab.report.markup import Html, element, joined
from circuitlab.report.stylesheet import STYLESHEET

# What `default-src` does not cover: where relative addresses lead, and where forms go.
_NO_WAY_OUT = "; base-uri 'none'; form-action 'none'"


def document(title: str, *body: str | None, style: str = "", script: str = "") -> Html:
    """A whole HTML page.

    Args:
        title: Of the window.
        body: What stands on the page; plain text is escaped.
        style: Rules beside those of `STYLESHEET`.
        script: JavaScript, run when the page has been read; it may only be a constant of this package, and finds its
            data in elements made by `data_block`.
    """
    allowed = f"; script-src 'sha256-{_sha256(script)}'" if script else ""
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}{_NO_WAY_OUT}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLESHEET + style)),
    )
    run = element("script", Html(script)) if script else None
    page = element("html", head, element("body", element("main", *body), run), lang="en")
    return joined(Html("<!DOCTYPE html>\n"), page, Html("\n"))


def data_block(identifier: str, value: Any) -> Html:
    r"""Numbers and texts for a page's script, as JSON that no text in it can end.

    Args:
        identifier: The `id` by which the script finds it: `JSON.parse(document.getElementById(id).textContent)`.
        value: What JSON can hold; NaN and infinities are refused.

    Raises:
        ValueError: A number that JSON cannot hold.

    Example:
        >>> data_block("words", ["</script>"])
        '<script type="application/json" id="words">["\\u003c/script\\u003e"]</script>'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return element("script", Html(text), type="application/json", id=identifier)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
