"""Provides real English text for runs on real models, from documentation that is already on the machine.

Sources, whichever exist: the HTML books that come with the Rust toolchain (book, reference, nomicon, cargo, rustc ...), the
POD pages inside Perl's installed modules, and the module documentation of Python's standard library. Documents are cut into train and
held-out by a hash of their name, so no document is in both, and reruns on one machine give the same bytes. Nothing is downloaded and nothing
belongs in a repository.

    python make_text.py OUT_DIR [--train-bytes N] [--heldout-bytes N]

Writes OUT_DIR/train.txt, OUT_DIR/heldout.txt and OUT_DIR/sources.json (which document went where, and how many bytes of it).
"""

import argparse
import ast
import hashlib
import html.parser
import json
import pathlib
import re
import subprocess
import sys
import sysconfig

DOCUMENT_BYTES_MAX = 24_000  # no single manual may dominate the text
DOCUMENT_BYTES_MIN = 1_500
HELDOUT_SHARE = 10  # one document in ten


class MainText(html.parser.HTMLParser):
    """Collects the text inside <main>, a block per paragraph, and leaves navigation, code listings and scripts out."""

    BLOCKS = {"p", "li", "h1", "h2", "h3", "h4", "dt", "dd", "blockquote"}
    SKIPPED = {"script", "style", "nav", "pre", "button", "svg", "table"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.inside_main = 0
        self.skipping = 0
        self.text = []

    def handle_starttag(self, tag, attrs):
        if tag == "main":
            self.inside_main += 1
        elif tag in self.SKIPPED:
            self.skipping += 1
        elif tag in self.BLOCKS:
            self.text.append("\n\n")

    def handle_endtag(self, tag):
        if tag == "main":
            self.inside_main -= 1
        elif tag in self.SKIPPED:
            self.skipping = max(0, self.skipping - 1)
        elif tag in self.BLOCKS:
            self.text.append("\n\n")

    def handle_data(self, data):
        if self.inside_main > 0 and not self.skipping:
            self.text.append(re.sub(r"\s+", " ", data))


def rust_books():
    """Yields (name, text) of every chapter of the mdBook manuals in the active Rust toolchain's documentation."""
    try:
        root = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return
    base = pathlib.Path(root) / "share/doc/rust/html"
    for book in ("book", "reference", "nomicon", "cargo", "rustc", "rustdoc", "edition-guide", "embedded-book"):
        for page in sorted((base / book).rglob("*.html")):
            if page.name in ("print.html", "toc.html", "404.html"):
                continue
            parser = MainText()
            parser.feed(page.read_text(encoding="utf-8", errors="replace"))
            yield f"rust/{book}/{page.relative_to(base / book)}", "".join(parser.text)


def perl_pages():
    """Yields (name, text) of the POD in Perl's installed modules; paragraphs are unwrapped, verbatim (indented) blocks dropped."""
    try:
        found = subprocess.run(["perl", "-e", "print join qq(\\n), @INC"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return
    seen = set()
    for root in sorted(set(found.split("\n"))):
        for path in sorted(p for p in pathlib.Path(root).rglob("*") if p.suffix in (".pm", ".pod")) if pathlib.Path(root).is_dir() else []:
            name = path.relative_to(root).as_posix()
            source = path.read_text(encoding="utf-8", errors="replace")
            if name in seen or not re.search(r"^=head1", source, re.M):
                continue
            seen.add(name)
            yield f"perl/{name}", pod_text(source)


def pod_text(source):
    """The prose of one POD document: paragraphs inside =head1 ... =cut, formatting codes resolved."""
    kept, inside, hidden = [], False, False
    for block in re.split(r"\n\s*\n", source):
        block = block.strip("\n")
        command = re.match(r"=(\w+)\s*(.*)", block, re.S)
        if command:
            word, rest = command.groups()
            inside = word != "cut"
            hidden = word in ("begin", "for") or (hidden and word != "end")
            if inside and not hidden and (word.startswith("head") or word == "item") and rest.strip(" *"):
                kept.append(rest.strip())
        elif inside and not hidden and block and not block[0].isspace():
            kept.append(" ".join(block.split()))
    text = "\n\n".join(kept)
    for _ in range(4):  # codes nest: B<I<x>>
        text = re.sub(r"L<([^<>|]*)\|[^<>]*>", r"\1", text)
        text = re.sub(r"[BICFLSX]<+\s*([^<>]*?)\s*>+", r"\1", text)
    for code, character in (("lt", "<"), ("gt", ">"), ("verbar", "|"), ("sol", "/")):
        text = text.replace(f"E<{code}>", character)
    return text


def python_modules():
    """Yields (name, text) of the docstrings of each module of Python's standard library, in the order of the source."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("site-packages", "test", "lib2to3", "idlelib")) or "/test" in name:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield f"python/{name}", "\n\n".join(doc for doc in found if doc and len(doc) > 80)


def tidy(text):
    """Whole paragraphs up to the limit, without runs of blanks, or None when too little is left to read."""
    paragraphs, size = [], 0
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = re.sub(r"[ \t]+", " ", paragraph).strip()
        if not paragraph:
            continue
        size += len(paragraph.encode()) + 2
        if size > DOCUMENT_BYTES_MAX:
            break
        paragraphs.append(paragraph)
    joined = "\n\n".join(paragraphs)
    return joined if len(joined.encode()) >= DOCUMENT_BYTES_MIN else None


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("out", type=pathlib.Path)
    arguments.add_argument("--train-bytes", type=int, default=2_000_000)
    arguments.add_argument("--heldout-bytes", type=int, default=200_000)
    options = arguments.parse_args()
    documents = []
    for source in (rust_books(), perl_pages(), python_modules()):
        for name, text in source:
            text = tidy(text)
            if text:
                documents.append((hashlib.sha256(name.encode()).digest(), name, text))
    if not documents:
        sys.exit("no documentation found: this needs a Rust toolchain with docs, Perl's modules or Python's standard library sources")
    documents.sort()  # by hash: an even mix of the sources all along
    options.out.mkdir(parents=True, exist_ok=True)
    sources = {}
    for split, limit in (("train", options.train_bytes), ("heldout", options.heldout_bytes)):
        taken, size = [], 0
        for digest, name, text in documents:
            if (digest[-1] % HELDOUT_SHARE == 0) == (split == "heldout") and size + len(text.encode()) <= limit:
                taken.append(text)
                size += len(text.encode()) + 2
                sources.setdefault(split, {})[name] = len(text.encode())
        (options.out / f"{split}.txt").write_text("\n\n".join(taken) + "\n", encoding="utf-8")
        print(f"{split}: {len(taken)} documents, {size} bytes")
    (options.out / "sources.json").write_text(json.dumps(sources, indent=1))


if __name__ == "__main__":
    main()
