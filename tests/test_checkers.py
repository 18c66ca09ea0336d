"""The checkers against oracles that are written another way, on answers that hypothesis makes up.

CHECK=100000 python -m pytest tests/test_checkers.py        the full mode: so many answers for each task, some minutes
"""

import os
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import TASKS, Problem
from notebooks.chain import Chain
from notebooks.one_stage import Skills

ANSWERS = int(os.environ.get("CHECK", 500))  # for each test
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}

COUNTDOWNS = {n: TASKS["countdown"](numbers=n, ops="all", high=25, limit=100) for n in (3, 4, 6)}
WALKS = [TASKS["tree"](5, 3, 2), TASKS["tree"](4, 4, 0), Chain(5, 3), Chain(4, 2, 1)]
SKILLS = Skills()


def countdown_oracle(problem: Problem, answer: str) -> float:
    """Exact fractions, a regular expression, a bag of numbers."""
    lines = [re.fullmatch(r"([0-9]+)([-+*/])([0-9]+)=([0-9]+)", line) for line in answer.split("\n")]
    lines = [line and max(map(len, line.groups())) < 10 and line for line in lines]
    if len(lines) != len(problem.numbers) - 1 or not all(lines):
        return 0.0
    bag = Counter(problem.numbers)
    for line in lines:
        a, b, result = (Fraction(line[i]) for i in (1, 3, 4))
        bag.subtract([a, b])
        if min(bag.values()) < 0 or OPERATIONS[line[2]](a, b) != result:
            return 0.1
        bag[result] += 1
    return 1.0 if +bag == Counter([problem.target]) else 0.1


def tree_oracle(task, problem: Problem, answer: str) -> float:
    return dict(sorted(task.leaves.items())).get(answer, 0.1)


def chain_oracle(task, problem: Problem, answer: str) -> float:
    """Each running sum from the start, not from the one before."""
    steps = [answer[i * task.digits :][: task.digits] for i in range(task.horizon)]
    for i, step in enumerate(steps):
        chosen = sum(int(y) for y in steps[: i + 1] for y in y[:-1])
        if (sum(map(int, problem.prompt[: i + 1])) + chosen) % task.B != int(step[-1]):
            return 0.1
    return 1.0


def walk_oracle(task, problem: Problem, answer: str) -> float:
    if not re.fullmatch(f"[0-{task.writable - 1}]{{{task.answer_tokens}}}", answer):
        return 0.0
    return (tree_oracle if task.leaves else chain_oracle)(task, problem, answer)


def skills_oracle(problem: Problem, answer: str) -> float:
    tag, digits = problem.prompt[0], problem.prompt[1:7]
    if not re.fullmatch("[0-9]{6}", answer):
        return 0.0
    if tag == "A":
        return 1.0 if all((int(a) - int(b)) % 10 == 3 for a, b in zip(answer, digits[::-1], strict=True)) else 0.1
    if list(answer) == sorted(digits):
        return 1.0
    return 0.5 if answer == digits[::-1] else 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Answers: right, nearly right, hostile

HOSTILE = [
    "",
    "\n",
    "=",
    "2**3=8",
    "95**97**99",
    "__import__('os')",
    "1e3+2=3",
    "0x10+1=17",
    "１+２=３",
    "²+1=3",
    "٣+1=4",
]
HOSTILE += [
    "-3+5=2",
    "3--5=8",
    "3+5==8",
    "3+5=8 ",
    " 3+5=8",
    "3+5=8\r",
    "3\0+5=8",
    "3+5=8=8",
    "3//5=0",
    "7/0=0",
    "0/0=0",
]
HOSTILE += ["9" * 400 + "+1=" + "9" * 400, "1" * 5000 + "+1=2", "+" * 3000, "1+1=2\n" * 400, "3,5", "True+1=2", "½+½=1"]
characters = st.sampled_from(list("0123456789+-*/=\n ") + ["１", "²", "٣", "\0", "\r", "**", "e", "."])
nonsense = st.lists(characters, max_size=40).map("".join) | st.text(max_size=20) | st.sampled_from(HOSTILE)


@st.composite
def nearly(draw, answer: str) -> str:
    """An answer with up to three small changes."""
    for _ in range(draw(st.integers(0, 3))):
        i, j = draw(st.integers(0, len(answer))), draw(st.integers(0, 2))
        answer = answer[:i] + draw(characters | st.just("")) + answer[i + j :]
    return answer


