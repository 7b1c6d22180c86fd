"""How a report looks, how its tables are sorted, and the sign of a table that is wider than the page."""

CSS = """
:root { color-scheme: light dark; --ink:#1d2329; --soft:#67717c; --line:#dfe3e8; --page:#fff; --card:#f6f8fa;
  --c0:#2678be; --c1:#de601e; --c2:#2a9d55; --c3:#b0379c; --c4:#8a6d1f; --c5:#4b5bd4; --bad:#c4231c;
  --good:#1e8449; }
@media (prefers-color-scheme: dark) {
  :root { --ink:#e4e8ec; --soft:#98a3ae; --line:#333b44; --page:#14181d; --card:#1c2229; --c0:#5aa9e6;
    --c1:#f08a4b; --c2:#5cc98a; --c3:#dd7acb; --c4:#d0b25a; --c5:#8f9bff; --bad:#ff6b62; --good:#58c98a; }
}
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background:
  var(--page); max-width: 1180px; margin: 0 auto; padding: 28px 24px 60px; overflow-wrap: anywhere }
h1 { font-size: 26px; margin: 0 0 4px; line-height: 1.25 }
h2 { font-size: 19px; margin: 40px 0 10px; border-bottom: 1px solid var(--line); padding-bottom: 5px }
h3 { font-size: 15.5px; margin: 26px 0 8px }
p { margin: 6px 0; max-width: 85ch }
.note, small { color: var(--soft); font-size: 13px }
.badge { font-size: 13px; font-weight: 600; padding: 2px 10px; border-radius: 11px; color: #fff; background:
  var(--soft); vertical-align: 4px; margin-left: 6px; white-space: nowrap }
.badge.good { background: #1e8449 }
.badge.bad { background: #c4231c }
.warn { border-left: 4px solid var(--bad); background: var(--card); padding: 8px 14px; margin: 14px 0;
  border-radius: 3px }
.warn ul { margin: 4px 0; padding-left: 20px }
.warn b { color: var(--bad) }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 10px 24px; margin:
  16px 0 }
dl.facts div { min-width: 0 }
dt { color: var(--soft); font-size: 12.5px }
dd { margin: 0 }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 14px 0 }
.tile { background: var(--card); border-radius: 8px; padding: 10px 18px; min-width: 120px; width: fit-content }
.tile b { font-size: 24px; display: block; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: 12.5px }
.scroll { overflow-x: auto; max-width: 100%; margin: 8px 0 }
.scroll.more { -webkit-mask-image: linear-gradient(to left, transparent, #000 36px); mask-image:
  linear-gradient(to left, transparent, #000 36px) }
.scroll.across::before { content: "wider than the page: scroll sideways \\2192"; position: sticky; left: 0; display:
  inline-block; color: var(--soft); font-size: 12.5px }
.tall > .scroll { max-height: 560px; overflow-y: auto; border: 1px solid var(--line) }
.tall thead th { position: sticky; top: 0; background: var(--page) }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 4px 12px; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal }
th { font-weight: 600; color: var(--soft) }
.n { text-align: right }
td.n { white-space: nowrap }
td.wide { overflow-wrap: anywhere; min-width: 180px }
table.sort th { cursor: pointer; white-space: nowrap }
table.sort th::after { content: " \\2195"; opacity: .4 }
table.matrix td { text-align: center; min-width: 34px; padding: 5px 6px; border: 1px solid var(--page) }
table.matrix th { border: 0; padding: 3px 8px; text-align: right; max-width: 180px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap }
table.matrix th:first-child { position: sticky; left: 0; background: var(--page) }
table.matrix tr:first-child th { vertical-align: bottom; text-align: center }
table.matrix tr:first-child th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 150px;
  overflow: hidden }
table.matrix .corner { font-weight: 400; font-size: 12px }
table.short tr:first-child th span { writing-mode: horizontal-tb; transform: none }
table.config { width: 100% }
table.config td { padding: 2px 12px }
summary { cursor: pointer; color: var(--soft); margin: 10px 0 }
.command { background: var(--card); border-radius: 6px; padding: 6px 12px; margin: 10px 0; width: fit-content }
code { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 18px;
  align-items: start }
.two { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 24px; align-items: start }
@media (max-width: 760px) {
  body { padding: 16px 14px 40px }
  .two { grid-template-columns: minmax(0, 1fr) }
  th, td { padding: 4px 7px }
  td.wide { min-width: 110px }
}
figure { margin: 0; max-width: 460px }
figcaption { font-size: 13.5px; margin-bottom: 2px }
.key { color: var(--soft); font-size: 12.5px; margin-left: 8px; white-space: nowrap }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 4px }
svg { width: 100%; height: auto; display: block; max-width: 520px }
svg text { font-size: 13px; fill: var(--soft) }
svg .small { font-size: 10px }
svg .middle { text-anchor: middle }
svg polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round }
svg .grid { stroke: var(--line); fill: none }
svg .bar { fill: var(--c0); opacity: .75 }
svg .ideal { stroke: var(--soft); stroke-dasharray: 5 4; fill: none }
svg .dot { fill: var(--c0); opacity: .45 }
.stack { display: flex; height: 26px; border-radius: 4px; overflow: hidden; margin: 10px 0; color: #fff;
  font-size: 12px }
.stack span { overflow: hidden; white-space: nowrap; padding: 4px 0; text-align: center }
.p0 { background: #6c7a89 }
.p1 { background: #8e6bbf }
.p2 { background: #a0522d }
.p3 { background: #c0392b }
.p4 { background: #d35400 }
.p5 { background: #1e8449 }
.p6 { background: #2678be }
.p7 { background: #8a6d1f }
.p8 { background: #34666b }
.p9 { background: #99a3ad }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 12px }
.card { background: var(--card); border-radius: 6px; padding: 8px; font-size: 12.5px; line-height: 1.4;
  break-inside: avoid; min-width: 0 }
.card img { width: 100%; display: block; border-radius: 3px; margin-bottom: 5px }
.card .file { color: var(--soft); font-size: 11.5px }
img.pixels, img.heat { image-rendering: pixelated }
img.heat { width: 100%; max-width: 560px; border: 1px solid var(--line) }
img.drawn { max-width: 100% }
.right { color: var(--good) }
.wrong { color: var(--bad) }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt }
  h2, h3 { break-after: avoid }
  figure, tr, .tile, .card, .matrix { break-inside: avoid }
  .tall > .scroll { max-height: none; overflow: visible; border: 0 }
  .scroll { overflow: visible }
  .scroll.more { -webkit-mask-image: none; mask-image: none }
  .scroll.across::before { content: none }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact }
  table.sort th::after { content: "" }
}
"""

SCRIPT = """
var boxes = document.querySelectorAll('.scroll');
var mark = function (box) {
  box.classList.toggle('across', box.scrollWidth > box.clientWidth + 1);
  box.classList.toggle('more', box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
};
var markAll = function () { boxes.forEach(mark); };
boxes.forEach(function (box) { box.addEventListener('scroll', function () { mark(box); }); });
window.addEventListener('resize', markAll);
document.querySelectorAll('details').forEach(function (fold) { fold.addEventListener('toggle', markAll); });
markAll();
document.querySelectorAll('table.sort th').forEach(function (head) {
  head.addEventListener('click', function () {
    var table = head.closest('table'), body = table.tBodies[0], k = head.cellIndex;
    var down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
    var value = function (row) {
      var text = row.cells[k].textContent, n = parseFloat(text.replace(/,/g, ''));
      return row.cells[k].className !== 'n' ? text : text === '-' ? -Infinity : n;
    };
    Array.from(body.rows).sort(function (a, b) {
      var x = value(a), y = value(b), order = x < y ? -1 : x > y ? 1 : 0;
      if (typeof x + typeof y === 'stringstring') order = x.localeCompare(y, undefined, { numeric: true });
      return down === '1' ? -order : order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""
