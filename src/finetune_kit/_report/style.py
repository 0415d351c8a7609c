"""The style sheet of the HTML pages: light and dark, narrow and wide, screen and print."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#f3f5f7;--line:#c9d1d9;
--shade:rgba(0,0,0,.3);--accent:0,114,178;--link:#0a5ea8}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--paper:#14171a;--soft:#20252a;
--line:#454d55;--shade:rgba(255,255,255,.4);--accent:86,180,233;--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:75rem;padding:0 1rem 3rem;font:1rem/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
a{color:var(--link)}
h1{margin:1.2rem 0 .2rem;font-size:clamp(1.25rem,5vw,1.8rem);line-height:1.25;
overflow-wrap:anywhere}
h2{margin:2rem 0 .6rem;padding-top:.5rem;border-top:1px solid var(--line);font-size:1.35rem}
h3{margin:1.2rem 0 .4rem;font-size:1.05rem}
p{margin:.5rem 0;max-width:60rem}.lead{margin:0 0 .5rem;opacity:.85;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.3rem 0 1rem;padding:0}
small{font-size:.82em;opacity:.85}
.wide{overflow-x:auto;margin:.6rem 0;max-width:100%;
background:linear-gradient(90deg,var(--paper) 40%,transparent) 0/3rem 100%,
linear-gradient(270deg,var(--paper) 40%,transparent) 100%/3rem 100%,
linear-gradient(90deg,var(--shade),transparent) 0/.8rem 100%,
linear-gradient(270deg,var(--shade),transparent) 100%/.8rem 100%;
background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
.hint{display:none;font-size:.85rem;opacity:.85}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0;font-weight:600}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
thead th{vertical-align:bottom}
tbody th,thead th:first-child{text-align:left;overflow-wrap:break-word;max-width:16rem}
tbody th{font-weight:500}
td small,td.interval{white-space:nowrap}
.beside{display:flex;flex-wrap:wrap;gap:0 1.8rem;align-items:flex-start}
.beside>*{min-width:0;max-width:100%}.beside>:last-child{flex:0 1 23.5rem}
.beside:has(.small)>:last-child{flex-basis:28rem}
dl{margin:.4rem 0}dl div{display:flex;flex-wrap:wrap;gap:0 .8rem;padding:.15rem 0;
border-bottom:1px solid var(--line)}
dt{min-width:13rem;font-weight:500}dd{margin:0;flex:1 1 14rem;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:.8rem 0}
.tile{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;padding:.6rem 1rem;
display:flex;flex-direction:column;flex:0 1 auto;min-width:8.5rem}
.tile b{font-size:1.7rem;line-height:1.2}
.caution{border-left:.3rem solid #d55e00;background:var(--soft);padding:.5rem .8rem;margin:.8rem 0;
max-width:60rem}
.caution ul{margin:.4rem 0 0;padding-left:1.2rem}
summary{cursor:pointer}summary i{font-style:normal;color:var(--link);white-space:nowrap}
.matrix th,.matrix td{padding:.15rem;border:0;vertical-align:middle}
.matrix thead th{font-weight:500;font-size:.85rem;padding:.3rem .25rem;text-align:center;
vertical-align:bottom;max-width:7rem;overflow-wrap:break-word}
.matrix thead th:first-child{font-weight:400;text-align:left;padding-left:0}
.matrix tbody th{padding-right:.6rem;max-width:11rem}
.cell{background:rgba(var(--accent),calc(var(--share)*.55));border-radius:.3rem;min-width:3.3rem;
line-height:1.25;padding:.25rem 0}
.small .cell{min-width:5rem}
.large thead th:not(:first-child) span{writing-mode:vertical-rl;transform:rotate(180deg);
max-height:11rem;overflow-wrap:anywhere;text-align:left}
.compact th,.compact td{padding:.18rem .5rem;vertical-align:baseline}
.compact thead th{white-space:nowrap}
.sortable fieldset{border:0;padding:0;margin:.5rem 0}.sortable legend{float:left;margin-right:.8rem}
.sortable label{margin-right:.8rem;white-space:nowrap}
.sortable table,.sortable thead{display:block}
.sortable tr{display:grid;grid-template-columns:13rem repeat(var(--columns),8.5rem)}
.sortable tbody{display:flex;flex-direction:column;max-height:80vh;overflow-y:auto}
.sortable:has([value="0"]:checked) tbody tr{order:var(--o0)}
.sortable:has([value="1"]:checked) tbody tr{order:var(--o1)}
.sortable:has([value="2"]:checked) tbody tr{order:var(--o2)}
.sortable:has([value="3"]:checked) tbody tr{order:var(--o3)}
.sortable:has([value="4"]:checked) tbody tr{order:var(--o4)}
.sortable:has([value="5"]:checked) tbody tr{order:var(--o5)}
.sortable:has([value="6"]:checked) tbody tr{order:var(--o6)}
.cell,.cell button{text-align:center}
.cell button{all:unset;cursor:pointer;display:block;width:100%;padding:0 .2rem;
text-decoration:underline dotted;text-align:center;box-sizing:border-box}
.cell button:focus-visible,.close:focus-visible,.wide:focus-visible,a:focus-visible,
summary:focus-visible{outline:3px solid var(--link);outline-offset:2px}
[popover]{max-width:min(60rem,94vw);max-height:88vh;overflow:auto;border:1px solid var(--line);
border-radius:.6rem;padding:1rem;color:var(--ink);background:var(--paper)}
[popover]::backdrop{background:rgba(0,0,0,.5)}
.close{position:sticky;top:0;float:right;font:inherit;padding:.3rem .8rem}
.gallery{display:flex;flex-wrap:wrap;gap:.9rem 1.2rem}
.gallery figure{margin:0;max-width:20rem;break-inside:avoid}
.gallery img{width:9.5rem;max-width:44vw;height:auto;margin-right:.25rem;border-radius:.3rem}
figcaption{font-size:.9rem;line-height:1.35;overflow-wrap:break-word}
.drawing{margin:1rem 0 1.6rem;break-inside:avoid}.drawing svg{max-width:100%;height:auto}
.drawing text{fill:currentColor}
.freeze-plan tbody td{padding:.05em .6em}
@media(max-width:56rem){.hint{display:block}
tbody th,thead th:first-child{position:sticky;left:0;background:var(--paper);max-width:9rem}
.compact tbody th{max-width:11rem}}
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff;--soft:#fff;--line:#999;
--accent:0,114,178;--link:#000}nav,[popover]{display:none}body{max-width:none}
body{font-size:10pt}.wide{overflow:visible}.freeze-plan{font-size:8pt}.hint,summary i{display:none}
details::details-content{content-visibility:visible;height:auto}
tr{break-inside:avoid}h2,h3,h2+p{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
