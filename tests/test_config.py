"""The build file: what is read, and how each mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from qia3.config import Base, Build, Export, Parity, Task, Train, read_build
from qia3.errors import ConfigError

GOOD = """\
name = "two"

[base]
model = "smollm2-135m-instruct"

[train]
steps = 50

[[task]]
name = "intents"
kind = "classify"
prompt = "Which? {text}"
train = "train.jsonl"
test = "test.jsonl"

[[task]]
name = "commands"
kind = "generate"
train = "c-train.jsonl"
test = "c-test.jsonl"
training = { steps = 70 }
"""


def read(folder: Path, text: str, **overrides: object) -> Build:
    file = folder / "qia3.toml"
    file.write_text(text, encoding="utf-8")
    return read_build(file, **overrides)


def complaint(folder: Path, text: str, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **overrides)
    assert "qia3.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_file_is_read_with_defaults_and_paths_beside_it(tmp_path):
    plan = read(tmp_path, GOOD)
    intents, commands = plan.task
    assert intents.train == tmp_path / "train.jsonl"
    assert (plan.training_of(intents).steps, plan.training_of(commands).steps) == (50, 70)
    assert plan.training_of(commands).batch_size == plan.train.batch_size
    assert plan.output_folder == Path("dist/two")
    assert (plan.export.mode, plan.export.target, plan.base.block_size) == ("side", "ort-cpu", 64)
    assert commands.prompt == "{text}"


def preset(text, **given):
    keys = "".join(f"{k} = {v}\n" for k, v in given.items())
    return GOOD.replace("steps = 50\n", f'preset = "{text}"\n{keys}')


def test_without_a_preset_the_keys_have_their_defaults(tmp_path):
    training = read(tmp_path, GOOD.replace("steps = 50", "")).train
    assert (training.steps, training.batch_size, training.learning_rate, training.warmup_steps) == (120, 8, 2e-2, 10)
    assert (training.optimizer, training.losses, training.ranked) == (
        "adamw",
        ("lm", "unlikelihood", "length-normalised"),
        True,
    )


def test_what_generates_has_no_answers_to_compare_and_trains_the_first_loss_alone(tmp_path):
    for text in (GOOD, preset("t-few"), preset("short")):
        plan = read(tmp_path, text)
        intents, commands = plan.task
        assert (plan.training_of(intents).losses, plan.training_of(commands).losses) == (plan.train.losses, ("lm",))
    mixed = read(tmp_path, GOOD.replace('kind = "generate"', 'kind = "generate"\nmixture = ["intents"]'))
    assert mixed.training_of(mixed.task[1]).losses == mixed.train.losses


def test_a_task_is_ranked_as_its_losses_train_unless_it_says(tmp_path):
    for losses, ranking in (
        ('["lm"]', "sum"),
        ('["lm", "unlikelihood"]', "sum"),
        ('["lm", "length-normalised"]', "mean"),
    ):
        plan = read(tmp_path, GOOD.replace("steps = 50", f"losses = {losses}"))
        assert plan.ranking_of(plan.task[0]) == ranking
        said = read(
            tmp_path,
            GOOD.replace("steps = 50", f"losses = {losses}").replace('"classify"', '"classify"\nranking = "sum"'),
        )
        assert said.ranking_of(said.task[0]) == "sum"


def test_the_t_few_preset_is_the_papers_recipe(tmp_path):
    plan = read(tmp_path, preset("t-few"))
    intents, commands = plan.task
    training = plan.training_of(intents)
    assert (training.steps, training.batch_size, training.learning_rate, training.warmup_steps) == (1000, 8, 3e-3, 60)
    assert (training.optimizer, training.ranked, training.answers) == ("adafactor", True, 10_000)
    assert training.losses == ("lm", "unlikelihood", "length-normalised")
    assert plan.training_of(commands).steps == 70
    assert plan.training_of(commands).learning_rate == 3e-3
    assert plan.ranking_of(intents) == "mean"


def test_keys_that_are_given_win_over_the_preset_wherever_they_stand(tmp_path):
    plan = read(
        tmp_path,
        preset("t-few", steps=30, losses='["lm"]').replace('kind = "classify"', 'kind = "classify"\nranking = "sum"'),
    )
    assert [plan.training_of(t).steps for t in plan.task] == [30, 70]
    assert (plan.train.losses, plan.train.optimizer, plan.ranking_of(plan.task[0])) == (("lm",), "adafactor", "sum")
    other = read(tmp_path, preset("t-few", learning_rate=0.5).replace("steps = 70", 'preset = "short"'))
    commands = other.training_of(other.task[1])
    assert (commands.steps, commands.optimizer, commands.learning_rate) == (96, "adamw", 0.5)
    assert read(tmp_path, preset("t-few"), **{"train.steps": 9}).train.steps == 9


def test_several_prompts_and_files_and_the_prompt_of_the_bundle(tmp_path):
    text = GOOD.replace('prompt = "Which? {text}"', 'prompt = ["Which? {text}", "{text} Which?"]').replace(
        '"train.jsonl"', '["a.jsonl", "b.jsonl"]'
    )
    first, second = read(tmp_path, text).task
    assert first.prompts == ("Which? {text}", "{text} Which?")
    assert first.question == "Which? {text}"
    assert first.train_files == (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert (second.prompts, second.train_files) == (("{text}",), (tmp_path / "c-train.jsonl",))
    assert (
        read(tmp_path, text.replace("train =", 'eval_prompt = "Say: {text}"\ntrain =', 1)).task[0].question
        == "Say: {text}"
    )


def test_a_mixture_names_other_tasks_and_needs_no_file_of_its_own(tmp_path):
    mixed = (
        GOOD
        + '[[task]]\nname = "general"\nkind = "classify"\nmixture = ["intents", "commands"]\nshots = 2\ntest = "g.jsonl"\n'
    )
    task = read(tmp_path, mixed).task[2]
    assert (task.mixture, task.train_files, task.shots) == (("intents", "commands"), (), 2)
    assert "did you mean 'commands'?" in complaint(tmp_path, mixed.replace('"intents", "commands"', '"comands"'))
    assert "known: commands, intents" in complaint(tmp_path, mixed.replace('"intents", "commands"', '"zzz"'))
    assert "which is a mixture itself" in complaint(
        tmp_path, mixed + mixed[len(GOOD) :].replace("general", "more").replace('"intents"', '"general"')
    )
    assert "needs 'train'" in complaint(tmp_path, mixed.replace('mixture = ["intents", "commands"]\n', ""))


def test_paths_in_training_tables_are_beside_the_file(tmp_path):
    plan = read(
        tmp_path,
        preset("short", validation='"held.jsonl"', init_adapter='"start"').replace("steps = 70", "validation = 0.25"),
    )
    assert (plan.train.validation, plan.train.init_adapter) == (tmp_path / "held.jsonl", tmp_path / "start")
    intents, commands = (plan.training_of(t) for t in plan.task)
    assert (intents.validation, commands.validation) == (tmp_path / "held.jsonl", 0.25)
    assert (intents.steps, commands.init_adapter) == (96, tmp_path / "start")


def test_command_line_values_win_and_none_is_skipped(tmp_path):
    values = {
        "export.mode": "merged",
        "export.merge_task": "commands",
        "seed": 7,
        "train.steps": None,
        "output": "there",
    }
    plan = read(tmp_path, GOOD, **values)
    assert (plan.export.mode, plan.export.merge_task, plan.seed, plan.train.steps) == ("merged", "commands", 7, 50)
    assert (plan.output_folder, plan.work_folder) == (Path("there"), Path("there.work"))


def test_a_model_folder_beside_the_file_is_found(tmp_path):
    (tmp_path / "model").mkdir()
    assert read(tmp_path, GOOD.replace("smollm2-135m-instruct", "model")).base.model == str(tmp_path / "model")


def test_malformed_toml_names_its_line(tmp_path):
    assert "line 4" in complaint(tmp_path, GOOD.replace('model = "smollm2-135m-instruct"', "model = smollm2"))


@pytest.mark.parametrize(
    ("wrong", "right", "line"),
    [
        ("stepps = 50", "steps", 7),
        ("[trian]", "train", 6),
        ("[[tsak]]", "task", 9),
        ('promt = "Which? {text}"', "prompt", 12),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(tmp_path, wrong, right, line):
    old = {"steps": "steps = 50", "train": "[train]", "task": "[[task]]", "prompt": 'prompt = "Which? {text}"'}[right]
    said = complaint(tmp_path, GOOD.replace(old, wrong, 1))
    assert f"did you mean {right!r}?" in said
    assert f"(line {line})" in said


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ('["heads"]', "there are no layers called 'heads'; did you mean 'head'"),
        ('["encoder.heads"]', "there are no layers called 'heads'; did you mean 'head'"),
        ('["x"]', "known: head, "),
        ('["heda@1"]', "did you mean 'head'"),
    ],
)
def test_an_unknown_role_is_named_with_the_nearest_right_one(tmp_path, roles, said):
    told = complaint(tmp_path, GOOD.replace("[train]", f"eight_bit = {roles}\n[train]", 1))
    assert "base.eight_bit (line 6): there are no layers" in told
    assert said in told


@pytest.mark.parametrize("stack", ["encode", "", "encoder.layers"])
def test_an_encoder_decoder_has_two_stacks_of_layers(tmp_path, stack):
    told = complaint(tmp_path, GOOD.replace("[train]", f'eight_bit = ["{stack}.value@1"]\n[train]', 1))
    assert f"there is no stack called {stack!r}; an encoder-decoder has encoder and decoder" in told
    text = GOOD.replace("[train]", 'eight_bit = ["encoder.value@0-2", "decoder.down"]\n[train]', 1)
    assert read(tmp_path, text).base.eight_bit == ("decoder.down", "encoder.value@0-2")


@pytest.mark.parametrize("layers", ["", "1-", "a", "1;2", "1,", "-1"])
def test_layers_at_eight_bits_are_numbers(tmp_path, layers):
    told = complaint(tmp_path, GOOD.replace("[train]", f'eight_bit = ["down@{layers}"]\n[train]', 1))
    assert f"'down@{layers}': after '@' layer numbers are expected, such as 0-2,11" in told


def test_roles_at_eight_bits_are_in_order_and_named_once(tmp_path):
    text = GOOD.replace("[train]", 'eight_bit = ["head", "down", "head"]\n[train]', 1)
    assert read(tmp_path, text).base.eight_bit == ("down", "head")


def test_blocks_name_layers_as_eight_bits_do(tmp_path):
    text = GOOD.replace("[train]", 'blocks = { 128 = ["down@1"], 32 = ["up", "key@0-1", "up"] }\n[train]', 1)
    assert read(tmp_path, text).base.blocks == {32: ("key@0-1", "up"), 128: ("down@1",)}
    assert list(read(tmp_path, text).base.blocks) == [32, 128]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ('{ 32 = ["heads"] }', "there are no layers called 'heads'; did you mean 'head'"),
        ('{ 32 = ["up@"] }', "'up@': after '@' layer numbers are expected"),
        ('{ 48 = ["up"] }', "base.blocks.48 (line 6): 16, 32, 64, 128 or 256 is expected, not 48"),
        ('["up"]', "base.blocks (line 6)"),
        ('{ short = ["up"] }', "16, 32, 64, 128 or 256 is expected, not 'short'"),
        ('{ "²" = ["up"] }', "16, 32, 64, 128 or 256 is expected, not '²'"),
    ],
)
def test_blocks_that_are_none_are_told(tmp_path, blocks, said):
    assert said in complaint(tmp_path, GOOD.replace("[train]", f"blocks = {blocks}\n[train]", 1))


@pytest.mark.parametrize(
    "beside", ['eight_bit = ["head"]', 'blocks = { 32 = ["up"] }', 'grid = "nf4"', 'calibration = "none"']
)
def test_bits_choose_layers_by_a_text_and_nothing_else_does(tmp_path, beside):
    assert read(tmp_path, GOOD.replace("[train]", "bits = 5.0\n[train]", 1)).base.bits == 5.0
    told = complaint(tmp_path, GOOD.replace("[train]", f"bits = 5.0\n{beside}\n[train]", 1))
    assert "bits cannot be combined with" in told


@pytest.mark.parametrize("beside", ['grid = "nf4"', 'calibration = "none"'])
def test_scales_train_after_calibration_alone(tmp_path, beside):
    assert read(tmp_path, GOOD.replace("[train]", "train_scales = true\n[train]", 1)).base.train_scales
    told = complaint(tmp_path, GOOD.replace("[train]", f"train_scales = true\n{beside}\n[train]", 1))
    assert "train_scales cannot be combined with" in told


def test_an_unknown_key_with_no_near_one_lists_those_known(tmp_path):
    assert "known: model, grid, block_size, symmetric" in complaint(tmp_path, GOOD.replace("[base]", "[base]\nzzz = 1"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "commands"', 'name = "intents"', "two tasks are called 'intents'"),
        ("Which? {text}", "Which?", "must contain {text} exactly once"),
        ("Which? {text}", "{text} {text}", "must contain {text} exactly once"),
        ('name = "intents"', 'name = "none"', "'none' cannot be a name"),
        ('name = "intents"', 'name = "../up"', "letters, digits"),
        ('name = "two"', 'name = "a b"', "letters, digits"),
        ("steps = 50", "steps = 0", "train.steps"),
        ("steps = 70", "steps = -1", "steps"),
        ("steps = 70", "stepz = 70", "unknown key 'stepz'; did you mean 'steps'?"),
        ("steps = 70", "learning_rat = 70", "did you mean 'learning_rate'?"),
        ("steps = 50", 'preset = "tfew"', "train.preset"),
        ("steps = 50", 'optimizer = "sgd"', "train.optimizer"),
        ("steps = 50", 'losses = ["lm", "nll"]', "train.losses"),
        ("steps = 50", 'losses = ["lm", "lm"]', "name each loss once"),
        ("steps = 50", "losses = []", "train.losses"),
        ("steps = 50", "answers = 1", "train.answers"),
        ("steps = 50", "accumulate = 3", "accumulate = 3 does not divide batch_size = 8"),
        ("steps = 70", "accumulate = 3", "accumulate = 3 does not divide batch_size = 8"),
        ("steps = 50", "validation = 1.5", "a fraction between 0 and 1"),
        ('prompt = "Which? {text}"', 'prompt = ["{text}", "Which?"]', "must contain {text} exactly once"),
        ('prompt = "Which? {text}"', "prompt = []", "a string or a list of strings"),
        ('prompt = "Which? {text}"', "prompt = 3", "a string or a list of strings"),
        ('prompt = "Which? {text}"', 'eval_prompt = "Which?"', "must contain {text} exactly once"),
        ('train = "train.jsonl"', "train = [1]", "a string or a list of strings"),
        ('kind = "generate"', 'kind = "generate"\nranking = "mean"', "'ranking' only applies to choices"),
        ('kind = "generate"', 'kind = "write"', "kind"),
        ('model = "smollm2-135m-instruct"', "block_size = 48", "'base.model' is missing"),
        ('model = "smollm2-135m-instruct"', 'model = "m"\nblock_size = 48', "block_size"),
    ],
)
def test_each_contradiction_is_told(tmp_path, old, new, said):
    assert old in GOOD
    assert said in complaint(tmp_path, GOOD.replace(old, new, 1))


KINDS = {
    **{"true": "true", "a list": "[]", "a table": "{}", "a list of lists": "[[]]", "a list of tables": "[{}]"},
    **{"nan": "nan", "inf": "inf", "-inf": "-inf", "0": "0", "-1": "-1", "1.5": "1.5", "large": "1" + "0" * 400},
    **{"a date": "2024-07-26", "a time": "07:30:00", "a word": '"zzz"', "nothing": '""', "a key": "{ zzz = 1 }"},
}
PYDANTIC = (
    "Input",
    "Field",
    "valid ",
    "tuple",
    "Tuple",
    "dictionary",
    "instance",
    "literal",
    "parse",
    "[key]",
    "union[",
)


@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS)
def test_a_value_of_any_kind_in_any_place_is_taken_or_told_in_the_files_terms(tmp_path, value):
    tables = {"base": Base, "train": Train, "task": Task, "export": Export, "parity": Parity}
    places = [(table, field.alias or key) for table, of in tables.items() for key, field in of.model_fields.items()]
    places += [("training", key) for key in Train.model_fields]
    good = {"base": {"model": '"m"'}, "train": {}, "training": {}, "export": {}, "parity": {}}
    good["task"] = {"name": '"t"', "kind": '"classify"', "train": '"a"', "test": '"b"'}
    for table, key in places:
        made = {name: {**keys, key: value} if name == table else keys for name, keys in good.items()}
        heads = {"task": "[[task]]", "training": "[task.training]"}
        order = ("base", "train", "export", "parity", "task", *(["training"] if table == "training" else []))
        rows = [[heads.get(name, f"[{name}]"), *(f"{k} = {v}" for k, v in made[name].items())] for name in order]
        text = 'name = "two"\n' + "".join(f"{line}\n" for lines in rows for line in lines)
        try:
            read(tmp_path, text)
        except ConfigError as error:
            told = str(error).partition("qia3.toml: ")[2]
            assert key in told, (table, key, told)
            assert len(told) < 400, (table, key, told)
            assert "\n" not in told
            assert not [word for word in PYDANTIC if word in told], (table, key, told)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "steps = 50",
            "validation = []",
            "train.validation (line 7): expected a fraction between 0 and 1 or the name of a file in quotes",
        ),
        ("steps = 70", "validation = []", "task.1.training.validation (line 21): expected a fraction between 0 and 1"),
        ("steps = 50", "learning_rate = nan", "train.learning_rate (line 7): a finite number is expected, not nan"),
        (
            "steps = 70",
            "learning_rate = -inf",
            "training.learning_rate (line 21): a finite number is expected, not -inf",
        ),
        ("steps = 50", "steps = 0", "train.steps (line 7): 1 or more is expected, not 0"),
        ("steps = 70", "steps = 2.5", "training.steps (line 21): a whole number is expected, not 2.5"),
        ("steps = 50", "losses = []", "train.losses (line 7): a list of at least 1 is expected, not an empty list"),
        ("steps = 50", 'optimizer = "sgd"', "train.optimizer (line 7): 'adamw' or 'adafactor' is expected, not 'sgd'"),
        ("[[task]]", "[task]", "task (line 9): one [[task]] or more is expected, not a table"),
        (
            "steps = 70",
            "steps = 70, init_adapter = []",
            "the name of a file, in quotes, is expected, not an empty list",
        ),
    ],
)
def test_what_is_expected_is_told_with_what_is_there(tmp_path, old, new, said):
    text = GOOD.partition('\n[[task]]\nname = "commands"')[0] if old == "[[task]]" else GOOD
    assert said in complaint(tmp_path, text.replace(old, new, 1))


def test_a_mixture_with_nothing_to_name_is_told_so(tmp_path):
    alone = GOOD.partition('\n[[task]]\nname = "commands"')[0] + 'mixture = ["nope"]\n'
    assert "the mixture of 'intents' names 'nope'; no such names are defined" in complaint(tmp_path, alone)
    mixed = GOOD.replace('kind = "generate"\n', 'kind = "generate"\nmixture = ["nope"]\n', 1)
    assert "names 'nope'; known: intents" in complaint(tmp_path, mixed)


def test_a_file_without_tasks_is_refused(tmp_path):
    assert "'task' is missing" in complaint(tmp_path, GOOD.partition("[[task]]")[0])


@pytest.mark.parametrize("task", [None, "lights"])
def test_merged_needs_one_of_the_tasks(tmp_path, task):
    said = complaint(tmp_path, GOOD, **{"export.mode": "merged", "export.merge_task": task})
    assert "needs merge_task (--task), one of intents, commands" in said


def test_a_table_that_is_not_one_is_told_not_thrown(tmp_path):
    text = 'export = "ort-cpu"\n' + GOOD
    assert "export" in complaint(tmp_path, text)
    assert "export" in complaint(tmp_path, text, **{"export.mode": "merged"})


def test_missing_and_unreadable_files_are_told(tmp_path):
    with pytest.raises(ConfigError, match="the build file: cannot read"):
        read_build(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_build(tmp_path / "latin.toml")


def test_the_line_of_a_mistake_is_the_line_of_that_key_and_not_of_the_first_of_its_name(tmp_path):
    """`name` stands in lines 1, 10 and 17; a text of several lines that looks like tables comes first."""
    text = GOOD.replace('name = "commands"', 'name = "com mands"').replace(
        'prompt = "Which? {text}"', 'prompt = """\n[[task]]\nname = 1\n{text}"""'
    )
    told = complaint(tmp_path, text)
    line = text.splitlines().index('name = "com mands"') + 1
    assert f"task.1.name (line {line})" in told
    assert told.count("(line") == 1


def test_a_bad_task_is_told_once(tmp_path):
    told = complaint(tmp_path, GOOD.replace('kind = "classify"', 'kind = "rank"'))
    assert "task.0.kind (line 11)" in told
    assert "at least" not in told
    assert "task.1.training.steps (line 21)" in complaint(tmp_path, GOOD.replace("steps = 70", 'steps = "x"'))


def test_a_byte_order_mark_is_no_part_of_a_build_file(tmp_path):
    (tmp_path / "qia3.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_build(tmp_path / "qia3.toml").name == "two"


@pytest.mark.parametrize(
    "line",
    ["seed = -1", "seed = 1180591620717411303424", "seed = 4294967296", f"seed = {'9' * 5000}", "a = " + "[" * 100_000],
)
def test_numbers_and_depths_that_no_library_takes_are_refused_in_one_line(tmp_path, line):
    complaint(tmp_path, f"{line}\n{GOOD}")


@pytest.mark.parametrize(
    "line", ["steps = 100000000000000000000", "learning_rate = inf", "learning_rate = 1e9", "batch_size = 10000000"]
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, line):
    assert f"train.{line.split()[0]} (line 7)" in complaint(tmp_path, GOOD.replace("steps = 50", line))


def test_missing_keys_name_their_table(tmp_path):
    assert "'task.0.test' is missing in the table of line 9" in complaint(
        tmp_path, GOOD.replace('test = "test.jsonl"\n', "")
    )


def test_overrides_into_something_that_is_no_table_are_told_as_such(tmp_path):
    assert "train" in complaint(
        tmp_path, GOOD.replace("[train]\nsteps = 50\n", "").replace("[base]", "train = 3\n[base]"), **{"train.steps": 4}
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a remark\n"])
def test_an_empty_build_file_names_what_is_missing(tmp_path, text):
    assert "'base' is missing" in complaint(tmp_path, text)


@pytest.mark.parametrize("layers", ["3-1", "0-99999999999", "9" * 5000, "1\\n", "0-2,"])
@pytest.mark.parametrize("key", ["eight_bit = [{}]", "blocks = {{ 32 = [{}] }}"])
def test_layers_that_no_model_has_are_refused_and_counted_by_nobody(tmp_path, layers, key):
    line = key.format(f'"up@{layers}"')
    assert "up@" in complaint(tmp_path, GOOD.replace("[base]\n", f"[base]\n{line}\n"))


def test_an_output_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    for given in (".", "", "../b/."):
        plan = read(tmp_path, GOOD, output=given)
        assert (plan.output_folder.resolve(), plan.work_folder.resolve()) == (tmp_path / "b", tmp_path / "b.work")
    assert "the root of a disk" in complaint(tmp_path, GOOD, output="/")


def test_answers_have_a_length_that_a_manifest_takes(tmp_path):
    assert "max_new_tokens" in complaint(
        tmp_path, GOOD.replace('kind = "generate"', 'kind = "generate"\nmax_new_tokens = 3000000000')
    )
