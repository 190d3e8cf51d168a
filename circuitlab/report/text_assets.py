"""Rules and script of the pages that `circuitlab.report.text_view` writes."""

from circuitlab.viz.style import diverging, luminance

LEVELS = 20  # steps of colour on either side of zero
# How far towards the ends of the heatmaps' colours: their darkest would drown the letters.
_REACH = 0.84

RULES = """
.choice { display: flex; flex-wrap: wrap; gap: 10px 28px; align-items: center; margin: 18px 0 14px; font-size: 15px; }
.choice label { color: var(--muted); }
.choice select { margin-left: 8px; padding: 3px 6px; font: inherit; color: var(--ink); max-width: 100%; }
.choice b { margin-left: 8px; font-weight: 600; }
.legend { display: flex; align-items: center; gap: 8px; color: var(--muted); font-size: 13px; }
.ramp { display: inline-block; width: 150px; height: 11px; border-radius: 2px; background: var(--ramp); }
.ramp.pos, .ramp.neg { background-size: 200% 100%; }
.ramp.pos { background-position: 100% 0; }
.ramp.neg { background-position: 0 0; }
.panel { margin: 0 0 20px; padding: 0; border: 0; }
.panel h2 { margin: 0 0 4px; font-size: 14px; font-weight: 500; color: var(--muted); }
.text { font: 14px/1.95 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; padding: 6px 8px;
  border: 1px solid var(--line); border-radius: 4px; }
.text:focus-visible { outline: 2px solid var(--pos); outline-offset: 1px; }
.text span { padding: 2px 0; margin-right: 1px; border-radius: 2px; box-shadow: inset 0 -1px rgba(29, 35, 41, .16);
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.text span.at { outline: 2px solid var(--ink); outline-offset: 0; }
.text i { font-style: normal; opacity: .5; }
.text .sp { position: relative; }
.text .sp::after { content: "\\B7"; position: absolute; left: 0; top: -.32em; pointer-events: none; }
.text .nl::before { content: "\\21B5"; }
.text .tab::before { content: "\\2192"; position: absolute; pointer-events: none; }
#tip { position: absolute; z-index: 2; max-width: min(340px, 92vw); padding: 6px 10px; background: var(--ink);
  color: #fff; border-radius: 4px; font-size: 13px; line-height: 1.45; pointer-events: none; overflow-wrap: anywhere; }
#tip code { white-space: pre-wrap; }
#tip b { font-weight: 600; }
@media print {
  .choice select { appearance: none; border: 0; padding: 0; }
  .text { border: 0; padding: 0; font-size: 9pt; }
  .text span, .ramp { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  #tip { display: none; }
}
"""

# What a token's value looks like is decided here and in `text_view.level` by the same rule; a test compares.
SCRIPT = """
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("values").textContent);
  const panels = [...document.querySelectorAll(".panel")];
  const cells = panels.map(panel => [...panel.querySelectorAll(".text > span")]);
  const select = document.querySelector("select");
  const tip = document.getElementById("tip");
  const minus = "\\u2212";
  let chosen = 0, at = null;

  const written = value => value === null ? "no value" : String(value).replace("-", minus);
  const rowOf = number => data.panels[number].series.indexOf(chosen);

  function level(value, reach) {
    if (value === null || reach === 0) return "";
    const size = Math.round(Math.abs(value) / reach * data.levels);
    return size === 0 ? "" : (value < 0 ? "n" : "p") + size;
  }

  function show(series) {
    chosen = series;
    panels.forEach((panel, number) => {
      const row = rowOf(number);
      panel.hidden = row < 0;
      if (row < 0) return;
      data.panels[number].values[row].forEach((value, i) => {
        cells[number][i].className = level(value, data.reach[series]);
      });
    });
    const [low, high] = data.ends[series];
    document.getElementById("low").textContent = written(low);
    document.getElementById("high").textContent = written(high);
    document.getElementById("ramp").className = "ramp" + (low === 0 ? " pos" : high === 0 ? " neg" : "");
    if (select) select.value = String(series);
    leave();
  }

  function leave() {
    if (at) at.classList.remove("at");
    at = null;
    tip.hidden = true;
  }

  function line(tag, text) {
    const made = document.createElement(tag);
    made.textContent = text;
    tip.append(made);
  }

  function point(cell) {
    const number = panels.indexOf(cell.closest(".panel")), i = cells[number].indexOf(cell);
    if (cell === at) return;
    leave();
    at = cell;
    cell.classList.add("at");
    const own = data.panels[number], value = own.values[rowOf(number)][i];
    tip.textContent = "";
    line("b", written(value) + (value === null || !data.unit ? "" : " " + data.unit));
    line("span", "  token " + i + " ");
    line("code", JSON.stringify(cell.textContent));
    if (own.details) { tip.append(document.createElement("br")); line("span", own.details[i]); }
    tip.hidden = false;
    const box = cell.getClientRects()[0], width = document.documentElement.clientWidth;
    const left = Math.max(4, Math.min(box.left, width - tip.offsetWidth - 4));
    const below = box.bottom + tip.offsetHeight + 8 < window.innerHeight || box.top < tip.offsetHeight + 8;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = (below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + window.scrollY + "px";
  }

  const cellOf = event => event.target.closest(".text > span");
  document.addEventListener("pointerover", event => { const cell = cellOf(event); if (cell) point(cell); });
  document.addEventListener("click", event => { const cell = cellOf(event); if (cell) point(cell); else leave(); });
  panels.forEach((panel, number) => {
    const text = panel.querySelector(".text"), own = cells[number];
    text.addEventListener("pointerleave", leave);
    text.addEventListener("blur", leave);
    text.addEventListener("focus", () => { if (!at && text.matches(":focus-visible")) point(own[0]); });
    text.addEventListener("keydown", event => {
      const now = own.indexOf(at);
      const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: own.length - 1 }[event.key];
      if (event.key === "Escape") leave();
      if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const cell = own[Math.max(0, Math.min(own.length - 1, to))];
      cell.scrollIntoView({ block: "nearest" });
      point(cell);
    });
  });
  if (select) select.addEventListener("change", () => show(Number(select.value)));
  const asked = /^#series=(\\d+)$/.exec(location.hash);
  const count = data.reach.length;
  show(asked && Number(asked[1]) < count ? Number(asked[1]) : select ? Number(select.value) : 0);
})();
"""


def ramp_rules() -> str:
    """A rule for each step of colour, `n20` (lowest) to `p20` (highest), and the legend's gradient."""
    colours = diverging()
    rules, stops = [], []
    for step in range(-LEVELS, LEVELS + 1):
        red, green, blue, _ = colours(0.5 + 0.5 * _REACH * step / LEVELS)
        colour = f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
        if step:
            name = f"{'n' if step < 0 else 'p'}{abs(step)}"
            # Black where it contrasts more than white does (WCAG 2); the ink of headings is too light in the middle.
            letters = "#000000" if (luminance((red, green, blue)) + 0.05) ** 2 >= 0.05 * 1.05 else "#ffffff"
            rules.append(f".{name}{{background:{colour};color:{letters}}}")
        if step % 4 == 0:
            stops.append(colour)
    return f":root {{ --ramp: linear-gradient(90deg, {', '.join(stops)}); }}\n{''.join(rules)}\n"
