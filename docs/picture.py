#!/usr/bin/env python3
"""Makes docs/picture.svg: one of the plans in a report that `student-trainer ablate` wrote, with the report's own colours.

    docs/picture.py runs/quickstart/pairs/ablation/report.html 2    # the second plan: the one that is committed
"""
import pathlib
import re
import sys

report = pathlib.Path(sys.argv[1]).read_text()
number = int(sys.argv[2]) if len(sys.argv) > 2 else 1
style = re.search(r"<style>(.*?)</style>", report, re.S).group(1)
figures = re.findall(r"<figcaption>([^<]*)</figcaption><svg ([^>]*)>(.*?)</svg>", report, re.S)
plans = [figure for figure in figures if 'class="token"' in figure[2] and figure[0] != "links of the record"]
if not 1 <= number <= len(plans):
    sys.exit(f"{sys.argv[1]} has {len(plans)} plans; there is no plan {number}")
caption, attributes, cells = plans[number - 1]
picture = (
    f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>\n<title>{caption}</title>\n<style>{style}</style>\n'
    f'<rect width="100%" height="100%" fill="var(--page)"/>\n{cells}\n</svg>\n'
)
out = pathlib.Path(__file__).with_name("picture.svg")
out.write_text(picture)
print(f"{out}: {caption}, {len(picture.encode()) / 1000:.0f} kB")
