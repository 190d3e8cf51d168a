// The data element holds {tokens: [text], heads: [{head, note, weights: [[number]]}]}. All text is inserted as text nodes.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("attention-data").textContent);
  const root = document.getElementById("attention-live");
  const n = data.tokens.length;
  const cell = Math.max(7, Math.min(30, Math.floor(420 / n)));
  let head = 0, chosen = n - 1, pinned = false, cellAt = null;

  function make(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function weight(query, key) { return data.heads[head].weights[query][key] || 0; }
  function mixed(red, green, blue, share) {
    const part = (full) => Math.round(255 + (full - 255) * Math.min(1, share));
    return "rgb(" + part(red) + "," + part(green) + "," + part(blue) + ")";
  }
  function written(share) { return share >= 0.005 ? share.toFixed(2) : ""; }
  function named(token) { return "“" + data.tokens[token] + "” (" + token + ")"; }

  const list = make("div", "attention-heads");
  list.setAttribute("role", "group");
  list.setAttribute("aria-label", "head");
  data.heads.forEach(function (one, number) {
    const button = make("button");
    button.type = "button";
    button.append(make("span", "", one.head), make("small", "", one.note));
    button.addEventListener("click", function () { head = number; cellAt = null; paint(); });
    list.append(button);
  });

  const line = make("div", "attention-tokens");
  data.tokens.forEach(function (token, number) {
    const button = make("button");
    button.type = "button";
    button.append(make("i", "in"), make("b", "", token), make("i", "out"));
    button.addEventListener("mouseenter", function () { if (!pinned) choose(number); });
    button.addEventListener("focus", function () { if (!pinned) choose(number); });
    button.addEventListener("click", function () {
      pinned = !(pinned && chosen === number);
      choose(number);
    });
    line.append(button);
  });

  const readout = make("p", "attention-readout");
  readout.setAttribute("aria-live", "polite");
  const map = make("div", "attention-map");
  const canvas = make("canvas");
  map.append(canvas);

  const pen = canvas.getContext("2d");
  const font = Math.max(8, Math.min(12, cell - 1)) + "px ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace";
  pen.font = font;
  const margin = Math.ceil(Math.max.apply(null, data.tokens.map((t) => pen.measureText(t).width))) + 8;
  const side = margin + n * cell + 2, scale = window.devicePixelRatio || 1;
  canvas.width = side * scale;
  canvas.height = side * scale;
  canvas.style.width = side + "px";
  canvas.style.height = side + "px";

  function draw() {
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, side, side);
    pen.font = font;
    pen.textBaseline = "middle";
    for (let query = 0; query < n; query += 1) {
      for (let key = 0; key < n; key += 1) {
        pen.fillStyle = key > query && !weight(query, key) ? "#f5f6f7" : mixed(20, 70, 135, weight(query, key));
        pen.fillRect(margin + key * cell, query * cell, cell - 1, cell - 1);
      }
      pen.textAlign = "right";
      pen.fillStyle = query === chosen ? "#1f63a8" : "#1d2329";
      pen.fillText(data.tokens[query], margin - 5, query * cell + cell / 2);
      pen.save();
      pen.translate(margin + query * cell + cell / 2, n * cell + 5);
      pen.rotate(-Math.PI / 2);
      pen.fillText(data.tokens[query], 0, 0);
      pen.restore();
    }
    pen.strokeStyle = "#1d2329";
    pen.lineWidth = 1;
    pen.strokeRect(margin - 0.5, chosen * cell - 0.5, n * cell, cell);
    if (cellAt) pen.strokeRect(margin + cellAt[1] * cell - 0.5, cellAt[0] * cell - 0.5, cell, cell);
  }

  function describe() {
    readout.textContent = "";
    if (cellAt) {
      const share = weight(cellAt[0], cellAt[1]).toFixed(4);
      readout.append("query " + named(cellAt[0]) + ", key " + named(cellAt[1]) + ": " + share);
      return;
    }
    readout.append(make("span", "out", "Below"), ": weights with " + named(chosen) + " as query. ",
      make("span", "in", "Above"), ": weights with it as key." + (pinned ? " Pinned; click it to release." : ""));
  }

  function paint() {
    Array.from(list.children).forEach((button, i) => button.setAttribute("aria-pressed", String(i === head)));
    Array.from(line.children).forEach(function (button, token) {
      const out = weight(chosen, token), into = weight(token, chosen), word = button.children[1];
      button.setAttribute("aria-pressed", String(token === chosen));
      button.children[0].textContent = written(into);
      button.children[2].textContent = written(out);
      word.style.background = out >= 0.005 ? mixed(20, 70, 135, out) : "";
      word.style.color = out > 0.5 ? "#fff" : "";
      word.style.borderTopColor = into >= 0.005 ? mixed(214, 140, 0, into) : "";
    });
    draw();
    describe();
  }
  function choose(token) { chosen = token; cellAt = null; paint(); }

  canvas.addEventListener("mousemove", function (event) {
    const box = canvas.getBoundingClientRect();
    const key = Math.floor((event.clientX - box.left - margin) / cell);
    const query = Math.floor((event.clientY - box.top) / cell);
    const inside = key >= 0 && key < n && query >= 0 && query < n;
    if (inside && !pinned) chosen = query;
    cellAt = inside ? [query, key] : null;
    paint();
  });
  canvas.addEventListener("mouseleave", function () { cellAt = null; paint(); });

  root.append(list, line, readout, map);
  root.hidden = false;
  root.parentElement.classList.add("on");
  paint();
})();
