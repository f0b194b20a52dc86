"""The programs that measure speed, where they can be checked without measuring any."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax._src.interpreters.pxla import xb
from running import ROOT, finish, script, start

CONTENDERS = ROOT / "scripts" / "contenders"


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders from which the programs import each other, as Python's path has them."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.syspath_prepend(CONTENDERS)


@pytest.mark.usefixtures("contenders")
def test_operations_are_counted_for_a_device_whose_client_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """2 m k n for a product, on a GPU too, for each iteration of a loop."""
    operations = script("contenders/our_step_in_a_loop").operations
    monkeypatch.setattr(xb, "using_pjrt_c_api", lambda _: True)  # as of CUDA's

    def powers(a: Array, b: Array) -> Any:
        return lax.scan(lambda carry, _: (carry @ b, None), a, length=3)[0]

    a, b = jnp.ones((20, 30)), jnp.ones((30, 30))
    assert jax.jit(powers).lower(a, b).cost_analysis() is None
    np.testing.assert_equal(operations(powers, a, b), 3 * 2 * 20 * 30 * 30)


@pytest.mark.usefixtures("contenders")
def test_on_an_accelerator_no_contender_is_one_for_cpus() -> None:
    """Whose environment would replace XLA's flags; on a CPU all stay."""
    works, benchmark = script("works"), script("benchmark")
    left_out = set()
    for work in works.everything():
        assert benchmark.on_device(work, "cpu") == work
        kept = benchmark.on_device(work, "NVIDIA H200").contenders
        assert kept[0] == work.contenders[0]
        assert not any(one.environment for one in kept)
        left_out |= {one.name for one in work.contenders} - {one.name for one in kept}
    assert left_out == {
        "the same, each core a device",
        "the same, in huge pages",
        "its matrix products alone, each core a device",
    }


@pytest.mark.usefixtures("contenders")
def test_a_peer_on_another_device_ends_the_benchmark() -> None:
    """Programs that do not say theirs run in our environment."""
    benchmark = script("benchmark")
    square = {benchmark.SQUARE: {"flops": 1.0, "device": "NVIDIA H200"}}
    benchmark.check_devices({"ours": {}, "peer": {"device": "NVIDIA H200"}} | square)
    with pytest.raises(SystemExit, match="peer runs on cpu, the others on NVIDIA H200"):
        benchmark.check_devices({"ours": {}, "peer": {"device": "cpu"}} | square)


@pytest.mark.usefixtures("contenders")
def test_a_gpu_works_while_a_stream_does(tmp_path: Path) -> None:
    """Not while the host waits, nor for the whole of a program, which has its own line."""
    profile = script("profile_step")
    lines = {(1, 1): "Stream #7(Compute)", (1, 2): "Stream #9(Memcpy)", (1, 3): "XLA Modules"}
    lines |= {(2, 1): "python"}
    named = [
        {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for (pid, tid), name in lines.items()
    ]
    spans = [
        (1, 1, "gemm", 10, 5, {"hlo_op": "dot.3"}),
        (1, 2, "MemcpyD2D", 13, 4, {}),
        (1, 1, "CudaGraphExecution", 30, 2, {}),
        (1, 3, "jit_step", 0, 100, {}),
        (2, 1, "wait", 0, 100, {"hlo_op": "dot.3"}),
    ]
    names = "pid", "tid", "name", "ts", "dur", "args"
    events = [{}, *named, *({"ph": "X"} | dict(zip(names, span, strict=True)) for span in spans)]
    file = tmp_path / "a.trace.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    found = profile.operations(str(tmp_path))
    assert [each.name for each in found] == ["dot.3", "MemcpyD2D", "CudaGraphExecution"]
    assert profile.busy(found) == (17 - 10) + 2


def printed(name: str, *flags: Any) -> str:
    """The output of a script on one device of the CPU."""
    done = finish(start((str(ROOT / "scripts" / name),), *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(table: str) -> list[list[str]]:
    """The rows of a table that Rich has drawn."""
    rows = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("contenders")
def test_variants_of_a_step_take_the_same_steps() -> None:
    """To the accuracy that their table prints."""
    flags = "--work", "mlp", "--batch-size", 4, "--steps", 4, "--rounds", 1
    first, *rows = cells(printed("time_variants.py", *flags))
    assert (first[0], first[-1]) == ("as it ships", "the same bytes")
    assert [name for name, *_ in rows] == list(script("time_variants").VARIANTS)
    for name, *_, parameters in rows:
        within = re.fullmatch(r"within (\S+) of the largest", parameters)
        assert parameters == "the same bytes" or (within and float(within[1]) < 1e-4), name


@pytest.mark.slow
def test_seeds_are_timed_in_all_four_ways() -> None:
    flags = "--work", "mlp", "--batch-size", 4, "--seeds", 2, "--steps", 2, "--rounds", 1
    assert [name for name, *_ in cells(printed("time_seeds.py", *flags))] == [
        "one after the other",
        "vmap",
        "lax.map",
        "separate processes",
    ]


@pytest.mark.slow
def test_on_a_cpu_products_have_the_same_errors_at_both_precisions() -> None:
    """Those of float32, in the densities' products and in a network's."""
    rows = re.findall(
        r"^\| (.+?) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$",
        printed("tensorfloat32.py"),
        re.MULTILINE,
    )
    assert rows[-1][0] == "MLP 784-200-200, a network"
    assert len(rows) > 5
    for _, value, gradient, *at_default in rows:
        assert at_default == [value, gradient]
        assert float(value) < 1e-3


@pytest.mark.slow
def test_a_work_of_accelerators_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with the operations of our plain loop; without PyTorch, which is not there."""
    # Many steps are taken, so that fast programs are worth compiling.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    work = "IWAE network, batch 20, k = 50, bfloat16"
    flags = "--rounds", 1, "--seconds", 0.1, "--peers", "none", "--only", work
    table = printed("benchmark.py", *flags)
    assert f"### {work}" in table
    for contender in (r"\*\*vae_jax\*\*, `vae-jax train`", "plain jitted loop of the same model"):
        assert re.search(rf"^\| {contender} \| [\d,]+ / .* \| \d+% \|", table, re.MULTILINE)
    assert re.search(r"An image costs [\d.]+ MFLOP, as XLA counts", table)
