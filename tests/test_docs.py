"""The README and the pages of docs/, checked against what is there."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import tiny_bundle
from click.testing import CliRunner

from qia3.cli import qia3

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = {page: page.read_text(encoding="utf-8") for page in [*TOP, *sorted((ROOT / "docs").glob("*.md"))]}
ALL = "\n".join(PAGES.values())
EXAMPLES = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "examples").glob("*/README.md"))}


def verbs(group: click.Group = qia3, before: str = "") -> dict[str, click.Command]:
    """Every command by its words: "run", "adapter info"."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= verbs(command, f"{before}{name} ") if isinstance(command, click.Group) else {before + name: command}
    return found


def tree() -> dict[str, str]:
    """Path -> phrase of the tree in docs/design.md."""
    block = next(b for b in re.findall(r"^```\w*\n(.*?)^```$", ALL, re.S | re.M) if b.startswith("qia3/"))
    found, parent = {}, ""
    for line in block.splitlines():
        name, phrase = re.fullmatch(r"\s*(\S+)\s{2,}(\S.*)", line).groups()
        path = parent + name if line.startswith(" ") else name
        parent = parent if line.startswith(" ") else name
        found[path] = phrase
    return found


def test_every_path_in_the_tree_exists():
    assert [path for path in tree() if not (ROOT / path).is_dir()] == []


def test_every_folder_is_in_the_tree():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("needs a git checkout: what git ignores is not part of the project")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    tops = {f"{Path(name).parts[0]}/" for name in listed if "/" in name}
    rooms = {f"qia3/{p.parent.name}/" for p in (ROOT / "qia3").glob("*/__init__.py")}
    assert tops | rooms == set(tree())


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_every_verb_has_help_with_an_example_and_a_line_in_the_readme(verb):
    result = CliRunner().invoke(qia3, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example:\n    qia3 {verb}" in result.output
    assert f"| `qia3 {verb} " in README or f"| `qia3 {verb}`" in README


def test_every_example_in_the_help_parses():
    for verb, command in verbs().items():
        for line in re.findall(rf"^  qia3 {verb} ?(.*)$", command.epilog, re.M):
            words = [w.strip('"') for w in re.findall(r'"[^"]*"|\S+', line)]
            command.make_context(verb, words)


def test_every_command_in_the_docs_is_a_verb_with_those_options():
    known = verbs()
    for words in re.findall(r"`qia3 ([^`]*)`", "\n".join([ALL, *EXAMPLES.values()])):
        if words in ("VERB --help", "--version"):
            continue
        verb = next((v for v in sorted(known, key=len, reverse=True) if f"{words} ".startswith(f"{v} ")), None)
        assert verb, words
        options = {o for p in known[verb].params for o in p.opts}
        assert set(re.findall(r"--[a-z-]+", words)) <= options, words


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.parent.name)
def test_an_example_s_commands_parse_and_its_files_are_there(page, monkeypatch):
    """And what it shows of its build file stands in that file."""
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", EXAMPLES[page], re.S | re.M)
    for line in (line for _, block in blocks for line in block.splitlines()):
        command, *words = shlex.split(line, comments=True) if line.startswith(("qia3 ", "python ")) else [""]
        if command == "qia3":
            verb = next(v for v in (" ".join(words[:2]), words[0]) if v in verbs())
            verbs()[verb].make_context(verb, words[len(verb.split()) :])
        for word in words:
            assert not word.startswith(("examples/", "benchmarks/")) or (ROOT / word).is_file(), line
    for kind, block in blocks:
        assert kind != "toml" or block in (page.parent / "qia3.toml").read_text(encoding="utf-8"), block
    for name in re.findall(r"^\| `([^`]+)` \|", EXAMPLES[page], re.M):
        assert list(page.parent.glob(name)), name


def test_the_readme_build_file_is_a_good_one(tmp_path):
    from qia3.config import read_build

    text = re.search(r"```toml\n(.*?)```", README, re.S).group(1)
    tomllib.loads(text)
    (tmp_path / "qia3.toml").write_text(text)
    assert read_build(tmp_path / "qia3.toml").task[0].name == "home-intents"


