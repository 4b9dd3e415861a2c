//! Provides the page's style: a light and a dark set of colours, the same roles.

/// Series colours keep their order; text never takes them.
pub(crate) const CSS: &str = "
:root { color-scheme: light; --page:#fcfcfb; --raised:#f3f2ef; --ink:#1c1b19; --muted:#66645f; --grid:#dedcd6;
  --s0:#2a78d6; --s1:#c2570c; --s2:#1a8a5c; --s3:#8b4fc9; --s4:#b3273f; --heat:#1f5fb4; }
@media (prefers-color-scheme: dark) { :root { color-scheme: dark; --page:#191817; --raised:#242321; --ink:#eeece8;
  --muted:#a5a29b; --grid:#3a3835; --s0:#5b9df0; --s1:#f08a3c; --s2:#3fbf87; --s3:#b98af0; --s4:#ee6b7f; --heat:#7db4ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .85rem; margin: 0 0 .25rem; color: var(--muted); font-weight: 600; }
.muted { color: var(--muted); font-size: .9rem; } .wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--grid); text-align: right;
  white-space: nowrap; } th { font-weight: 600; color: var(--muted); font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: 1.5rem;
  margin: 1rem 0; } .pair.wide { display: flex; flex-wrap: wrap; }
figure { margin: 0; min-width: 0; max-width: 38rem; } .wide figure { flex: 0 0 auto; max-width: none; }
figcaption { font-size: .9rem; color: var(--muted); margin-bottom: .4rem; }
svg { display: block; max-width: 100%; height: auto; } .wide svg { max-width: none; }
svg text { fill: var(--muted); font: 12px system-ui, sans-serif; } svg text.token { font: 11px ui-monospace, monospace; }
svg .mark { fill: none; stroke: var(--s1); } svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .zero { stroke: var(--muted); } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .85rem; padding: 0; margin: .4rem 0 0;
  list-style: none; } .legend i { display: inline-block; width: 1.2rem; border-top: .2rem solid; margin-right: .35rem;
  vertical-align: middle; }
article { background: var(--raised); border-radius: .5rem; padding: .9rem 1rem; margin-bottom: .8rem; }
.prompt { margin: 0 0 .6rem; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; } .answers { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
.answers div { flex: 1 1 16rem; min-width: 0; }
pre { margin: 0; font: .85rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.code { background: var(--raised); border-radius: .5rem; padding: .6rem .8rem; }
@media (max-width: 40rem) { main { padding: 1.25rem .75rem 3rem; } svg text { font-size: 19px; }
  .pair, .pair.wide { display: block; } figure { margin-bottom: 1.5rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; } }
";
