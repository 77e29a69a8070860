from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.trace import Trace, TraceEntry
from llmc.runtimes.bench.load.workload import Piece, Work, prompt_work, random_ids, random_work, trace_work


def ids(work: Work) -> list[int]:
    return random_ids(work.pieces, 1000)


def test_random_prompts_have_their_lengths_and_no_two_are_alike() -> None:
    work = random_work(LoadOptions(input_len="10-20", output_len="5"))
    found = [work(point, number) for point in range(2) for number in range(50)]
    assert {len(ids(it)) for it in found} <= set(range(10, 21))
    assert len({len(ids(it)) for it in found}) > 3
    assert {it.output for it in found} == {5}
    assert len({tuple(ids(it)[:8]) for it in found}) == 100
    assert ids(work(1, 7)) == ids(found[57])


def test_another_seed_gives_other_prompts() -> None:
    one, other = (random_work(LoadOptions(seed=seed))(0, 0) for seed in (0, 1))
    assert ids(one) != ids(other)


def test_a_shared_prefix_is_the_same_in_all_and_no_prompt_is_nothing_else() -> None:
    work = random_work(LoadOptions(input_len="8-16", shared_prefix=10))
    found = [ids(work(0, number)) for number in range(30)]
    assert {len(it) for it in found} >= {8, 16}
    assert len({tuple(it[:7]) for it in found}) == 1
    assert len({tuple(it[:10]) for it in found if len(it) > 11}) == 1
    assert len({it[-1] for it in found}) > 20


def test_prompts_come_one_after_the_other_and_begin_again() -> None:
    work = prompt_work(LoadOptions(output_len="3"), ["a", "b"])
    assert [work(0, number) for number in range(3)] == [Work("a", 3), Work("b", 3), Work("a", 3)]


def test_blocks_of_the_same_name_are_the_same_tokens() -> None:
    entries = (
        TraceEntry(0.0, 1300, 4, (7, 8, 9)),
        TraceEntry(1.0, 700, 5, (7, 3)),
        TraceEntry(2.0, 600, 6, (7,)),
        TraceEntry(3.0, 5, 7, prompt="text"),
    )
    work = trace_work(LoadOptions(), Trace("t", "", entries))
    first, second, third = (ids(work(0, number)) for number in range(3))
    assert [len(it) for it in (first, second, third)] == [1300, 700, 600]
    assert first[:512] == second[:512] == third[:512]
    assert first[512:600] not in (second[512:600], third[512:600])
    assert work(0, 3) == Work("text", 7)


def test_a_shorter_piece_is_the_beginning_of_a_longer_one() -> None:
    long, short = (random_ids([Piece((1, 2), length)], 49_152) for length in (500, 77))
    assert short == long[:77]