def test_the_readme_s_python_runs(tmp_path, capsys, monkeypatch):
    texts = [b for b in re.findall(r"```python\n(.*?)```", ALL, re.S) if "Engine(" in b or "qia3.open(" in b]
    tiny_bundle.write_bundle(tmp_path / "dist" / "home-intents", tasks={"home-intents": tiny_bundle.TASKS["lamps"]})
    monkeypatch.chdir(tmp_path)
    assert len(texts) == 2  # README's and docs/python.md's
    for text in texts:
        exec(compile(text, "docs", "exec"), {})
        first, *more = capsys.readouterr().out.splitlines()
        assert first in tiny_bundle.CHOICES
        assert [len(eval(line)) for line in more] in ([], [2])


def test_the_python_of_many_tasks_runs(tmp_path, capsys, monkeypatch):
    """On a tiny bundle with adapters of the names that it asks for, which have other choices."""
    (block,) = re.findall(r"```python\n(.*?)```", EXAMPLES[ROOT / "examples/many-tasks/README.md"], re.S)
    names = re.findall(r'"(\w+)"', re.search(r"names = \[(.*)\]", block)[1])
    assert {f"{name}.train.jsonl" for name in names} < {p.name for p in (ROOT / "examples/many-tasks/tasks").iterdir()}
    tasks = dict.fromkeys(names, tiny_bundle.TASKS["lamps"])
    tiny_bundle.write_bundle(tmp_path / "dist" / "many-tasks", tasks=tasks)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "many-tasks", "exec"), {})
    told = ast.literal_eval(capsys.readouterr().out)
    assert len(told) == len(names)
    assert set(told) <= set(tiny_bundle.CHOICES)


def test_make_targets_of_the_readme_exist():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", ALL, re.M)) >= {("demo", "")}
    assert {a or b for a, b in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", ALL, re.M)} <= rules
    assert {"demo", "test", "check", "bench", "clean"} <= rules


def test_the_sample_report_has_its_place():
    assert len(re.findall(r"<!-- sample-report:(?:start|end) -->", PAGES[ROOT / "docs/reports.md"])) == 2


def test_files_that_the_readme_names_exist():
    for name in re.findall(r"`([\w/.-]+\.(?:py|txt|toml|md))`", ALL):
        inside_a_bundle = name == "report.md" or Path(name).stem == "NAME"
        assert inside_a_bundle or (ROOT / name).is_file(), name


def test_the_sample_report_adds_up_and_is_whole():
    """It is copied from a build by benchmarks/sample_report.py, never typed."""
    sample = re.search(r"<!-- sample-report:start -->\n(.*?)<!-- sample-report:end -->", ALL, re.S).group(1)
    sections = dict(re.findall(r"^\*\*(.+?)\*\*\n(.*?)(?=^\*\*|\Z)", sample, re.S | re.M))
    assert {
        "Tasks",
        "Parity with torch",
        "Memory and speed",
        "Bytes on disk",
        "Whole systems",
        "The published claim",
    } == set(sections)
    *parts, total = [
        int(n.replace(",", "")) for n in re.findall(r"^\|[^|]+\| +([\d,]+) \|", sections["Bytes on disk"], re.M)
    ]
    assert sum(parts) == total > 50_000_000


def anchors(text: str) -> set[str]:
    """What a page's headings can be reached by."""
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", (PAGES | EXAMPLES)[page]):
        path, _, anchor = (link[0] or link[1]).partition("#")
        if path.startswith("http"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        found = [(page.parent / p).resolve() for p in re.findall(r"\]\(([^)#\s]+\.md)[)#]", (PAGES | EXAMPLES)[page])]
        ahead += [p for p in found if p in PAGES | EXAMPLES and p not in reached]
    assert reached | {ROOT / "docs/index.md"} == {*PAGES, *EXAMPLES}  # the site's first page stands for the README


def test_the_site_names_every_page():
    named = re.findall(r"^[\w/-]+$", PAGES[ROOT / "docs/index.md"].split("```{toctree}")[1], re.M)
    pages = {page.stem for page in PAGES if page.parent.name == "docs"} - {"index"}
    assert set(named) == pages | {"reports/README"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_every_benchmark_can_be_started():
    """Their measurements are too long for the tests, but what they import must be there."""
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    ran = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(names)}"], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
