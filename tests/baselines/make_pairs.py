"""Provides the texts behind two tables of docs/which-loss.md: a teacher that reasons, and one that has read more than the student.

    quickstart corpus --out DIR --train 60000 --held-out 4000 --seed 21
    python make_pairs.py reasoning DIR OUT      problems of three and four operations: the teacher works them out, the student writes operations alone
    python make_pairs.py code SOURCES OUT       Python functions: the teacher reads the docstring before them, the student does not
    python make_pairs.py document SOURCES OUT   sections of Markdown files: the teacher reads how the file begins, the student does not
    python make_pairs.py answer DIR OUT         worked solutions: the teacher reads the answer before them, the student does not

`reasoning` writes what the teacher has to read first (teacher-reads.jsonl, for `student-trainer pretrain`), `both.jsonl` (the worked solution, then the operations that
both sides write), `chain.jsonl` (the worked solution alone: nothing is shared) and held-out.jsonl; the others write with.jsonl, without.jsonl (the student's view for
both) and held-out.jsonl.
"""

import argparse
import ast
import json
import pathlib
import random
import re
import textwrap

SOLVED = 300  # problems that the student may learn from
SAME_TEXTS = 150  # known problems among them, as text that both sides read: P is fitted there
HELD_OUT = 300
PRIVILEGED, PRIVILEGED_HELD_OUT = 120, 40
DOCUMENT_BYTES, PASSAGE_BYTES = 1200, 450


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def operations(lines):
    """What is computed, without a result: `45×5=225`, `225+19=244` are a=45×5, b=a+19."""
    names, found = {}, []
    for name, line in zip("abcdefgh", lines):
        left, sign, right = re.match(r"(\d+)([+\-×÷])(\d+)=", line).groups()
        found.append(f"{name}={names.get(left, left)}{sign}{names.get(right, right)}")
        names[line.split("=")[-1]] = name
    return found


def english(path, fewest, most):
    """Prompt, lines of the worked solution, operations."""
    for row in rows(path):
        lines = row["completion"].split("\n")[:-1]
        if row["language"] == "en" and fewest <= len(lines) <= most:
            yield row["prompt"], lines, operations(lines)


def places(parts, name, gap, start=0):
    """Ranges of bytes of parts that stand one after the other with one byte between them."""
    found = []
    for part in parts:
        end = start + len(part.encode())
        found.append(f"{name}[{start}:{end}]")
        start = end + gap
    return found


def pair(prompt, lines, found, writes_both):
    worked, short = "\n".join(lines), ";".join(found)
    links = zip(places(lines, "completion", 1), places(found, "completion", 1))
    begins = len(worked.encode()) + 1
    shared = [{"teacher": places([short], "completion", 0, begins)[0], "student": places([short], "completion", 0)[0]}]
    return {
        "teacher": {"prompt": prompt, "completion": f"{worked}\n{short}" if writes_both else worked},
        "student": {"prompt": prompt, "completion": short},
        "shared": shared if writes_both else [],
        "links": [{"teacher": there, "student": here} for there, here in links],
    }


def reasoning(source, out):
    problems = list(english(source / "train.jsonl", 2, 4))
    read, rest = problems[:24_000], problems[24_000:]
    solved = [(prompt, "\n".join([*lines, ";".join(found)])) for prompt, lines, found in read]
    record = lambda at, prompt, answer: {"text": prompt + answer} if at % 4 == 3 else {"prompt": prompt, "completion": answer}
    write(out / "teacher-reads.jsonl", [record(at, *one) for at, one in enumerate(solved)])
    same = [{"text": prompt} for prompt, lines, _ in rest if len(lines) == 2][:SAME_TEXTS]
    hard = [one for one in rest if len(one[1]) > 2][:SOLVED]
    for name, writes_both in (("both", True), ("chain", False)):
        records = same + [pair(*one, writes_both) for one in hard]
        random.Random(4).shuffle(records)
        write(out / f"{name}.jsonl", records)
    held_out = list(english(source / "heldout-numbers.jsonl", 3, 4))[:HELD_OUT]
    write(out / "held-out.jsonl", [{"prompt": prompt, "completion": ";".join(found)} for prompt, _, found in held_out])


def functions(source):
    """Head, docstring and body of short documented functions."""
    for path in sorted(source.rglob("*.py")):
        if "tests" in path.parts or path.name.startswith("test_"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        lines = text.splitlines()
        for node in nodes:
            doc = isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
            if not doc or not 80 <= len(doc) <= 500 or len(node.body) < 2 or ">>>" in doc:
                continue
            head = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
            body = textwrap.dedent("\n".join(lines[node.body[1].lineno - 1 : node.end_lineno]))
            if 100 <= len(body) <= 330 and len(head) <= 150:
                yield head, doc, textwrap.indent(body, "    ")


def sections(source):
    """How a Markdown file begins, the heading of a later section, and the prose that it begins with."""
    for path in sorted(source.rglob("*.md")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for heading in list(re.finditer(r"^#{2,3} .+$", text, re.MULTILINE))[1:]:
            before = re.sub(r"^[\[!<].*\n", "", text[: heading.start()], flags=re.MULTILINE)  # links and badges
            begins = before[:DOCUMENT_BYTES].rpartition("\n")[0].strip()
            prose = re.split(r"\n\n[^A-Z]", text[heading.end() :].lstrip()[:PASSAGE_BYTES])[0]
            prose = "".join(re.findall(r".*?[.!?]\s", prose + " ", re.DOTALL)).rstrip()
            if len(begins) >= 300 and len(prose) >= 200 and "licens" not in prose and prose.isascii() and not re.search(r"[`|<>\[\]#*]{2}|^[-*\d]", prose, re.MULTILINE):
                yield begins, heading.group(), prose
                break


def privileged(out, found):
    """Question, what the teacher reads beside it, and what both are to write, shuffled; the student reads the question."""
    found = list({answer: (question, reads, answer) for question, reads, answer in found}.values())
    random.Random(1).shuffle(found)
    plain = lambda question, reads, answer: {"prompt": question, "completion": answer}
    hint = lambda question, reads, answer: {**plain(question, reads, answer), "teacher_prompt": reads}
    train, held_out = found[:PRIVILEGED], found[PRIVILEGED:][:PRIVILEGED_HELD_OUT]
    write(out / "with.jsonl", [hint(*one) for one in train])
    write(out / "without.jsonl", [plain(*one) for one in train])
    write(out / "held-out.jsonl", [plain(*one) for one in held_out])


def code(source, out):
    privileged(out, ((f"{head}\n", f'"""{doc}"""\n{head}\n', body) for head, doc, body in functions(source)))


def document(source, out):
    privileged(out, ((f"{heading}\n\n", f"{begins}\n\n{heading}\n\n", prose) for begins, heading, prose in sections(source)))


def answer(source, out):
    solved = ((row["prompt"], row["completion"]) for row in rows(source / "train.jsonl")[:4000] if row["language"] == "en")
    privileged(out, ((prompt, f"{prompt}{worked.splitlines()[-1]}\n", worked) for prompt, worked in solved if 3 <= worked.count("\n") <= 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(makers := {"reasoning": reasoning, "code": code, "document": document, "answer": answer}))
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    makers[args.what](args.source, args.out)


if __name__ == "__main__":
    main()
