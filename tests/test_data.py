"""data.py: words, splits and the countdown checker. Each docstring names the mistake that the test guards against."""

import itertools

import numpy as np
import pytest

from data import TASKS, Countdown, Problem, Task
from notebooks.chain import Chain
from notebooks.countdown import minuses


@pytest.fixture(scope="module")
def task() -> Countdown:
    return TASKS["countdown"](numbers=4, ops="all")


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


def test_a_word_that_the_tokenizer_would_cut(task):
    """tiktoken's own complaint is a panic of another language."""
    with pytest.raises(ValueError, match="'sort' cannot be a word"):
        Task([*"0123456789", "sort"])


def test_splits_share_no_problem(task, seed=0):
    """A test problem whose numbers occur in the training pool, be it with another target."""
    sizes = {"pool": 500, "validation": 100, "test": 300, "unseen": 300}
    found = {name: task.split(name, n, seed) for name, n in sizes.items()}
    assert {name: len({p.prompt for p in some}) for name, some in found.items()} == sizes
    keys = {name: {(*sorted(p.numbers),) for p in some} for name, some in found.items()}
    other = {(*sorted(p.numbers),) for p in task.split("pool", 500, seed + 1)}
    for a, b in itertools.combinations(keys, 2):
        assert not keys[a] & keys[b]
    assert not other & keys["test"] and other != keys["pool"]
    assert all(7 in k for k in keys["unseen"]) and not any(7 in k for k in keys["pool"] | keys["test"])


def test_the_base_s_corpus_gives_no_test_away():
    """A play that happens to reach its target is a demonstration: of a test problem it would be a leak."""
    task, rng, hits = TASKS["countdown"](numbers=3), np.random.default_rng(0), 0
    for _ in range(5_000):
        play = task.random_play(rng)
        hit, split = play.target == int(play.demo[-1].split("=")[1]), task.place(play)
        assert split in ("pool", "base")
        hits += hit
    assert hits > 300


def test_no_trick_solves_a_problem():
    """The sum of all numbers, however random play gets there; and where two minuses are asked for, also one number
    subtracted."""
    for plays, least in ((20, 1), (1, 1), (20, 2), (1, 2)):
        task, rng = TASKS["countdown"](plays=plays, minuses=least), np.random.default_rng(0)
        problems = task.split("test", 200, 0) + [task.problem(rng) for _ in range(100)]
        assert min(map(minuses, problems)) == least and all(1 <= p.target <= 50 for p in problems)


def test_of_many_plays_rare_targets_come_as_often_as_others():
    """The most frequent play, taken as if it were one of many."""
    task, rng = TASKS["countdown"](plays=50), np.random.default_rng(0)
    task.place = lambda problem: "pool"
    task.play = lambda numbers, chance: (["often"], 3) if chance[0, 0] < 0.9 else (["rarely"], 1)
    found = [task.problem(rng).target for _ in range(400)]
    assert 150 < found.count(1) < 250


def test_impossible_split_says_so():
    with pytest.raises(ValueError, match="different pool problems exist, not 700"):
        Chain(horizon=4).split("pool", 700, 0)


def test_demonstrations_earn_full_reward_and_random_play_is_legal(task):
    rng = np.random.default_rng(1)
    for numbers, ops in itertools.product((3, 4, 6), ("plusminus", "all")):
        some = TASKS["countdown"](numbers=numbers, ops=ops)
        for _ in range(50):
            problem, play = some.problem(rng), some.random_play(rng)
            assert some.reward(problem, "".join(problem.demo)) == some.best(problem) == 1.0
            assert 1 <= problem.target <= 50 and all(0 < int(u.split("=")[1]) <= 50 for u in problem.demo + play.demo)
            result = int(play.demo[-1].split("=")[1])
            assert some.reward(Problem("", [], play.numbers, result), "".join(play.demo)) == 1.0


