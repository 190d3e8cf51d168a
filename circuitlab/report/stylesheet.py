"""The look of the report: one column for screens and phones, black on white for print, nothing loaded from anywhere."""

STYLESHEET = """
:root { --ink: #1d2329; --muted: #5c656f; --line: #dfe2e5; --wash: #f5f6f7; --pos: #1f63a8; --neg: #bb4427;
  --mark: #fff0b8; --mono: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
.kicker { margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .06em; text-transform: uppercase; }
h1 { margin: 4px 0 14px; font-size: 32px; line-height: 1.2; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 20px; line-height: 1.3; font-weight: 650; }
section { margin-top: 44px; padding-top: 18px; border-top: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 46em; }
.lede { font-size: 19px; line-height: 1.5; }
.note { color: var(--muted); font-size: 14px; }
.warning { border-left: 4px solid #b3261e; padding: 2px 0 2px 12px; }
ul { margin: 0; padding-left: 1.2em; max-width: 46em; }
li { margin-bottom: 8px; }
code, pre { font-family: var(--mono); font-size: 13px; }
pre { margin: 0 0 14px; padding: 12px 14px; background: var(--wash); border-radius: 4px; overflow-x: auto;
  line-height: 1.45; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1px; margin-top: 22px; background: var(--line);
  border: 1px solid var(--line); }
.tiles div { background: #fff; padding: 12px 16px 14px; }
.tiles b { display: block; font-size: 26px; line-height: 1.25; font-weight: 600; }
.tiles span { display: block; font-size: 14px; }
.tiles small { color: var(--muted); font-size: 13px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 0 0 18px; font-size: 15px; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4; }
th, td { padding: 5px 18px 5px 0; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; white-space: nowrap; border-bottom-color: var(--muted); }
tbody th { font-weight: 400; }
.num { text-align: right; white-space: nowrap; }
.behaviour { font-size: 15px; }
.behaviour tbody tr:nth-child(2) { font-weight: 650; }
.behaviour tbody tr:nth-child(2) th { font-weight: 650; }
.edges { width: 100%; }
.edges th { white-space: nowrap; }
.edges td:last-child { width: 34%; padding-right: 0; }
.track { height: 9px; background: var(--wash); }
.bar { display: block; height: 100%; min-width: 1px; }
.helps { background: var(--pos); }
.hurts { background: var(--neg); }
.files code { font-size: 11.5px; }
figure { margin: 0 0 26px; }
figure img, figure svg { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: 4px; color: var(--muted); font-size: 14px; }
.heatmaps { display: flex; flex-wrap: wrap; gap: 8px 34px; align-items: flex-end; }
.heatmaps figure { max-width: 100%; }
.pair { display: flex; flex-wrap: wrap; gap: 10px 2px; margin: 0 0 18px; padding: 12px 0 8px;
  border-top: 1px solid var(--line);   font-size: 14px; line-height: 1.5; }
.pair > div { display: flex; flex-direction: column; }
.pair span { min-height: 1.5em; white-space: pre; }
.pair .above, .pair .below { padding: 0 4px; }
.names { color: var(--muted); margin-right: 10px; font-size: 13px; }
.names .above, .names .below { padding-left: 0; line-height: 1.62; }
.tok .above, .tok .below { background: var(--wash); font-family: var(--mono); font-size: 13px; line-height: 1.62; }
.tok .above { border-radius: 3px 3px 0 0; }
.diff .above, .diff .below { background: var(--mark); font-weight: 650; }
.pair .name { color: var(--muted); font-size: 11.5px; line-height: 1.4; padding: 1px 4px 0 0;
  border-top: 2px solid transparent; }
.span .name { border-top-color: var(--muted); }
.goal { margin-left: 12px; }
.goal .above, .goal .below { line-height: 1.62; font-size: 13px; font-family: var(--mono); }
@media screen and (max-width: 760px) {
  main { padding: 22px 16px 40px; }
  h1 { font-size: 25px; }
  .lede { font-size: 17px; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 8px; }
  figure img, figure svg { max-width: none; }
  .edges td:last-child { min-width: 90px; }
}
@media print {
  main { max-width: none; padding: 0; }
  h1 { font-size: 22pt; }
  .lede { font-size: 13pt; }
  .facts { font-size: 10pt; gap: 1px 18px; }
  table { font-size: 9.5pt; }
  .files code { font-size: 7pt; }
  body { font-size: 10.5pt; }
  section { margin-top: 22px; }
  h2 { break-after: avoid; }
  figure, .pair, tr, pre { break-inside: avoid; }
  .scroll { overflow: visible; }
  pre { white-space: pre-wrap; }
  .bar, .tok span, .track, .tiles { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
