"""Graders: formulas, templates, metrics, a user's Python, judges, and their two routes."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.contender import Reply
from tunesmith.evaluate.similarity import METRICS, gleu, rouge_n, similarity
from tunesmith.serve.app import SERVER, create_app
from tunesmith.serve.graders.formula import FormulaError, parse_formula
from tunesmith.serve.graders.judge import UnreadableReply, read_label, read_score
from tunesmith.serve.graders.python import CellError, PythonFault, PythonGraders
from tunesmith.serve.graders.template import VariableError, as_text, fill, parse_path, written
from tunesmith.serve.models import ServedModels
from tunesmith.serve.run import running
from tunesmith.serve.wire.graders import Faults, LabelModel, ScoreModel

FEW = settings(max_examples=40, deadline=None)

# -- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 ^ 3 ^ 2", 512),
        ("-2 ^ 2", -4),
        ("2 ^ -1", 0.5),
        ("8 / 4 / 2", 1),
        ("1 - 2 - 3", -4),
        ("--a", 0.25),
        ("max(a, b, 0.1) + min(a)", 0.75),
        ("abs(-3) + floor(1.9) + ceil(1.1) + sqrt(4) + exp(0) + log(1)", 9),
        ("min + 1", 4),  # a grader may be called like a function
        ("1e-3 * .5E3", 0.5),
    ],
)
def test_formulas_follow_the_usual_rules(text: str, value: float) -> None:
    assert parse_formula(text).value({"a": 0.25, "b": 0.5, "min": 3}) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the end"),
        ("1 +", "character 4 stands 'the end'"),
        ("a b", "character 3"),
        ("a.b", "'.' at character 2"),
        ("__import__('os')", '"\'" at character 12|not understood'),
        ("abs(1, 2)", "takes 1 value, 2 given"),
        ("(" * 99 + "1" + ")" * 99, "deep"),
        ("-" * 99 + "1", "deep"),
        ("2^" * 99 + "1", "deep"),
        ("1" * 2001, "characters"),
        ("a = 1", "'=' at character 3"),
    ],
)
def test_formulas_that_cannot_be_read_say_where(text: str, words: str) -> None:
    with pytest.raises(FormulaError, match=words):
        parse_formula(text)


@pytest.mark.parametrize(
    "text", ["1 / 0", "log(0)", "sqrt(-1)", "exp(1000)", "9^9^9^9", "c", "floor(1e999)", "(-8)^0.5"]
)
def test_formulas_without_a_value_are_errors(text: str) -> None:
    with pytest.raises(FormulaError):
        parse_formula(text).value({"a": 1.0})


def test_a_long_sum_is_no_deep_tree() -> None:
    assert parse_formula("+".join("1" * 1000)).value({}) == 1000


def trees() -> st.SearchStrategy[tuple[str, float]]:
    """A formula with every bracket written, and its value by Python's own floats."""
    leaves = st.floats(0.1, 9).map(lambda value: (f"{value!r}", value)) | st.just(("a", 2.5))

    def join(inner: st.SearchStrategy[tuple[str, float]]) -> st.SearchStrategy[tuple[str, float]]:
        sums = st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda parts: (
                f"({parts[0][0]} {parts[1]}{parts[2][0]})",
                {"+": parts[0][1] + parts[2][1], "-": parts[0][1] - parts[2][1], "*": parts[0][1] * parts[2][1]}[
                    parts[1]
                ],
            )
        )
        calls = st.tuples(st.sampled_from(("min", "max")), inner, inner).map(
            lambda parts: (
                f"{parts[0]}({parts[1][0]},{parts[2][0]})",
                (min if parts[0] == "min" else max)(parts[1][1], parts[2][1]),
            )
        )
        return sums | calls | inner.map(lambda part: (f"-{part[0]}", -part[1]))

    return st.recursive(leaves, join, max_leaves=12)


@FEW
@given(trees())
def test_a_formula_has_the_value_that_python_gives_it(tree: tuple[str, float]) -> None:
    text, value = tree
    assert parse_formula(text).value({"a": 2.5}) == value


@FEW
@given(st.text("ab12.+-*/^(), eE_min" + "²٣é\0", max_size=60))
def test_any_text_is_a_formula_or_a_formula_error(text: str) -> None:
    try:
        value = parse_formula(text).value({"a": 1.0, "b": 2.0})
    except FormulaError:
        return
    assert math.isfinite(value)


