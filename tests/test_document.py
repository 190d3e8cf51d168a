"""Pages with a script: the policy names it, data cannot break out."""

import ast
import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from jinja2 import Environment, UndefinedError
from markupsafe import Markup

import circuitlab
from circuitlab.report.render import asset, json_text, render

SCRIPT = Markup("document.title = 'run';")


def document(title: str, script: str = "") -> str:
    return render("page.html.j2", title=title, style="", script=script)


def test_the_policy_names_the_one_script_that_may_run():
    page = document("a < b", script=SCRIPT)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert f"<script>{SCRIPT}</script>" in page
    assert "a &lt; b" in page


def test_without_a_script_nothing_may_run():
    page = document("<script>x</script>")
    assert "script-src" not in page
    assert "<script" not in page


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "\u2028", "\"'&"])
def test_data_comes_back_and_cannot_end_its_block(text):
    inside = json_text({"words": [text], "values": [1.5, None]})
    assert "<" not in inside
    assert json.loads(inside) == {"words": [text], "values": [1.5, None]}


def test_a_number_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text(float("nan"))


def test_a_script_that_is_no_file_of_the_package_is_text():
    """The twin of the first test: only what the package marks as safe is not escaped."""
    assert "<script>&lt;b&gt;" in document("t", script="<b>")


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError):
        render("page.html.j2", title="t")


PACKAGE = Path(circuitlab.__file__).parent
TEMPLATES = PACKAGE / "report" / "templates"


@pytest.mark.parametrize("path", sorted(TEMPLATES.iterdir()), ids=lambda path: path.name)
def test_templates_parse_and_switch_no_escaping_off(path):
    if path.suffix != ".j2":
        assert asset(path.name) == path.read_text(encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape|<script>(?!{{ script }})|\son\w+=", text)
    Environment().parse(text)


def markup_in(source: str) -> list[str]:
    """String constants of a module, docstrings aside, that hold HTML, CSS or SVG."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
    ]
    return [text for text in texts if re.search(r"</?(div|span|style|svg|script|table|p|html|iframe)\b[^>]*>", text)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_holds_markup(path):
    assert markup_in(path.read_text(encoding="utf-8")) == []


def test_the_check_above_can_fail():
    assert markup_in("page = \"<div class='a'>\" + text") == ["<div class='a'>"]
    assert markup_in('"""<div>"""') == []
