// The class of a token is chosen here and in `text_view.level` by the same rule; a test compares the two.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("values").textContent);
  const panels = [...document.querySelectorAll(".panel")];
  const cells = panels.map(panel => [...panel.querySelectorAll(".text > span")]);
  const select = document.querySelector("select");
  const tip = document.getElementById("tip");
  const minus = "\u2212";
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
  const chosen = /^#series=(\d+)$/.exec(location.hash);
  const count = data.reach.length;
  show(chosen && Number(chosen[1]) < count ? Number(chosen[1]) : select ? Number(select.value) : 0);
})();