SMALL_REWARD = [
    "9*5=45\n7-3=4\n45-4=41",  # misses the target
    "9*5=46\n7-3=4\n46+4=50",  # wrong arithmetic
    "9*5=45\n9-3=6\n45+6=51",  # a number used twice
    "9*5=45\n45+4=49\n49+0=49",  # numbers that are not there
    "9/5=1\n7*3=21\n21*1=21",  # a division that is not exact
    "3/0=0\n7*9=63\n63+0=63",  # by zero
    "7//2=3\n9*5=45\n7-3=4".replace("//", "/"),
]
NO_REWARD = [
    f"{'9' * 400}*5=45\n7-3=4\n45+4=49",
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
    with pytest.raises(ValueError, match="expected a problem like '\\d+( \\d+)+ -> \\d+'|words end at 50"):
        task.parse(text)


# ---------------------------------------------------------------------------------------------------------------------
# Trees and chains


def walks(B: int, length: int) -> list[str]:
    return ["".join(map(str, w)) for w in itertools.product(range(B), repeat=length)]


@pytest.mark.parametrize(("B", "horizon", "fork"), [(2, 6, 0), (3, 5, 2), (3, 3, 3)])
def test_a_tree_has_one_good_leaf_and_a_fork_leads_to_half_of_it(B, horizon, fork):
    """A second good leaf; a demonstration that never leaves the best path, or leaves it elsewhere."""
    for seed in range(20):
        tree = TASKS["tree"](horizon=horizon, B=B, fork=fork, seed=seed)
        problem = tree.problem(np.random.default_rng(seed))
        assert problem is tree.problem(None) and tree.split("test", 3, 0) == [problem] * 3
        worth = {walk: tree.reward(problem, walk) for walk in walks(B, horizon)}
        demo, (best,) = "".join(problem.demo), [walk for walk, r in worth.items() if r == 1.0]
        assert sorted(worth.values())[:-1] == [0.1] * (B**horizon - 2) + [0.5 if fork else 0.1]
        assert worth[demo] == tree.best(problem) == (0.5 if fork else 1.0)
        apart = [h for h in range(horizon) if demo[h] != best[h]]
        assert apart[:1] == [horizon - fork][:fork]  # where they part
    trees = [TASKS["tree"](seed=seed) for seed in (0, 0, 1)]
    assert trees[0].leaves == trees[1].leaves != trees[2].leaves


@pytest.mark.parametrize(("B", "horizon", "free"), [(2, 6, 0), (3, 4, 0), (2, 4, 1), (3, 2, 1)])
def test_of_a_chains_answers_one_in_B_to_the_H_is_right(B, horizon, free):
    """A step that is not checked makes the wall lower; one that a right answer fails, higher."""
    chain, rng = Chain(horizon=horizon, B=B, free=free), np.random.default_rng(0)
    for _ in range(10):
        problem = chain.problem(rng)
        assert chain.reward(problem, "".join(problem.demo)) == chain.best(problem) == 1.0
        assert len(problem.demo) == horizon and len(chain.encode(problem.prompt)) == chain.prompt_tokens
        worth = [chain.reward(problem, walk) for walk in walks(B, horizon * (1 + free))]
        assert worth.count(1.0) == B ** (horizon * free) and worth.count(0.1) == len(worth) - worth.count(1.0)


def test_chains_by_hand():
    chain, parities = Chain(horizon=4, B=4), Chain(horizon=3, B=2, free=1)
    assert chain.reward(chain.parse("3102"), "3002") == 1.0  # 3, 3+1, 0+0, 0+2 modulo 4
    assert chain.reward(chain.parse("3102"), "3003") == chain.reward(chain.parse("3102"), "2002") == 0.1
    assert parities.reward(parities.parse("101"), "011010") == 1.0  # y z: 0+1, 1+1+0, then 1+0+1 = 0 modulo 2
    assert parities.reward(parities.parse("101"), "001010") == 0.1


@pytest.mark.parametrize("name", ["tree", "chain"])
def test_what_is_no_walk_earns_nothing(name):
    task = TASKS[name](horizon=4, B=4)
    problem = task.problem(np.random.default_rng(0))
    right = "".join(problem.demo)
    for text in ("", right[:-1], right + "0", right + "\n", right[:-1] + "4", right[:-1] + "٣", "0" * 10_000_000):
        assert task.reward(problem, text) == 0.0
    assert sum(task.units(problem), []) == task.encode(right) and task.writable == 4
    assert max(task.encode(right)) < task.writable <= min(task.end, task.pad, *task.encode("\n"))


def test_chain_splits_share_no_problem():
    chain = Chain(horizon=6)
    sizes = {"pool": 1000, "validation": 200, "test": 500}
    prompts = {name: {p.prompt for p in chain.split(name, n, 0)} for name, n in sizes.items()}
    assert {name: len(p) for name, p in prompts.items()} == sizes
    for a, b in itertools.combinations(prompts, 2):
        assert not prompts[a] & prompts[b]


@pytest.mark.parametrize("text", ["", "312", "31024", "3104", "31x2"])
def test_malformed_chain_is_a_clear_error(text):
    with pytest.raises(ValueError, match="expected a problem like"):
        Chain(horizon=4, B=4).parse(text)
