"""Words, tasks, demonstrations in units, and exact rewards. Nothing in here knows of models.

A task draws problems; a problem is a prompt and a demonstration, cut into the units that hints are made of:

    >>> task = TASKS["countdown"]()
    >>> problem = task.parse("3 7 9 5 -> 49")
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45+4=49")       # one equation (one unit) a line
    1.0
    >>> task.reward(problem, "9*5=45\\n7-3=4\\n45-4=41")       # well-formed, but it misses the target
    0.1
"""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import tiktoken


@dataclass(eq=False)  # so that problems can be keys
class Problem:
    prompt: str
    demo: list[str] = field(default_factory=list)  # units; joined, they are the whole answer
    numbers: list[int] = field(default_factory=list)
    target: int = 0
    answers: list[str] = field(default_factory=list)  # in place of a demonstration: answers to be scored


class Task:
    """What every task shares: words, and splits that have no problem in common.

    The words are this project's own, in tiktoken's engine: a number among them is one token. Two tokens follow that no
    text contains: <end> closes an answer, so a model must learn to write it; <pad> fills rows and is never read.

    A task defines prompt_tokens and answer_tokens (the longest there are; an answer's <end> counts), and

        problem(rng, unseen=False) -> Problem     parse(text) -> Problem               a user's own
        key(problem): equal for the same problem  reward(problem, answer) -> float     for any text at all
    """

    WORD = r"\d+| -> |.|\n"

    SHARES = {"pool": (0, 60), "validation": (60, 70), "test": (70, 100)}  # percent of all problems

    leaves: dict[str, float] = {}  # where they can be listed: the answers that are worth more than all others
    scored = False  # some problems come with scored answers in place of a demonstration
    random_play = None  # where there are rules to learn before any method: rng -> a problem and legal play in it

    def __init__(self, words: list[str]):
        self.end, self.pad, self.vocab, self.alphabet = len(words), len(words) + 1, len(words) + 2, set("".join(words))
        self.writable = self.vocab  # so many words, the first ones, may occur in an answer
        if long := [word for word in words if not re.fullmatch(self.WORD, word)]:
            raise ValueError(f"{long[0]!r} cannot be a word: only numbers, single characters and ' -> ' can")
        ranks = {word.encode(): i for i, word in enumerate(words)}
        special = {"<end>": self.end, "<pad>": self.pad}
        self.words = tiktoken.Encoding("nanouft", pat_str=self.WORD, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        if unknown := sorted(set(text) - self.alphabet):
            known = "".join(sorted(self.alphabet))
            raise ValueError(f"no word for {unknown[0]!r} in {text[:60]!r}: expected only {known!r}")
        return self.words.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        return self.words.decode(ids)

    def read(self, ids: list[int]) -> str | None:
        """The text of an answer; None if it was not ended."""
        return self.decode(ids[:-1]) if ids[-1:] == [self.end] else None

    def units(self, problem: Problem) -> list[list[int]]:
        """The demonstration's units as ids. <end> belongs to the last: a full hint leaves nothing to write."""
        units = [self.encode(unit) for unit in problem.demo]
        return units[:-1] + [units[-1] + [self.end]] if units else []

    def best(self, problem: Problem) -> float:
        """What counts as solved: a reward as good as the demonstration's."""
        return self.reward(problem, "".join(problem.demo)) if problem.demo else 1.0

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        """`size` different problems. A problem's key alone decides which split it is in, whatever the seed; 'unseen' is
        what lies outside the training distribution, so it shares nothing with the others anyhow. None comes twice, so
        what is drawn often comes first: two sets are alike only if they are as large a part of what there is."""
        rng, found, (first, end) = np.random.default_rng([seed, *name.encode()]), {}, self.SHARES[name]
        for _ in range(50 * size + 10_000):
            if len(found) == size:
                return list(found.values())
            problem = self.problem(rng, unseen=name == "unseen")
            if first <= zlib.crc32(repr(self.key(problem)).encode()) % 100 < end:
                found.setdefault(self.key(problem), problem)
        raise ValueError(f"some {len(found)} different {name} problems exist, not {size}: ask for less or a wider task")


class Countdown(Task):
    """Reach the target from the numbers by + - * /, each number used exactly once; one equation a line.

    Reward 1.0: right. 0.1: the right number of equations, each well-formed, but arithmetic, operands or target wrong.
    0: anything else. Numbers are whole and unsigned, so the result of a division that is not exact cannot be written.
    """

    SHARES = Task.SHARES | {"unseen": (0, 60)}  # percent of those with the unseen number: as many as for testing
    LONGEST = 2_000  # characters; more is no answer (Python refuses to read numbers of over 4,300 digits)

    def __init__(self, numbers: int = 4, high: int = 10, limit: int = 50, low: int = 10, unseen: int = 7):
        """`numbers` of them in 1..high, results up to `limit`, targets from `low`; `unseen`: see Task.split."""
        if not (2 <= numbers <= 6 and 1 <= unseen <= high <= limit and 1 <= low <= limit):
            raise ValueError("countdown: 2 to 6 --numbers, 1 <= --unseen <= --high <= --limit, 1 <= --low <= --limit")
        super().__init__(["\n", " ", " -> ", *"+-*/=", *map(str, range(max(limit, 9) + 1))])
        self.numbers, self.high, self.limit, self.low, self.unseen = numbers, high, limit, low, unseen
        self.prompt_tokens, self.answer_tokens = 2 * numbers + 2, 6 * (numbers - 1)

    def problem(self, rng: np.random.Generator, unseen: bool | None = False) -> Problem:
        """Numbers, the target that random play reached from them, and that play as the demonstration. None: with or
        without the unseen number."""
        for _ in range(10_000):
            numbers = self.draw(rng)
            equations, target = self.play(numbers, rng)
            if target >= self.low and unseen in (None, self.unseen in numbers):
                return self.pose(numbers, target, equations)
        raise ValueError(f"random play hardly ever reaches --low {self.low}: lower it, or raise --high or --numbers")

    def random_play(self, rng: np.random.Generator) -> Problem:
        """What a base model learns from: legal play, and a target that has nothing to do with it."""
        numbers = self.draw(rng)
        target = self.problem(rng, unseen=None).target
        return self.pose(numbers, target, self.play(numbers, rng)[0])

    def draw(self, rng: np.random.Generator) -> list[int]:
        return rng.integers(1, self.high + 1, self.numbers).tolist()

    def play(self, numbers: list[int], rng: np.random.Generator) -> tuple[list[str], int]:
        """Random legal moves until one number is left: the equations, and that number."""
        left, equations, draws = list(numbers), [], []
        while len(left) > 1:
            draws = draws or rng.random((8 * len(numbers), 3)).tolist()  # many at once: each call costs
            x, y, z = draws.pop()
            i, j = int(x * len(left)), int(y * len(left))
            a, b, op = left[i], left[j], "+-*/"[int(z * 4)]
            result = apply(a, op, b)
            if i != j and result is not None and 1 <= result <= self.limit:
                equations.append(f"{a}{op}{b}={result}")
                left = [n for k, n in enumerate(left) if k not in (i, j)] + [result]
        return equations, left[0]

    def pose(self, numbers: list[int], target: int, equations: list[str]) -> Problem:
        demo = [e + "\n" for e in equations[:-1]] + equations[-1:]
        return Problem(f"{' '.join(map(str, numbers))} -> {target}\n", demo, numbers, target)

    def parse(self, text: str) -> Problem:
        """A user's own problem, like "3 7 9 5 -> 49"."""
        left, _, right = text.partition("->")
        numbers, target = left.split(), right.split()
        if not all(map(is_number, numbers + target)) or len(numbers) != self.numbers or len(target) != 1:
            raise ValueError(f"cannot read {text[:60]!r}: expected {self.numbers} whole numbers, -> and a target")
        if too_large := [n for n in numbers + target if len(n) > 9 or int(n) > self.limit]:
            raise ValueError(f"{too_large[0][:60]} is too large: this model's words end at {self.limit} (--limit)")
        return self.pose([int(n) for n in numbers], int(target[0]), [])

    def key(self, problem: Problem) -> tuple:
        """What makes two problems the same."""
        return (*sorted(problem.numbers), problem.target)

    def reward(self, problem: Problem, answer: str) -> float:
        if len(answer) > self.LONGEST:
            return 0.0
        equations = [parse_equation(line) for line in answer.split("\n")]
        if len(equations) != len(problem.numbers) - 1 or None in equations:
            return 0.0
        left = list(problem.numbers)
        for a, op, b, result in equations:
            for n in (a, b):
                if n not in left:
                    return 0.1
                left.remove(n)
            if apply(a, op, b) != result:
                return 0.1
            left.append(result)
        return 1.0 if left == [problem.target] else 0.1


def apply(a: int, op: str, b: int) -> int | None:
    """a op b, or None where that is no whole number."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    return a + b if op == "+" else a - b if op == "-" else a * b


def join(digits: Iterable[int]) -> str:
    return "".join(map(str, digits))


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def parse_equation(line: str) -> tuple[int, str, int, int] | None:
    """'3+7=10' -> (3, '+', 7, 10); None unless the line is number, sign, number, =, number and nothing else."""
    left, _, result = line.partition("=")
    for op in "+-*/":
        a, _, b = left.partition(op)
        if is_number(a) and is_number(b) and is_number(result):
            return int(a), op, int(b), int(result)
    return None


class Walk(Task):
    """What trees and chains share: H steps with B choices each, and only the whole of them is judged.

    Reward 1.0: right; 0.1: wrong; 0: no walk at all, which no policy can write: B words are its choice, its answers are
    H steps long, without an <end>. So nothing tells one wrong answer from another, and a policy that never sees a right
    one has nothing to learn from: that is the exponential wall, B^H answers high.
    """

    WRONG = 0.1

    def __init__(self, horizon: int, B: int, digits: int = 1):
        self.choices = set(map(str, range(B)))
        super().__init__([*sorted(self.choices), "\n"])
        self.horizon, self.B, self.digits = horizon, B, digits  # digits: to a step
        self.answer_tokens, self.writable = digits * horizon, B

    def steps(self, choices: np.ndarray) -> list[str]:
        """(H, digits) choices -> units."""
        return [join(step) for step in choices.reshape(self.horizon, self.digits)]

    def is_walk(self, text: str) -> bool:
        return len(text) == self.answer_tokens and set(text) <= self.choices

    def units(self, problem: Problem) -> list[list[int]]:
        return [self.encode(unit) for unit in problem.demo]

    def read(self, ids: list[int]) -> str:
        return self.decode(ids)


class Tree(Walk):
    """The theorem's own object: B actions, H steps, and one good leaf, drawn once, from `seed`.

    With `fork` = k the demonstration leaves the best path k steps before its end, for a leaf worth 0.5: who only
    imitates it stays there, who only explores meets B^H.
    """

    def __init__(self, horizon: int = 8, B: int = 4, fork: int = 0, seed: int = 0):
        if fork > horizon:
            raise ValueError(f"--fork {fork}: the tree has only --horizon {horizon} steps")
        super().__init__(horizon, B)
        rng = np.random.default_rng([seed, horizon, B])
        best = rng.integers(0, B, horizon)
        demo = best.copy()
        if fork:
            demo[-fork:] = rng.integers(0, B, fork)
            demo[-fork] = (best[-fork] + rng.integers(1, B)) % B  # away from the best path
        self.prompt_tokens, self.only = 1, Problem("\n", self.steps(demo))
        self.leaves = {"".join(self.steps(demo)): 0.5, "".join(self.steps(best)): 1.0}  # one leaf without a fork

    def problem(self, rng: np.random.Generator, unseen: bool = False) -> Problem:
        return self.only

    def split(self, name: str, size: int, seed: int) -> list[Problem]:
        return [self.only] * size

    def parse(self, text: str) -> Problem:
        return self.only

    def reward(self, problem: Problem, answer: str) -> float:
        return self.leaves.get(answer, self.WRONG if self.is_walk(answer) else 0.0)


class Chain(Walk):
    """Arithmetic with a horizon: for x_1 .. x_H write the running sums z_i = z_(i-1) + x_i modulo B.

    With `free` = 1 a step is y_i z_i, with y_i of one's own choice and z_i = z_(i-1) + y_i + x_i: B^H answers are right
    of B^2H. B = 2 is then the chain of parities (AdaBack 2506.18110).
    """

    def __init__(self, horizon: int = 8, B: int = 4, free: int = 0):
        super().__init__(horizon, B, 1 + free)
        self.prompt_tokens = horizon + 1

    def problem(self, rng: np.random.Generator, unseen: bool = False) -> Problem:
        x, y = rng.integers(0, self.B, (2, self.horizon))
        y *= self.digits - 1
        z = (x + y).cumsum() % self.B
        return self.pose(x.tolist(), self.steps(np.stack([y, z], 1)[:, -self.digits :]))

    def pose(self, numbers: list[int], demo: list[str]) -> Problem:
        return Problem(join(numbers) + "\n", demo, numbers)

    def parse(self, text: str) -> Problem:
        """A user's own problem, like "31020312"."""
        if len(text) != self.horizon or not set(text) <= self.choices:
            raise ValueError(f"cannot read {text[:60]!r}: expected {self.horizon} digits below {self.B}")
        return self.pose([int(x) for x in text], [])

    def key(self, problem: Problem) -> str:
        return problem.prompt

    def reward(self, problem: Problem, answer: str) -> float:
        if not self.is_walk(answer):
            return 0.0
        z = 0
        for i, x in enumerate(problem.numbers):
            step = answer[i * self.digits :][: self.digits]  # "yz" or "z"
            z = (z + x + int(step[:-1] or 0)) % self.B
            if step[-1] != str(z):
                return self.WRONG
        return 1.0


class Skills(Task):
    """Two skills for one model, told apart by a tag, on six digits.

    A, an instruction: reverse them and add 3 to each (modulo 10). It is taught by demonstrations. Reward 1.0: right.
    B, a preference: sorted is best (1.0), reversed half as good (0.5). It is taught by scored answers of the base,
    which copies, reverses, sorts, or writes any digits, whatever the tag. 0.1: any other six digits; 0: anything else.
    """

    DIGITS = 6
    scored = True

    def __init__(self):
        super().__init__([*"0123456789", "A", "B", "\n"])
        self.prompt_tokens, self.answer_tokens = self.DIGITS + 2, self.DIGITS + 1
        self.writable = self.end + 1  # anything but <pad>: what the base writes must be an answer

    def problem(self, rng: np.random.Generator, unseen: bool = False) -> Problem:
        return self.pose("AB"[rng.integers(2)], rng.integers(0, 10, self.DIGITS).tolist())

    def random_play(self, rng: np.random.Generator) -> Problem:
        problem, other = self.problem(rng), rng.integers(0, 10, self.DIGITS)
        x = problem.numbers
        return replace(problem, demo=[join([x, x[::-1], sorted(x), other][rng.integers(4)])])

    def goals(self, tag: str, x: list[int]) -> dict[str, float]:
        """The answers that are worth something."""
        return {join((n + 3) % 10 for n in x[::-1]): 1.0} if tag == "A" else {join(x[::-1]): 0.5, join(sorted(x)): 1.0}

    def pose(self, tag: str, x: list[int]) -> Problem:
        return Problem(f"{tag}{join(x)}\n", list(*self.goals(tag, x)) if tag == "A" else [], x)

    def parse(self, text: str) -> Problem:
        """A user's own problem, like "A314159"."""
        if text[:1] not in ("A", "B") or not is_number(text[1:]) or len(text) != self.DIGITS + 1:
            raise ValueError(f"cannot read {text[:60]!r}: expected A or B and {self.DIGITS} digits, like A314159")
        return self.pose(text[0], [int(digit) for digit in text[1:]])

    def key(self, problem: Problem) -> str:
        return problem.prompt

    def reward(self, problem: Problem, answer: str) -> float:
        well_formed = is_number(answer) and len(answer) == self.DIGITS
        return self.goals(problem.prompt[0], problem.numbers).get(answer, 0.1 if well_formed else 0.0)


TASKS = {"countdown": Countdown, "tree": Tree, "chain": Chain, "skills": Skills}