# -- templates -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_variables_are_filled_in_as_text() -> None:
    item = {"question": "Why?", "turns": [{"text": "a"}, {"text": "{{item.question}}"}], "n": 1.5, "my key": None}
    spaces = {"item": item, "sample": {"output_text": "x", "output_json": {"label": True}}}
    text = "{{item.question}} {{ item.turns[1].text }} {{item.n}} {{item.my key}} {{sample.output_json.label}} {one}"
    assert fill(text, spaces) == "Why? {{item.question}} 1.5 null true {one}"
    assert fill("{{item.turns}}", spaces) == '[{"text": "a"}, {"text": "{{item.question}}"}]'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{item.nothing}}", "no item.nothing; item has a"),
        ("{{item.a.b}}", "no item.a.b"),
        ("{{item.a[0]}}", r"no item.a\[0\]"),
        ("{{other.a}}", "no variable"),
        ("{{7*7}}", "no variable"),
        ("{{item.__class__}}", "no item.__class__"),
        ("{{item..a}}", "cannot be read"),
        ("{{item.a | upper}}", "no item.a | upper"),
        ("{{sample.output_json.x}}", "not JSON"),
    ],
)
def test_variables_that_are_not_there_are_named(text: str, words: str) -> None:
    with pytest.raises(VariableError, match=words):
        fill(text, {"item": {"a": "b"}, "sample": {"output_text": "b"}})


@FEW
@given(st.text("{}ab.[0] item\n", max_size=40), JSON)
def test_filling_in_never_fails_otherwise(text: str, value: Any) -> None:
    try:
        filled = fill(text, {"item": {"a": value}, "sample": {}})
    except VariableError:
        return
    if "{{" not in text:
        assert filled == text


@FEW
@given(st.lists(st.text("ab c", min_size=1).filter(lambda name: name.strip() == name) | st.integers(0, 99), max_size=4))
def test_a_path_reads_as_it_is_written(steps: list[str | int]) -> None:
    path = ("item", *steps)
    assert parse_path(written(path)) == path


@FEW
@given(JSON)
def test_what_is_put_in_is_not_read_again(value: Any) -> None:
    assert fill("<{{item.a}}>", {"item": {"a": value}}) == f"<{as_text(value)}>"


# -- likeness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_1_for_the_same_text_and_0_for_another(metric: str) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    assert similarity(metric, text, reference=text) == pytest.approx(1)
    assert similarity(metric, "XYZW", reference="abc") == 0
    assert 0 < similarity(metric, "the quick brown fox jumps over a dog", reference=text) < 1


@FEW
@given(st.sampled_from([name for name in METRICS if name != "bleu"]), st.text(max_size=30), st.text(max_size=30))
def test_every_metric_lies_between_0_and_1(metric: str, text: str, reference: str) -> None:
    assert 0 <= similarity(metric, text, reference=reference) <= 1


def test_figures_by_hand() -> None:
    assert similarity("fuzzy_match", "this is a test", reference="this is a test!") == pytest.approx(28 / 29)
    assert rouge_n("the cat sat", "the cat ate", order=2) == pytest.approx(1 / 2)
    assert gleu("the cat", "the cat sat") == pytest.approx(3 / 6)  # 2 words and a pair, of 3 + 2 + 1


# -- Python --------------------------------------------------------------------------------------------------------


