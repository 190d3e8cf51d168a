"""Pages with a script: the policy names it, data cannot break out."""

import base64
import hashlib
import json
import re

import pytest

from circuitlab.report.document import data_block, document

SCRIPT = "document.title = 'run';"


def test_the_policy_names_the_one_script_that_may_run():
    page = document("t", "a < b", script=SCRIPT)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page
    assert f"<script>{SCRIPT}</script>" in page
    assert "a &lt; b" in page


def test_without_a_script_nothing_may_run():
    page = document("<script>x</script>", "text")
    assert "script-src" not in page
    assert "<script" not in page


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "\u2028", "\"'&"])
def test_data_comes_back_and_cannot_end_its_block(text):
    block = data_block("d", {"words": [text], "values": [1.5, None]})
    inside = re.fullmatch(r'<script type="application/json" id="d">(.*)</script>', block, re.DOTALL)[1]
    assert "<" not in inside
    assert json.loads(inside) == {"words": [text], "values": [1.5, None]}


def test_a_number_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        data_block("d", float("nan"))
