"""What is recommended, for times of our choice."""

from __future__ import annotations

from prunegate.bench import advise
from tests.bench.made import made_bench, timing


def test_fastest_model_and_its_gain_over_the_dense_one() -> None:
    bench = made_bench({("dense", 1): timing(10), ("small", 1): timing(4, 0.2)})
    advice = advise(bench)
    assert advice.lines == ["Batch 1: fastest is small, 4.00 ms; 2.50 × as fast as dense, 10.0 ms."]
    assert advice.as_dict()["fastest"][0]["speedup_over_dense"] == 2.5


def test_dense_model_counts_in_its_own_fastest_setting() -> None:
    bench = made_bench(
        {("dense", 1): timing(10), ("small", 1): timing(4)},
        runtimes={"compiled": {("dense", 1): timing(6), ("small", 1): timing(5)}},
    )
    (line,) = advise(bench).lines
    assert line == "Batch 1: fastest is small (eager), 4.00 ms; 1.50 × as fast as dense (compiled), 6.00 ms."


def test_compact_model_that_is_not_faster_is_told_with_a_remedy() -> None:
    bench = made_bench(
        {("dense", 1): timing(10), ("small", 1): timing(11), ("dense", 16): timing(9), ("small", 16): timing(9)}
    )
    advice = advise(bench)
    told, remedy = advice.not_faster
    assert told == (
        "small is NOT faster than its dense model dense at batch 1 (11.0 against 10.0 ms) and at batch 16 "
        "(9.00 against 9.00 ms)."
    )
    assert "gates.round_to" in remedy
    assert "latency budget" in remedy
    assert advice.batches[0].text == "Batch 1: fastest is dense, 10.0 ms."
    assert advice.batches[1].text.endswith("As fast within the noise: small.")


def test_faster_means_beyond_the_noise() -> None:
    steady = made_bench({("dense", 1): timing(10, 1.8), ("small", 1): timing(9, 1.0)})
    assert "NOT faster" in advise(steady).not_faster[0]
    noisy = made_bench({("dense", 1): timing(10, 5.0), ("small", 1): timing(9, 1.0)})
    (told,) = advise(noisy).not_faster
    assert told.startswith(
        "Too noisy to tell whether it is faster than the dense model: small at batch 1 (9.00 against 10.0 ms)."
    )
    clear = made_bench({("dense", 1): timing(10, 5.0), ("small", 1): timing(5, 1.0)})
    assert not advise(clear).not_faster


def test_rows_that_were_not_run_are_left_out() -> None:
    bench = made_bench(
        {("dense", 1): "it does not run", ("small", 1): timing(4), ("dense", 16): "no", ("small", 16): "no"}
    )
    assert advise(bench).lines == ["Batch 1: fastest is small, 4.00 ms."]