def test_a_users_python_is_run_apart_and_kept_short() -> None:
    graders = PythonGraders(limit_s=5)
    source = (
        "import json\ndef grade(sample, item):\n    print('x' * 10)\n    return len(sample['output_text']) / item['n']"
    )
    assert graders.grade(source, sample={"output_text": "ab"}, item={"n": 4}) == 0.5
    for bad, words in (
        ("def grade(sample, item):\n    return 1 / 0", "ZeroDivisionError"),
        ("def grade(sample, item): return float('nan')", "no finite number"),
        ("def other(): pass", "no function grade"),
        ("def grade(:", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
    ):
        with pytest.raises(PythonFault, match=words):
            graders.grade(bad, sample={}, item={})
    with pytest.raises(CellError) as caught:
        graders.grade("import os\ndef grade(s, i): os._exit(0)", sample={}, item={})
    assert caught.value.kind == "crashed"


def test_a_users_python_has_limits() -> None:
    with pytest.raises(CellError) as caught:
        PythonGraders(limit_s=0.6).grade("def grade(s, i):\n    while True: pass", sample={}, item={})
    assert caught.value.kind == "timeout"
    graders = PythonGraders(limit_s=5)
    with pytest.raises(PythonFault, match="MemoryError"):
        graders.grade("def grade(s, i): return len(bytearray(4 * 2**30))", sample={}, item={})
    environment = "import os\ndef grade(s, i): return len([k for k in os.environ if 'TUNESMITH' in k])"
    assert graders.grade(environment, sample={}, item={}) == 0


def test_a_users_python_reaches_no_network_and_no_files_where_the_kernel_can_see_to_it(tmp_path: Path) -> None:
    graders = PythonGraders(limit_s=10)
    apart = graders.apart()
    if not all(apart.values()):
        pytest.skip(f"this kernel keeps a process from: {apart}")
    secret = tmp_path / "secret.txt"
    secret.write_text("0.5")
    source = """
import os, socket, json, decimal, sqlite3
def grade(sample, item):
    try:
        if item["kind"] == "read":
            return float(open(item["path"]).read())
        if item["kind"] == "write":
            open(item["path"], "w").write("x")
        elif item["kind"] == "list":
            os.listdir(os.path.dirname(item["path"]))
        elif item["kind"] == "connect":
            socket.create_connection(("127.0.0.1", item["port"]), 1)
        elif item["kind"] == "signal":
            os.kill(os.getppid(), 0)
        elif item["kind"] == "own":
            open("own.txt", "w").write("1")
            return float(open("own.txt").read())
        return 1
    except OSError:
        return 0
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        item = {"path": str(secret), "port": server.getsockname()[1]}
        got = {kind: graders.grade(source, sample={}, item=item | {"kind": kind})
               for kind in ("read", "write", "list", "connect", "signal", "own")}  # fmt: skip
    assert got == {"read": 0, "write": 0, "list": 0, "connect": 0, "signal": 0, "own": 1}
    assert secret.read_text() == "0.5"


# -- judges --------------------------------------------------------------------------------------------------------


def said(text: str) -> Reply:
    return Reply(text, 1, 1, 0.0, "stop")


def test_a_judges_score_is_read_strictly() -> None:
    grader = ScoreModel(type="score_model", name="s", model="m", input=[{"role": "user", "content": "x"}], range=[1, 5])
    assert [read_score(grader, said(text)) for text in ("3", " 4.5\n", '{"result": 2}', '{"score": "1"}')] == [
        3,
        4.5,
        2,
        1,
    ]
    for text in ("", "about 3", "6", "0.9", "nan", "[3]", '{"result": true}', '{"result": 9}'):
        with pytest.raises(UnreadableReply):
            read_score(grader, said(text))


def test_a_judges_label_is_read_strictly() -> None:
    grader = LabelModel(
        type="label_model", name="l", model="m", input=[{"role": "user", "content": "x"}],
        labels=["good", "bad", "Bad"], passing_labels=["good"],
    )  # fmt: skip
    assert [read_label(grader, said(text)) for text in ("good", '"Good".', "bad", "Bad")] == [
        "good",
        "good",
        "bad",
        "Bad",
    ]
    for text in ("", "not bad", "BAD", "good or bad"):
        with pytest.raises(UnreadableReply):
            read_label(grader, said(text))


# -- over HTTP -----------------------------------------------------------------------------------------------------

CHECK = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
         "operation": "eq"}  # fmt: skip
LIKE = {"type": "text_similarity", "name": "like", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
        "evaluation_metric": "rouge_l"}  # fmt: skip
CODE = {"type": "python", "name": "code", "source": "def grade(sample, item): return len(sample['output_text'])"}
JUDGE = {"type": "score_model", "name": "judge", "model": "red", "input": [{"role": "user", "content": "Rate."}]}
BOTH = {"type": "multi", "name": "both", "graders": {"a": CHECK, "b": LIKE}, "calculate_output": "0.5 * a + 0.5 * b"}


def run(server: openai.OpenAI, grader: Any, sample: str = "no card", answer: str = "card") -> Any:
    return server.fine_tuning.alpha.graders.run(grader=grader, model_sample=sample, item={"answer": answer})


def test_the_client_runs_graders(server: openai.OpenAI) -> None:
    assert run(server, CHECK).reward == 0 and run(server, CHECK, "card").reward == 1
    assert run(server, {**CHECK, "operation": "ne"}).reward == 1
    assert run(server, {**CHECK, "operation": "like"}).reward == 1
    assert run(server, {**CHECK, "operation": "like"}, "CARD").reward == 0
    assert run(server, {**CHECK, "operation": "ilike"}, "CARD").reward == 1
    assert run(server, LIKE).reward == pytest.approx(2 / 3)
    assert run(server, CODE).reward == 7
    both = run(server, BOTH)
    assert both.reward == pytest.approx(1 / 3) and both.sub_rewards == {"a": 0, "b": pytest.approx(2 / 3)}
    assert both.metadata.type == "multi" and both.metadata.execution_time >= 0
    errors = both.metadata.errors.model_dump(by_alias=True)
    assert set(errors) == set(Faults.model_fields) and not any(errors.values())


@pytest.mark.parametrize(
    ("grader", "flag"),
    [
        ({**CHECK, "reference": "{{item.other}}"}, "invalid_variable_error"),
        ({**CHECK, "input": "{{sample.output_json.a}}"}, "sample_parse_error"),
        ({**BOTH, "calculate_output": "a / (b - b)"}, "formula_parse_error"),
        ({**CODE, "source": "def grade(sample, item): return item['x']"}, "python_grader_runtime_error"),
        (JUDGE, "model_grader_parse_error"),
        ({**JUDGE, "input": [{"role": "user", "content": "a" * 600}]}, "model_grader_server_error"),
        ({"type": "multi", "name": "m", "graders": {"j": JUDGE}, "calculate_output": "j"}, "model_grader_parse_error"),
    ],
)
def test_a_fault_is_named_and_never_a_score(server: openai.OpenAI, grader: Any, flag: str) -> None:
    result = run(server, grader)
    assert result.reward == 0
    errors = result.metadata.errors.model_dump(by_alias=True)
    assert errors[flag] is True
    assert result.metadata.model_extra["error_details"]
    if flag == "model_grader_parse_error":
        assert result.metadata.token_usage > 0 and result.metadata.sampled_model_name == "red"


@pytest.mark.parametrize(
    ("grader", "param", "words"),
    [
        ({**CHECK, "operation": "is"}, "grader.operation", "'eq', 'ne', 'like' or 'ilike'"),
        ({**CHECK, "input": "{{x.y}}"}, "grader", "no variable"),
        ({**CHECK, "extra": 1}, "grader.extra", "not permitted"),
        ({**LIKE, "evaluation_metric": "meteor"}, "grader.evaluation_metric", "WordNet"),
        ({**BOTH, "calculate_output": "a + c"}, "grader", "names c"),
        ({**BOTH, "calculate_output": "a +"}, "grader", "the end"),
        ({**BOTH, "graders": {"a-b": CHECK}, "calculate_output": "1"}, "grader", "cannot name"),
        ({**CODE, "source": "x = 1"}, "grader.source", "no function grade"),
        ({**JUDGE, "range": [1, 1]}, "grader", "must rise"),
        ({"type": "nothing", "name": "n"}, "grader", "string_check"),
    ],
)
def test_graders_that_must_fail_are_refused(server: openai.OpenAI, grader: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        server.fine_tuning.alpha.graders.validate(grader=grader)
    assert caught.value.param == param


def test_graders_that_hold_come_back(server: openai.OpenAI) -> None:
    for grader in (CHECK, LIKE, CODE, JUDGE, BOTH):
        answer = server.fine_tuning.alpha.graders.validate(grader=grader)  # type: ignore[arg-type]
        assert answer.grader and answer.grader.to_dict() == grader
    with pytest.raises(openai.NotFoundError, match="red, blue, plain"):
        server.fine_tuning.alpha.graders.validate(grader={**JUDGE, "model": "green"})  # type: ignore[arg-type]


def test_a_users_python_is_off_until_it_is_allowed(served: ServedModels) -> None:
    from tunesmith.cli.server_verbs import server_parts

    parts = server_parts(served)
    with running(create_app(served, routes=SERVER, **parts.state)) as url:
        client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
        for grader in (CODE, {"type": "multi", "name": "m", "graders": {"c": CODE}, "calculate_output": "c"}):
            with pytest.raises(openai.PermissionDeniedError, match="--allow-python-graders"):
                run(client, grader)
