#!/usr/bin/env python3
"""Makes labelled questions for `va eval` from the corpora: two sets in two languages, each in two halves.

    faq     the questions that head the sections of the Debian FAQ, and some in a user's words; right is the page, and the
            text of the section. For the collection of the FAQ's pages in both languages.
    help    the labelled queries of the sample (see make-labels.py); right is the page. For the collection of the sample.

Each set also asks what its collection cannot answer, which is what the other set asks: `expected_documents` is empty.
`NAME.tune.jsonl` is for choosing thresholds, `NAME.test.jsonl` for reporting. A section is in the same half in both
languages, by a hash of its name, so that nothing is tuned on what is reported.

One JSON object a line: question, expected_documents (ends of names), expected_text (faq only), lang. Relies on the layout
of fetch-corpora.sh. The headings are also text of the pages, as in any FAQ: the sets measure answers more than search.
"""

import argparse
import hashlib
import html
import json
import os
import re
import sys

PAGES = {"en": ("debian-faq/docs", ".en.html"), "zh": ("debian-faq-zh-cn/docs/zh-cn", ".zh-cn.html")}

TITLE = re.compile(r'<h([23]) class="title"><a id="([^"]+)"></a>(.*?)</h\1>', re.S)

# Questions in a user's words: (section, Chinese, English).
WRITTEN = [
    ("listfiles", "某个已安装的软件包里有哪些文件？", "Which files belong to a package I have installed?"),
    ("filesearch", "怎么知道一个文件是哪个软件包装上去的？", "Which package put this file on my disk?"),
    ("puttingonhold", "怎么让某个软件包不被升级？", "How do I stop a package from being upgraded?"),
    ("removeoldkernel", "旧内核可以卸载吗？", "Is it safe to remove an old kernel?"),
    ("isitdebian", "怎么查看系统的 Debian 版本号？", "How do I find out which version of Debian I run?"),
    ("bugreport", "发现缺陷应该怎么报告？", "I found a bug, where do I report it?"),
    ("contrib", "怎样成为 Debian 开发者？", "What must I do to become a Debian developer?"),
    ("sellcds", "可以卖 Debian 光盘吗？", "Am I allowed to sell CDs with Debian?"),
    ("aptcacher", "好几台机器怎样只下载一次更新？", "download updates once for several computers"),
    ("ownrepository", "怎么搭建自己的 apt 仓库？", "set up an apt repository of my own"),
    ("savedebs", "下载的 .deb 文件可以删除吗？", "Can I delete the downloaded .deb files?"),
    ("autoupdate", "系统能自动更新吗？", "Can updates be installed automatically?"),
    ("papersize", "怎么让所有程序使用同样的纸张大小？", "set the paper size for all programs"),
    ("sourceforcodenames", "版本代号取自哪里？", "Why are releases named after toys?"),
    ("java", "Debian 支持 Java 吗？", "Can I run Java programs?"),
    ("pronunciation", "Debian 这个词怎么读？", "How do you say the word Debian?"),
]

# Of the other set, in each language and half.
UNANSWERABLE = 20

# Shorter sections only point elsewhere.
LETTERS_MIN = 40


def plain(markup, between=" "):
    """The text of some HTML on one line, with `between` for each tag."""
    text = html.unescape(re.sub(r"<[^>]+>", between, markup))
    return re.sub(r"\s+", " ", text).strip()


def sections(corpora, lang):
    """Yields (name, title, page, text) of each section of the FAQ."""
    folder, ending = PAGES[lang]
    folder = os.path.join(corpora, folder)
    for page in sorted(os.listdir(folder)):
        if not page.endswith(ending) or page.startswith("index."):
            continue
        with open(os.path.join(folder, page), encoding="utf-8") as f:
            markup = f.read().split('<div class="navfooter">')[0]
        titles = list(TITLE.finditer(markup))
        ends = [title.start() for title in titles[1:]] + [len(markup)]
        for title, end in zip(titles, ends):
            heading = re.sub(r"^[\d.]+\s*", "", plain(title[3], "").replace("\xa0", " "))
            yield title[2], heading, page, plain(markup[title.end() : end])


def half(name):
    return "tune" if hashlib.sha256(name.encode()).digest()[0] % 2 == 0 else "test"


def faq(corpora):
    """[(half, row)] of the FAQ."""
    out = []
    for column, lang in enumerate(("zh", "en"), start=1):
        found = {}
        for name, heading, page, text in sections(corpora, lang):
            found[name] = (page, text)
            if heading.endswith(("?", "？")) and len(re.sub(r"\W", "", text)) >= LETTERS_MIN:
                out.append((half(name), dict(question=heading, expected_documents=[page], expected_text=text, lang=lang)))
        for row in WRITTEN:
            if row[0] not in found:
                sys.exit(f"make-questions: a written question points to the section `{row[0]}`, which is not in the FAQ")
            page, text = found[row[0]]
            asked = dict(question=row[column], expected_documents=[page], expected_text=text, lang=lang)
            out.append((half(row[0]), asked))
    return out


def sample(corpora):
    """[(half, row)] of the sample of the help."""
    out = []
    with open(os.path.join(corpora, "sample", "labels.jsonl"), encoding="utf-8") as f:
        for line in f:
            label = json.loads(line)
            row = dict(question=label["query"], expected_documents=label["pages"], lang=label["lang"])
            out.append((half(label["page"]), row))
    return out


def with_unanswerable(rows, others):
    """`rows`, and evenly chosen questions of `others` that have no answer among the documents of `rows`."""
    out = list(rows)
    for which in ("tune", "test"):
        for lang in PAGES:
            of = [row for part, row in others if part == which and row["lang"] == lang]
            few = min(UNANSWERABLE, len(of))
            for i in range(few):
                row = of[i * len(of) // few]
                out.append((which, dict(question=row["question"], expected_documents=[], lang=lang)))
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--corpora", required=True, help="folder that fetch-corpora.sh fills")
    args.add_argument("--out", required=True, help="folder to write NAME.tune.jsonl and NAME.test.jsonl to")
    args = args.parse_args()
    os.makedirs(args.out, exist_ok=True)
    of_faq, of_help = faq(args.corpora), sample(args.corpora)
    for name, rows in (("faq", with_unanswerable(of_faq, of_help)), ("help", with_unanswerable(of_help, of_faq))):
        for which in ("tune", "test"):
            chosen = [row for part, row in rows if part == which]
            with open(os.path.join(args.out, f"{name}.{which}.jsonl"), "w", encoding="utf-8") as f:
                for row in chosen:
                    f.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts = ", ".join(f"{sum(r['lang'] == lang for r in chosen)} {lang}" for lang in PAGES)
            none = sum(not r["expected_documents"] for r in chosen)
            print(f"questions ({name}, {which}): {counts}, of them {none} without an answer", file=sys.stderr)


if __name__ == "__main__":
    main()
