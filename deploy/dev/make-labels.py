#!/usr/bin/env python3
"""Makes labelled queries from the index of the LibreOffice help, for tests and measurements of search.

The help's index maps a keyword to the pages that explain it, in Chinese and in English, chosen by the people who wrote
the pages. `all` writes every keyword; `sample` writes a small, fixed, bilingual choice whose pages are in the sample.

One JSON object a line:
    lang    "zh" or "en"
    query   the keyword, or (origin "written") a question in a user's words; entries of the index that differ only in
            spacing are one query
    page    a right page, relative to the help's text folder, e.g. "scalc/guide/line_fix.html"
    anchor  the place in that page ("" where the whole page is meant)
    pages   all right pages, `page` first: a keyword may lead to several
    origin  "index" or "written"

Relies on the layout of fetch-corpora.sh. Runs no script of the help: bookmarks.js is read as text.
"""

import argparse
import html
import json
import os
import re
import sys

LANGS = {"zh": ("zh-CN", "libreoffice-help-zh-cn"), "en": ("en-US", "libreoffice-help-en-us")}

ROW = re.compile(
    r'\{url:"[^"/]+/text/(?P<page>[^"?#]+)(?:\?[^"#]*)?(?:#(?P<anchor>[^"]*))?",'
    r' app:"[^"]*", text:"(?P<text>(?:[^"\\]|\\.)*)"\}'
)

# What a user would type, rather than what an index says: (right page, Chinese, English), written from the pages' titles.
WRITTEN = [
    ("scalc/guide/line_fix.html", "冻结行", "freeze"),
    ("scalc/guide/line_fix.html", "如何冻结行或列", "freeze rows or columns"),
    ("scalc/guide/integer_leading_zero.html", "怎么让数字前面保留 0", "keep the leading zeros of a number"),
    ("scalc/guide/print_title_row.html", "打印时每一页都显示标题行", "print the header row on every page"),
    ("scalc/guide/fraction_enter.html", "在单元格里输入分数", "how do I type a fraction into a cell"),
    ("scalc/guide/cell_protect.html", "防止别人修改单元格", "stop others from changing cells"),
    ("scalc/guide/table_rotate.html", "行列互换", "swap rows and columns of a table"),
    ("scalc/guide/row_height.html", "调整行高和列宽", "make a column wider"),
    ("simpress/guide/rehearse_timings.html", "演示文稿排练计时", "rehearse how long each slide takes"),
    ("simpress/guide/photo_album.html", "用图片制作相册", "make a photo album from pictures"),
    ("simpress/guide/footer.html", "给所有幻灯片加页脚", "add a footer to all slides"),
    ("sdraw/guide/draw_sector.html", "画扇形", "draw a pie slice"),
]

PER_LANG = 60


def keywords(corpora, lang):
    """Yields (keyword, page, anchor) in the order of the help's index."""
    path = os.path.join(corpora, LANGS[lang][1], "bookmarks.js")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    for row in ROW.finditer(text):
        keyword = html.unescape(re.sub(r"\\(.)", r"\1", row["text"]))
        # "rows --  freezing" is how the index prints an entry below another.
        keyword = re.sub(r"\s+--\s+", " ", keyword).strip()
        yield keyword, row["page"], row["anchor"] or ""


def labels(corpora, lang):
    """One label for each distinct keyword, with all its pages."""
    found = {}
    for keyword, page, anchor in keywords(corpora, lang):
        label = found.get(keyword)
        if label is None:
            found[keyword] = dict(lang=lang, query=keyword, page=page, anchor=anchor, pages=[page], origin="index")
        elif page not in label["pages"]:
            label["pages"].append(page)
    return list(found.values())


def sample(corpora, docs):
    """The written questions, then index keywords: the same pages in both languages, each page once, spread evenly."""
    out, first = [], {}
    for lang in LANGS:
        # A keyword that leads to several pages could be answered from outside the sample: only clear ones are taken.
        for label in labels(corpora, lang):
            if len(label["pages"]) == 1 and (lang == "en" or re.search("[\u4e00-\u9fff]", label["query"])):
                first.setdefault((lang, label["page"]), label)
    pages = sorted(
        page
        for lang, page in first
        if lang == "en"
        and ("zh", page) in first
        and all(os.path.exists(os.path.join(docs, folder, page)) for folder, _ in LANGS.values())
    )
    for column, lang in enumerate(LANGS, start=1):
        for row in WRITTEN:
            path = os.path.join(docs, LANGS[lang][0], row[0])
            if not os.path.exists(path):
                sys.exit(f"make-labels: a written question points to `{row[0]}`, which is not in the sample")
            out.append(dict(lang=lang, query=row[column], page=row[0], anchor="", pages=[row[0]], origin="written"))
        rest = PER_LANG - len(WRITTEN)
        if len(pages) < rest:
            sys.exit(f"make-labels: only {len(pages)} pages of the sample have a keyword in both languages, need {rest}")
        out += [first[lang, pages[i * len(pages) // rest]] for i in range(rest)]
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("what", choices=["all", "sample"])
    args.add_argument("--corpora", required=True, help="folder that fetch-corpora.sh fills")
    args.add_argument("--docs", help="documents of the sample (for `sample`)")
    args.add_argument("--out", required=True, help="file to write, JSON lines")
    args = args.parse_args()
    if args.what == "sample":
        if not args.docs:
            sys.exit("make-labels: `sample` needs --docs")
        rows = sample(args.corpora, args.docs)
    else:
        rows = [label for lang in LANGS for label in labels(args.corpora, lang)]
    with open(args.out, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    counts = ", ".join(f"{sum(r['lang'] == lang for r in rows)} {lang}" for lang in LANGS)
    print(f"labels ({args.what}): {counts}", file=sys.stderr)


if __name__ == "__main__":
    main()
