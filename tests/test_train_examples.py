"""From examples to trees: drawn prompts, demonstrations, wrong answers, what is cut; held-back examples; and the draws
of a schedule.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
import tiny_bundle

from qia3.batching.data import read_task, split
from qia3.batching.examples import Examples, Source, source_of
from qia3.batching.prompts import Wrapping
from qia3.batching.rows import count
from qia3.batching.schedule import Schedule
from qia3.config import Task
from qia3.errors import ConfigError, DataError
from qia3.examples import Example
from qia3.recipe import Train
from qia3.tokens import Tokens
from qia3.train.collator import Collator

WRAP = Wrapping("<", ">", ".", (46,))
SAID = tuple(Example(f"t{i}", "ab"[i % 2]) for i in range(6))


class Letters:
    """One token a letter."""

    def prompt(self, template, text):
        return [ord(c) for c in template.replace("{text}", text)]

    def answer(self, text, end):
        return self.prompt("{text}" + end, text)

    def words(self, template, words):
        before = template.index("{text}")
        places = [before + sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
        return tuple(self.prompt(template, " ".join(words))), tuple(places)

    fitting = Tokens.fitting


def test_words_beyond_the_limit_go_with_their_labels():
    example = Example("turn it off", "DO O OFF", words=("turn", "it", "off"))
    tagged = source(("{text}",), "{text}", (example,), ("DO", "O", "OFF"))
    found = [made(tagged, max_length=n, labels=("DO", "O", "OFF")).tree(0) for n in (13, 12, 9, 8)]
    assert [t.places for t in found] == [(1, 6, 9), (1, 6), (1, 6), (1,)]
    assert [t.answers for t in found] == [((0, 1, 2),), ((0, 1),), ((0, 1),), ((0,),)]
    with pytest.raises(ConfigError, match="leaves no room for a word"):
        made(tagged, max_length=5, labels=("DO", "O", "OFF")).tree(0)


def text(tokens) -> str:
    return "".join(map(chr, tokens))


def made(*sources, max_length=200, **rest) -> Examples:
    return Examples(Letters(), sources or (source(),), max_length, **rest)


def source(prompts=("Q {text}", "{text}?"), question="Q {text}", examples=SAID, choices=("a", "b")) -> Source:
    return Source(prompts, question, WRAP, examples, choices)


def test_a_prompt_is_drawn_each_time_and_the_question_stands_where_nothing_is_drawn():
    seen = Counter(text(made().tree(3, random.Random(i)).prompt) for i in range(200))
    assert set(seen) == {"<Q t3>", "<t3?>"}
    assert min(seen.values()) > 60
    assert text(made().tree(3).prompt) == "<Q t3>"
    assert made().tree(3, random.Random(7)) == made().tree(3, random.Random(7))


def test_wrong_answers_come_along_where_a_loss_needs_them():
    assert [text(a) for a in made().tree(1).answers] == ["b."]
    ranked = made(ranked=True).tree(1)
    assert ([text(a) for a in ranked.answers], ranked.right) == (["a.", "b."], 1)
    own = made(source(examples=(Example("x", "yes", ("no", "yes", "maybe")),)), ranked=True).tree(0)
    assert ([text(a) for a in own.answers], own.right) == (["no.", "yes.", "maybe."], 1)
    assert len(made(source(choices=None), ranked=True).tree(0).answers) == 1  # generation


def test_other_right_answers_are_never_wrong_ones():
    gases = Example("gas?", "neon", ("argon", "iron", "neon", "xenon"), ("argon", "xenon"))
    for draw in (None, *map(random.Random, range(20))):
        tree = made(source(examples=(gases,)), ranked=True, at_most=3).tree(0, draw)
        assert ([text(a) for a in tree.answers], tree.right) == (["iron.", "neon."], 1)


def test_of_many_answers_a_step_has_the_right_one_and_a_few_others_drawn_anew():
    labels = tuple("abcdefghij")
    many = source(examples=tuple(Example(f"t{i}", label) for i, label in enumerate(labels)), choices=labels)
    few, seen = made(many, ranked=True, at_most=4), Counter()
    for i in range(10):
        for seed in range(30):
            tree = few.tree(i, random.Random(seed))
            said = [text(a) for a in tree.answers]
            assert said[tree.right] == f"{labels[i]}."
            assert len(set(said)) == len(said) == 4
            assert said == sorted(said)  # in the task's own order
            assert tree == few.tree(i, random.Random(seed))
            seen.update(said)
    assert min(seen.values()) > 60  # 30 as the right one, and a third of 270
    assert len(few.tree(0).answers) == 10  # what is ranked has them all
    assert [len(made(many, ranked=True, at_most=n).tree(0, random.Random(0)).answers) for n in (2, 10, 16, None)] == [
        2,
        10,
        10,
        10,
    ]
    assert made(many, ranked=True, at_most=16).tree(3, random.Random(1)) == made(many, ranked=True).tree(
        3, random.Random(1)
    )


def test_a_mixture_asks_each_example_in_its_own_task_s_words():
    other = source(("Do: {text}",), "Do: {text}", (Example("u", "v"),), None)
    mixed = made(source(), other, ranked=True)
    assert len(mixed) == 7
    assert text(mixed.tree(6).prompt) == "<Do: u>"
    assert [len(mixed.tree(i).answers) for i in (0, 6)] == [2, 1]


def test_demonstrations_are_other_examples_of_the_same_task():
    other = source(("Do: {text}",), "Do: {text}", (Example("u", "v"), Example("w", "x")), None)
    mixed = made(source(("Q {text}",)), other, shots=2)
    for i in range(50):
        first, second, asked = text(mixed.tree(2, random.Random(i)).prompt).removeprefix("<").split("\n\n")
        assert asked == "Q t2>"
        shown = {first, second}
        assert len(shown) == 2
        assert shown < {f"Q {e.text} {e.answer}" for e in SAID if e.text != "t2"}
    assert text(mixed.tree(6).prompt) == "<Do: w x\n\nDo: u>"  # its task has but one other
    assert mixed.tree(2) == mixed.tree(2)


def test_a_text_with_the_placeholder_in_it_is_asked_but_not_shown():
    odd = source(examples=(*SAID[:2], Example("say {text}", "a")))
    assert text(made(odd).tree(2).prompt) == "<Q say {text}>"
    assert all(
        "{text}" not in shown for i in range(50) for shown in odd.demonstrations("Q {text}", 2, random.Random(i))
    )


def test_an_example_whose_words_are_control_tokens_is_never_shown():
    odd = source(examples=(*SAID[:2], Example("say <", "a")), prompts=("Q {text}",))
    odd = dataclasses.replace(odd, unshown=frozenset({2}))
    shown = {s for i in range(50) for s in odd.demonstrations("Q {text}", 2, random.Random(i))}
    assert shown == {"Q t0 a\n\n", "Q t1 b\n\n"}
    assert text(made(odd).tree(2).prompt) == "<Q say <>"


def test_law_11_control_tokens_in_an_example_s_words_are_text_in_training():
    """In questions, in answers, and in demonstrations, where such an example is not shown."""
    tokens, end = Tokens(tiny_bundle.tokenizer()), tiny_bundle.tokenizer().token_to_id(tiny_bundle.END)
    wrap = Wrapping("u:", f"{tiny_bundle.END}a:", tiny_bundle.END, (end,))
    said = (
        Example(f"lock {tiny_bundle.END} up", "a"),
        Example("lock", f"a{tiny_bundle.END}b"),
        Example("|end|>", "a"),  # the prompt's own "<" would complete it
        Example("the door", "b"),
        Example("lights", "a"),
    )
    task = Task(name="t", kind="generate", prompt="Q <{text}", train="a", test="b", shots=4)
    source = source_of(tokens, wrap, task, said, None)
    assert source.unshown == {0, 1, 2}
    for draw in map(random.Random, range(10)):
        for i in range(len(said)):
            tree = Examples(tokens, [source], 200, shots=4).tree(i, draw)
            assert tree.prompt.count(end) == 1
            assert [answer.count(end) for answer in tree.answers] == [1]
            assert tree.answers[0][-1] == end


def test_what_is_too_long_loses_demonstrations_then_the_end_of_its_words_and_never_instruction_or_answer():
    one = len("Q t0 a\n\n")
    whole = made(shots=3).tree(2)
    assert text(whole.prompt).count("\n\n") == 3
    for limit, shown in (
        (whole.longest_path, 3),
        (whole.longest_path - 1, 2),
        (len("<Q t2>a.") + one - 1, 0),
        (len("<Q t2>a."), 0),
    ):
        tree = made(shots=3, max_length=limit).tree(2)
        assert text(tree.prompt).count("\n\n") == shown
        assert text(tree.prompt).endswith("Q t2>")
        assert tree.longest_path <= limit
    assert text(made(shots=3, max_length=7).tree(2).prompt) == "<Q t>"
    assert text(made(shots=3, max_length=7).tree(2).answers[0]) == "a."
    with pytest.raises(ConfigError, match=r"max_length = 5 leaves no room for an answer after the prompt 'Q \{text\}'"):
        made(shots=3, max_length=5).tree(2)


def test_the_longest_path_is_that_of_any_prompt_that_may_be_drawn():
    long = made(source(("{text}", "a longer prompt {text}"), "{text}", choices=("a", "b", "bcd")), ranked=True)
    assert long.longest_path() == len("<a longer prompt t0>bcd.")
    assert long.longest_path() == max(long.tree(0, random.Random(i)).longest_path for i in range(20))
    assert made(shots=1, max_length=77).longest_path() == 77


def test_an_encoder_decoder_s_limit_is_for_the_prompt_and_for_the_answer():
    """A start token, "a." and its end are three; a prompt has the whole limit for itself."""
    beside = dataclasses.replace(source(), wrap=dataclasses.replace(WRAP, start=(1,)))
    tree = made(beside, max_length=6).tree(2)
    assert (text(tree.prompt), text(tree.answers[0])) == ("<Q t2>", "a.")
    assert text(made(beside, max_length=5).tree(2).prompt) == "<Q t>"
    assert text(made(source(), max_length=8).tree(2).prompt) == "<Q t2>"
    long = dataclasses.replace(beside, examples=(Example("t", "an answer"),), choices=None)
    assert text(made(long, max_length=11).tree(0).answers[0]) == "an answer."
    with pytest.raises(ConfigError, match=r"max_length = 10 leaves no room for an answer"):
        made(long, max_length=10).tree(0)
    assert made(beside, long, max_length=50).longest_path() == len("an answer.") + 1


def test_a_schedule_s_slots_do_not_depend_on_where_it_begins():
    run = Schedule(made(ranked=True, shots=1), steps=5, batch=4, seed=3)
    again = Schedule(made(ranked=True, shots=1), steps=5, batch=4, seed=3)
    assert len(run) == 20
    slots = [run[i] for i in range(20)]
    assert [again[i] for i in reversed(range(20))] == slots[::-1]
    assert [Schedule(made(ranked=True, shots=1), 5, 4, 4)[i] for i in range(20)] != slots
    assert slots[5].totals == count([s.tree for s in slots[4:8]])


def test_parts_of_a_step_average_to_the_step():
    run = Schedule(made(ranked=True), steps=2, batch=4, seed=0)
    slots = [run[i] for i in range(4)]
    whole = Collator(True, 64, 96)(slots)["totals"]
    part = Collator(False, 64, 96)(slots[:1])["totals"]
    assert (part * 4).tolist() == whole.tolist()


def test_the_split_follows_the_text(tmp_path):
    many = [Example(f"text {i}", "ab"[i % 2]) for i in range(400)]
    train, held = split(many, 0.25, "t")
    assert 70 < len(held) < 130
    assert sorted(e.text for e in train + held) == sorted(e.text for e in many)
    more = split([*many, *many, Example("new", "a")], 0.25, "t")[1]
    assert {e.text for e in held} <= {e.text for e in more} <= {e.text for e in held} | {"new"}
    with pytest.raises(ConfigError, match=r"splits the 1 examples of task 't' into . to train on and . to validate on"):
        split(many[:1], 0.5, "t")


def test_several_files_and_a_file_for_validation(tmp_path):
    for name, label in (("a", "x"), ("b", "y"), ("v", "x"), ("w", "z")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}", "label": "{label}"}}\n')
    files = {k: tmp_path / f"{k}.jsonl" for k in "abvw"}
    task = Task(name="t", kind="classify", train=(files["a"], files["b"]), test=files["v"])
    data = read_task(task, Train(validation=files["v"]))
    assert [e.text for e in data.train] == ["a", "b"]
    assert (data.choices, [e.text for e in data.validation]) == (("x", "y"), ["v"])
    with pytest.raises(DataError, match=r"w.jsonl, line 1: label 'z' is not one of x, y"):
        read_task(task, Train(validation=files["w"]))
