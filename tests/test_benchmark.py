"""The programs that measure speed, where they can be checked without measuring any."""

import gzip
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax._src.interpreters.pxla import xb
from running import ROOT, script

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
