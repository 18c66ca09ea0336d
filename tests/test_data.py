"""data.py: words, splits and the countdown checker. Each docstring names the mistake that the test guards against."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from data import TASKS, Countdown, Problem


@pytest.fixture(scope="module")
def task() -> Countdown:
    return TASKS["countdown"]()


def test_words_round_trip_and_numbers_are_single_tokens(task):
    """A number in pieces makes arithmetic a spelling exercise, and the count of answer tokens wrong."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        problem = task.problem(rng)
        assert task.decode(task.encode(problem.prompt)) == problem.prompt
        assert len(task.encode(problem.prompt)) == task.prompt_tokens
        units = task.units(problem)
        assert [len(u) for u in units] == [6] * 3 and sum(map(len, units)) == task.answer_tokens
        assert units[-1][-1] == task.end != task.pad and task.end not in sum(units, [])[:-1]
    assert len({task.encode(str(n))[0] for n in range(51)}) == 51


def test_unknown_character_is_a_clear_error(task):
    with pytest.raises(ValueError, match="no word for 'x' in '3 x 4'"):
        task.encode("3 x 4")


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_problem(task, seed):
    """Test problems in the training pool: in a pilot it was 7.6 % of them."""
    sizes = {"pool": 3000, "validation": 500, "test": 2048, "unseen": 2048}
    keys = {name: {(*sorted(p.numbers), p.target) for p in task.split(name, n, seed)} for name, n in sizes.items()}
    other = {(*sorted(p.numbers), p.target) for p in task.split("pool", 3000, seed + 1)}
    assert {name: len(k) for name, k in keys.items()} == sizes
    for a, b in itertools.combinations(keys, 2):
        assert not keys[a] & keys[b]
    assert not other & keys["test"] and other != keys["pool"]
    assert all(7 in k[:-1] for k in keys["unseen"]) and not any(7 in k[:-1] for k in keys["pool"] | keys["test"])


def test_impossible_split_says_so():
    with pytest.raises(ValueError, match="different pool problems exist, not 700"):
        TASKS["countdown"](numbers=2).split("pool", 700, 0)


def test_demonstrations_earn_full_reward_and_random_play_is_legal(task):
    rng = np.random.default_rng(1)
    for numbers in (2, 3, 4, 6):
        some = TASKS["countdown"](numbers=numbers)
        for _ in range(100):
            problem, play = some.problem(rng), some.random_play(rng)
            assert some.reward(problem, "".join(problem.demo)) == some.best(problem) == 1.0
            assert 10 <= problem.target <= 50 and all(0 < int(u.split("=")[1]) <= 50 for u in problem.demo + play.demo)
            result = int(play.demo[-1].split("=")[1])
            assert some.reward(Problem("", [], play.numbers, result), "".join(play.demo)) == 1.0


def oracle(numbers: list[int], target: int) -> set[str]:
    """Every right answer to three numbers, by brute force over exact fractions."""
    found, ops = set(), {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    for a, b, c in set(itertools.permutations(map(Fraction, numbers))):
        for p, q in itertools.product("+-*/", repeat=2):
            if p == "/" and b == 0:
                continue
            r = ops[p](a, b)
            for x, y in ((r, c), (c, r)):
                if not (q == "/" and y == 0) and ops[q](x, y) == target and r >= 0 and r.denominator == 1:
                    found.add(f"{a}{p}{b}={r}\n{x}{q}{y}={target}")
    return found


def test_every_solution_earns_full_reward_and_nothing_else_does():
    """A checker that knows one solution, or one order of operands."""
    task, rng = TASKS["countdown"](numbers=3), np.random.default_rng(2)
    for _ in range(40):
        problem = task.problem(rng)
        right = oracle(problem.numbers, problem.target)
        assert "".join(problem.demo) in right
        assert all(task.reward(problem, answer) == 1.0 for answer in right)
        for _ in range(100):  # random play is well-formed: right if the oracle lists it, else 0.1
            answer = "\n".join(task.play(problem.numbers, rng)[0])
            assert task.reward(problem, answer) == (1.0 if answer in right else 0.1)


SMALL_REWARD = [
    "9*5=45\n7-3=4\n45-4=41",  # misses the target
    "9*5=46\n7-3=4\n46+4=50",  # wrong arithmetic
    "9*5=45\n9-3=6\n45+6=51",  # a number used twice
    "9*5=45\n45+4=49\n49+0=49",  # numbers that are not there
    "9/5=1\n7*3=21\n21*1=21",  # a division that is not exact
    "3/0=0\n7*9=63\n63+0=63",  # by zero
    "7//2=3\n9*5=45\n7-3=4".replace("//", "/"),
    f"{'9' * 400}*5=45\n7-3=4\n45+4=49",
]
NO_REWARD = [
    "",
    "9*5=45",
    "9*5=45\n7-3=4",
    "9*5=45\n7-3=4\n45+4=49\n",  # trailing text
    "9*5=45\n7-3=4\n45+4=49\n45+4=49",  # two answers
    "9*5=45\n7-3=4\n45+4=49 ",
    "9*5=45\n7-3=4\n45+4=49<pad>",
    "9 * 5=45\n7-3=4\n45+4=49",
    "9**5=45\n7-3=4\n45+4=49",
    "7//3=2\n9*5=45\n45+2=47",
    "2.5*4=10\n7-3=4\n45+4=49",
    "+9*5=45\n7-3=4\n45+4=49",
    "-9*5=-45\n7-3=4\n45+4=49",
    "9*5=45=45\n7-3=4\n45+4=49",
    "9*5*1=45\n7-3=4\n45+4=49",
    "٩*5=45\n7-3=4\n45+4=49",  # an Arabic digit, which int() would read
    "²*5=45\n7-3=4\n45+4=49",  # a digit for str.isdigit, but not for int()
    "__import__('os')\n7-3=4\n45+4=49",
    "9*5=45\n7-3=4\n" + "4" * 10_000_000,
    "95**97**99\n" * 1_000_000,
]


@pytest.mark.parametrize(("reward", "answers"), [(0.1, SMALL_REWARD), (0.0, NO_REWARD)])
def test_checker_on_wrong_and_hostile_answers(task, reward, answers):
    """Checkers that accept 2**3, evaluate what they read, or hang on 95**97**99."""
    problem = task.parse("3 7 9 5 -> 49")
    assert task.reward(problem, "9*5=45\n7-3=4\n45+4=49") == 1.0
    for answer in answers:
        assert task.reward(problem, answer) == reward, answer[:60]


@pytest.mark.parametrize(
    "text",
    ["", "3 7 9 5", "3 7 9 5 -> ", "3 7 -> 4", "3 x 9 5 -> 4", "-3 7 9 5 -> 4", "3 7 9 5 -> 4 5", "3 99 9 5 -> 4"],
)
def test_malformed_question_is_a_clear_error(task, text):
    with pytest.raises(ValueError, match="expected 4 whole numbers, -> and a target|too large"):
        task.parse(text)