@st.composite
def equations(draw, numbers: list[int]) -> str:
    """As many well-formed equations as wanted: mostly numbers that are left, mostly right results."""
    left, lines = list(numbers), []
    for _ in numbers[1:]:
        a, b = (draw(st.sampled_from(left) | st.integers(0, 30)) for _ in range(2))
        op = draw(st.sampled_from("+-*/"))
        result = OPERATIONS[op](Fraction(a), Fraction(b))
        whole = result is not None and result.denominator == 1 and result >= 0 and draw(st.integers(0, 9))
        result = int(result) if whole else draw(st.integers(0, 99))
        lines.append(f"{a}{op}{b}={result}")
        left.append(result)
    return "\n".join(lines)


def problems(task):
    return st.integers(0, 10**6).map(lambda seed: task.problem(np.random.default_rng(seed)))


@pytest.mark.fuzz
@settings(max_examples=ANSWERS, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_countdown_against_fractions(data):
    """A second opinion on every answer: evaluated by eval, by floating point, with numbers used twice, in one order."""
    problem = data.draw(problems(COUNTDOWNS[data.draw(st.sampled_from([3, 4, 6]))]))
    answer = "".join(problem.demo)
    answer = data.draw(nearly(answer) | equations(problem.numbers) | nonsense)
    task = COUNTDOWNS[len(problem.numbers)]
    assert task.reward(problem, answer) == countdown_oracle(problem, answer)


@pytest.mark.fuzz
@settings(max_examples=ANSWERS, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_walks_and_skills_against_oracles(data):
    task = data.draw(st.sampled_from([*WALKS, SKILLS]))
    problem = data.draw(problems(task))
    digits = st.text("0123456789"[: task.writable], min_size=4, max_size=10)
    given_one = "".join(problem.demo) or "".join(sorted(problem.prompt[1:7]))
    answer = data.draw(st.just(given_one) | nearly(given_one) | digits | nonsense)
    expected = skills_oracle(problem, answer) if task is SKILLS else walk_oracle(task, problem, answer)
    assert task.reward(problem, answer) == expected


@pytest.mark.fuzz
@settings(max_examples=ANSWERS // 5, deadline=None, database=None, derandomize=True)
@given(st.data())
def test_a_demonstration_earns_its_reward_and_a_changed_token_what_the_oracle_says(data):
    task = data.draw(st.sampled_from([*COUNTDOWNS.values(), *WALKS]))
    problem = data.draw(problems(task))
    ids = sum(task.units(problem), [])
    assert task.reward(problem, task.read(ids)) == task.best(problem)
    assert task.best(problem) == (1.0 if not task.leaves else task.leaves["".join(problem.demo)])
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.integers(0, task.vocab - 1))
    answer = task.read(ids)
    reward = 0.0 if answer is None else task.reward(problem, answer)
    if task in WALKS:
        assert reward == walk_oracle(task, problem, answer)
    else:
        assert reward == (0.0 if answer is None else countdown_oracle(problem, answer))


def test_sorted_beats_reversed_where_they_are_the_same():
    assert SKILLS.reward(SKILLS.parse("B555555"), "555555") == 1.0


def every_answer(numbers: list[int]):
    """All ways to combine the numbers pairwise until one is left, operands in both orders: (equations, result)."""
    if len(numbers) == 1:
        yield [], numbers[0]
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
            for op, apply in OPERATIONS.items():
                result = apply(Fraction(a), Fraction(b)) if i != j else None
                if result is not None and result.denominator == 1 and result >= 0:
                    for later, last in every_answer([*rest, int(result)]):
                        yield [f"{a}{op}{b}={result}", *later], last


@pytest.mark.parametrize("seed", range(12))
def test_every_solution_of_three_numbers_earns_everything(seed):
    """All of them, and all other legal plays 0.1."""
    task = COUNTDOWNS[3]
    problem = task.problem(np.random.default_rng(seed))
    found = list(every_answer(problem.numbers))
    for lines, last in found:
        assert task.reward(problem, "\n".join(lines)) == (1.0 if last == problem.target else 0.1)
    assert any(last == problem.target for _, last in found) and len(found) > 50
