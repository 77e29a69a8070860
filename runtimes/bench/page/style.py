"""The page's stylesheet: one column on a phone, up to three on a wide screen, black on white on paper.

In: nothing. Out: CSS. It names no font that has to be fetched.
"""

from __future__ import annotations

from llmc.runtimes.charts.palette import colour_rules

_RULES = """
* { box-sizing: border-box }
html { background: var(--ground); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, sans-serif }
body { max-width: 980px; margin: 0 auto; padding: 16px; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 8px 0 4px }
h2 { font-size: 1.2rem; margin: 40px 0 4px; padding-top: 8px; border-top: 1px solid var(--edge) }
h3 { font-size: 1rem; margin: 20px 0 4px }
a { color: var(--t0) }
nav ul, .key, .absent { list-style: none; padding: 0; margin: 8px 0; display: flex; flex-wrap: wrap; gap: 4px 16px }
.absent { display: block; color: var(--soft) }
.absent li { margin: 6px 0 }
nav a { display: inline-block; padding: 4px 0 }
.key li { display: flex; align-items: center; gap: 6px }
.swatch { width: 14px; height: 14px; flex: none }
.note { color: var(--soft); margin: 4px 0 8px; max-width: 75ch }
.warning { border-left: 4px solid var(--t1); padding: 4px 12px; margin: 8px 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 8px 0 }
dt { color: var(--soft) }
dd { margin: 0 }
code { font: 0.9em ui-monospace, monospace }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 28px 40px;
  margin-top: 12px }
figure { margin: 0; min-width: 0; max-width: 470px }
figcaption { margin-bottom: 6px; font-size: 0.95rem; line-height: 1.3 }
.chart { display: block; width: 100%; height: auto; overflow: visible }
.chart text { fill: var(--ink); font-size: 12px; font-family: system-ui, sans-serif;
  paint-order: stroke; stroke: var(--ground); stroke-width: 3px; stroke-linejoin: round }
.chart .x-tick, .chart .y-tick, .chart .axis { fill: var(--soft); font-size: 11px }
.chart .inside { fill: var(--on-tone); font-size: 11px; stroke: none }
.grid line.grid { stroke: var(--edge); stroke-width: 1 }
.line { fill: none; stroke: var(--tone); stroke-width: 2 }
.mark { fill: var(--tone); stroke: var(--ground); stroke-width: 1 }
.bar { fill: var(--tone) }
.part { fill: var(--tone); stroke: var(--ground); stroke-width: 1 }
.bubble { fill: var(--tone); fill-opacity: 0.25; stroke: var(--tone); stroke-width: 1.5 }
.range, .notch { stroke: var(--tone); stroke-width: 2 }
.halo { stroke: var(--ground); stroke-width: 3.5; stroke-linecap: square }
.error { stroke: var(--ink); stroke-width: 1.5 }
.leader { stroke: var(--tone); stroke-width: 1 }
.dot { fill: none; stroke: var(--tone); stroke-width: 1 }
.ceiling { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3 }
summary { cursor: pointer; color: var(--soft); font-size: 0.85rem; padding: 6px 0 }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--t0); outline-offset: 2px }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--edge); vertical-align: top }
th { font-weight: 600 }
thead th { color: var(--soft); font-weight: 400 }
footer { margin-top: 32px; color: var(--soft); font-size: 0.85rem }
footer summary { font-size: 1rem }
@media (max-width: 600px) {
  dl { grid-template-columns: 1fr; gap: 0 }
  dd { margin-bottom: 8px }
  nav a { padding: 8px 0 }
  .wide, .wide tbody, .wide tr, .wide th, .wide td { display: block }
  .wide thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  .wide tr { border-bottom: 1px solid var(--edge); padding: 6px 0 }
  .wide th, .wide td { border: 0; padding: 1px 0 }
  .wide td:empty { display: none }
  .wide td::before { content: attr(data-label) ": "; color: var(--soft) }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt }
  nav { display: none }
  figure, tr { break-inside: avoid }
  h2, h3, figcaption { break-after: avoid }
  .grid { grid-template-columns: 1fr 1fr }
  details::details-content { content-visibility: visible; display: block; height: auto }
  * { print-color-adjust: exact }
}
"""

_EDGES = ":root { --edge: #d9dde2 }\n@media screen and (prefers-color-scheme: dark) { :root { --edge: #353b44 } }"


def stylesheet() -> str:
    """All rules."""
    return f"{colour_rules()}\n{_EDGES}\n{_RULES}"
