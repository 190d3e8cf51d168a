"""Pages of texts coloured token by token: what stands in them, their colours, and that nothing in a text can act."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from architectures import as_users_run_it

from circuitlab import errors
from circuitlab.data.encoded import Encoded
from circuitlab.data.text_values import TextValues, save_text_page, text_frame, text_page
from circuitlab.data.texts import answer_ids, encode_text, filled, shown_tokens
from circuitlab.report import text_view
from circuitlab.report.render import asset
from circuitlab.report.text_view import LEVELS, ramp_rules
from circuitlab.viz.style import luminance

SCRIPT = asset("text.js")
EVIL = (
    "<|bos|>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    " a",
    "\n",
    "&amp;",
    "\t",
    "\x07",
)


def values_of(tokens: tuple[str, ...] = EVIL, n_series: int = 2, **more) -> TextValues:
    values = np.linspace(-1, 3, n_series * len(tokens)).reshape(n_series, len(tokens))
    settings = {"title": "Neuron values", "unit": "logits", "kind": "neuron", **more}
    return TextValues(tokens=tokens, series=tuple(str(7 * i) for i in range(n_series)), values=values, **settings)


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="values">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def spans(page: str) -> list[tuple[str, str]]:
    """Class and text of every token on the page, first panel first."""
    texts = re.findall(r'<div class="text"[^>]*>(.*?)</div>', page, re.DOTALL)
    found = [span for text in texts for span in re.findall(r"<span(?: class=\"(\w+)\")?>(.*?)</span>", text, re.DOTALL)]
    return [(name, html.unescape(re.sub(r"<[^>]+>", "", inner))) for name, inner in found]


def test_every_token_stands_on_the_page_and_none_can_act():
    page = values_of().to_html()
    assert [text for _, text in spans(page)] == [*EVIL[:-1], "\\x07"]
    assert page.count("<script") == 2  # the data and the package's own
    assert "<img" not in page
    assert f"<script>{SCRIPT}</script>" in page
    assert "script-src 'sha256-" in html.unescape(page)
    assert "http:" not in page.replace("http-equiv", "")
    assert "https:" not in page


def test_line_breaks_spaces_and_control_characters_are_kept_and_visible():
    page = values_of(("a", "\n\n", "  b ", "", "\tc")).to_html()
    assert '<i class="nl"></i>\n<i class="nl"></i>\n' in page
    assert '<i class="sp"> </i><i class="sp"> </i>b<i class="sp"> </i>' in page
    assert "<i>∅</i>" in page
    assert '<i class="tab"></i>\tc' in page


def test_colours_say_sign_and_size_of_the_first_series():
    values = np.array([[-2.0, -1.0, 0.0, 0.04, 0.5, 2.0, np.nan]])
    page = TextValues(title="t", tokens=tuple("abcdefg"), series=("0",), values=values).to_html()
    assert [name for name, _ in spans(page)] == ["n20", "n10", "", "", "p5", "p20", ""]
    # The twin: with the other sign, the other colours.
    turned = TextValues(title="t", tokens=tuple("abcdefg"), series=("0",), values=-values).to_html()
    assert [name for name, _ in spans(turned)] == ["p20", "p10", "", "", "n5", "n20", ""]


def test_blue_is_positive_red_negative_and_letters_can_be_read_on_both():
    rules = dict(re.findall(r"\.([np]\d+)\{background:(#\w{6});color:#\w{6}\}", ramp_rules()))
    letters = dict(re.findall(r"\.([np]\d+)\{background:#\w{6};color:(#\w{6})\}", ramp_rules()))
    assert set(rules) == {f"{sign}{i}" for sign in "np" for i in range(1, LEVELS + 1)}
    for name, colour in rules.items():
        red, blue = int(colour[1:3], 16), int(colour[5:7], 16)
        assert (blue > red) == name.startswith("p"), name
        bright = sorted((luminance(colour), luminance(letters[name])))
        assert (bright[1] + 0.05) / (bright[0] + 0.05) >= 4.5, name
    lightness = [luminance(rules[f"p{i}"]) for i in range(1, LEVELS + 1)]
    assert lightness == sorted(lightness, reverse=True)


def test_the_page_carries_every_series_rounded():
    text = values_of()
    data = data_of(text.to_html())
    assert data["panels"][0]["series"] == [0, 1]
    assert np.allclose(data["panels"][0]["values"], text.values, rtol=1e-3)
    assert data["reach"] == [pytest.approx(abs(text.values[i]).max(), rel=1e-3) for i in range(2)]
    assert '<option value="1">7</option>' in text.to_html()
    assert "details" not in data["panels"][0]
    told = replace(text, details=tuple(f"rank {i}" for i in range(len(EVIL))))
    assert data_of(told.to_html())["panels"][0]["details"][3] == "rank 3"


def test_a_value_that_is_none_stays_none():
    text = TextValues(title="t", tokens=("a", "b"), series=("s",), values=np.array([[np.nan, -1.0]]))
    assert data_of(text.to_html())["panels"][0]["values"] == [[None, -1.0]]
    assert data_of(text.to_html())["ends"] == [[-1.0, 0.0]]
    nothing = replace(text, values=np.full((1, 2), np.nan))
    assert data_of(nothing.to_html())["reach"] == [0.0]


def test_texts_share_a_scale_and_are_shown_for_the_series_they_have():
    low = TextValues(title="one", tokens=("a",), series=("3",), values=np.array([[1.0]]), kind="neuron")
    high = TextValues(title="two", tokens=("b",), series=("3",), values=np.array([[4.0]]), kind="neuron")
    other = TextValues(title="three", tokens=("c",), series=("9",), values=np.array([[4.0]]), kind="neuron")
    page = text_page([low, high, other], title="Examples")
    assert [name for name, _ in spans(page)] == ["p5", "p20", ""]
    assert len(re.findall(r'<section class="panel"', page)) == 3
    assert page.count('class="panel" hidden=""') == 1
    assert data_of(page)["reach"] == [4.0, 4.0]


def test_a_large_text_stays_small():
    values = np.random.default_rng(0).normal(size=(30, 5000))
    text = TextValues(title="t", tokens=(" word",) * 5000, series=tuple(map(str, range(30))), values=values)
    assert len(text.to_html()) < 2_000_000


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    shown = values_of()._repr_html_()
    assert re.match(r'<iframe srcdoc="&lt;!DOCTYPE html&gt;', shown)
    assert 'sandbox="allow-scripts"' in shown
    inside = re.search(r'srcdoc="([^"]*)"', shown)
    assert inside
    assert html.unescape(inside[1]) == values_of().to_html()
    assert " id=" not in shown.replace(inside[0], "")  # several in one notebook have no identifier to share
    assert text_frame([values_of(), values_of()]).count("<iframe") == 1


def test_pages_are_never_overwritten_by_accident(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert values_of().save_html(path) == path
    before = path.read_bytes()
    with pytest.raises(errors.OutputExistsError, match="exists. Name another file, or replace it with force"):
        values_of(n_series=1).save_html(path)
    assert path.read_bytes() == before
    save_text_page([values_of(n_series=1)], path, force=True)
    assert path.read_bytes() != before
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]


def test_records_that_do_not_fit_are_refused():
    with as_users_run_it():
        with pytest.raises(errors.ConfigError, match=r"2 series over 1 tokens need values of that shape"):
            TextValues(title="t", tokens=("a",), series=("s", "t"), values=np.zeros((1, 1)))
        with pytest.raises(errors.ConfigError, match="1 details are given for 8 tokens"):
            values_of(details=("a",))
    with pytest.raises(errors.ConfigError, match="needs at least one text"):
        text_page([])
    with pytest.raises(errors.ConfigError, match="texts on one page have one unit"):
        text_page([values_of(), values_of(unit="nats")])


def test_the_table_has_one_row_a_series_and_token():
    frame = values_of().to_frame()
    assert frame.columns.tolist() == ["series", "position", "token", "value"]
    assert len(frame) == 16
    assert frame[frame.series == "7"].value.tolist() == values_of().values[1].tolist()


def test_tokens_are_shown_as_they_stand_in_the_text(bundled):
    for text in ("Été à <b>é</b>", "a\n\n  b", "😀 x", "  ", "plain words."):
        encoded = bundled.text.encode(text)
        shown = shown_tokens(text, encoded)
        parts = [token for token in shown if re.search(r"\[\d/\d\]$", token)]
        whole = "".join(re.sub(r"\[1/\d\]$", "", t) for t in shown[1:] if not re.search(r"\[[2-9]/\d\]$", t))
        assert whole == text
        assert bool(parts) == (not text.isascii())


def test_a_space_that_no_range_has_goes_to_the_token_behind_it():
    encoded = Encoded((0, 1, 2), ((0, 0), (0, 1), (2, 3)), ("<bos>", "a", "b"))
    assert shown_tokens("a b", encoded) == ("<bos>", "a", " b")


def test_texts_are_filled_up_behind_their_end():
    tokens, lengths = filled([(1, 2, 3), (4,)])
    assert tokens.tolist() == [[1, 2, 3], [4, 4, 4]]
    assert lengths.tolist() == [3, 1]


def test_level_of_a_value():
    assert [text_view.level(v, 2.0) for v in (2.0, -2.0, 0.049, 0.05, float("nan"))] == ["p20", "n20", "", "p1", ""]
    assert text_view.level(0.0, 0.0) == ""


def test_encoding_checks_the_context_and_answers(bundled):
    with pytest.raises(errors.TokenError, match=r"has 5 tokens and 3 more are asked for, but the context holds 7"):
        encode_text("Anna is a friend", bundled.text, 7, extra=3)
    assert answer_ids("<b>x</", ["b"], bundled.text.encode("<b>x</"), bundled.text) == (
        bundled.text.encode("b").ids[-1],
    )
