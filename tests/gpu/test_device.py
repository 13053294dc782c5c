"""On a GPU: streams, graphs, pinned memory, one launch and no synchronisation. Bytes are compared by tests/layouts."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kvlingua.layouts import Buffer, Geometry, LayoutError, View, convert, format, gpu
from kvlingua.layouts.pinned import Pinned
from kvlingua.layouts.plan import make_plan
from tests.layouts.kernel_sets import has_device

LAYERS, HEADS, DIM, PAGE, TOKENS = 32, 8, 128, 16, 64
MODEL = Geometry.kv(LAYERS, HEADS, DIM, "bfloat16")


class Engine:
    """Pages of an engine on the GPU, of which some in random order are a sequence's."""

    def __init__(self, tokens: int = TOKENS, seed: int = 1) -> None:
        self.blocks = tokens // PAGE + 3
        self.pages = [torch.empty(self.blocks, PAGE, HEADS, 2 * DIM, device="cuda:0").bfloat16() for _ in range(LAYERS)]
        self.table = random.Random(seed).sample(range(self.blocks), tokens // PAGE)
        self.tokens = tokens
        self.fill(seed)

    def fill(self, seed: int) -> None:
        generator = torch.Generator(device="cuda:0").manual_seed(seed)
        for pages in self.pages:
            pages.normal_(generator=generator)

    @property
    def view(self) -> View:
        buffers = [Buffer.of(pages) for pages in self.pages]
        pool = format("vllm_lbnhc").pool(MODEL, MODEL.full, page=PAGE, blocks=self.blocks, buffers=buffers)
        return pool.view(self.table, 0, self.tokens)

    def wanted(self) -> torch.Tensor:
        """[plane, head, layer, token, dim] of the sequence."""
        rows = torch.stack([pages[self.table] for pages in self.pages])  # layer, block, token, head, K then V
        rows = rows.reshape(LAYERS, self.tokens, HEADS, 2, DIM)
        return rows.permute(3, 2, 0, 1, 4).contiguous()


def canonical(buffer: Buffer, tokens: int = TOKENS) -> View:
    pool = format("canonical").pool(MODEL, MODEL.full, page=tokens, blocks=1, buffers=[buffer])
    return pool.view([0], 0, tokens)


@pytest.fixture(autouse=True, params=["default stream", "stream of its own"])
def queue(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch's current stream in all that a test does: the default one takes other ways of the run time's.

    Devices are asked for here, not by a mark: that would load kernels at import, and FIRST_IN_A_CAPTURE imports this.
    """
    if not has_device():
        pytest.skip("no GPU here, or no kernels for it")
    with torch.cuda.stream(torch.cuda.Stream() if "own" in request.param else torch.cuda.default_stream()):
        yield
        torch.cuda.synchronize()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def chunk() -> torch.Tensor:
    return torch.zeros(2, HEADS, LAYERS, TOKENS, DIM, dtype=torch.bfloat16, device="cuda:0")


@pytest.fixture
def pinned() -> Iterator[Pinned]:
    library = gpu.here().library
    assert library is not None
    memory = Pinned(library, MODEL.block_bytes(MODEL.full, TOKENS), gpu.device(0).pci.decode())
    yield memory
    torch.cuda.synchronize()
    memory.close()


def test_gather_and_scatter(engine: Engine, chunk: torch.Tensor) -> None:
    convert(engine.view, canonical(Buffer.of(chunk)))
    wanted = engine.wanted()
    assert torch.equal(chunk, wanted)
    engine.fill(9)
    convert(canonical(Buffer.of(chunk)), engine.view)
    assert torch.equal(engine.wanted(), wanted)


def test_the_current_stream_and_a_given_one(engine: Engine, chunk: torch.Tensor) -> None:
    """A stream that is kept busy for long: the conversion is behind what it was given before."""
    for given in (False, True):
        stream = torch.cuda.Stream()
        chunk.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            engine.fill(2 + given)
            if not given:
                convert(engine.view, canonical(Buffer.of(chunk)))
        if given:
            convert(engine.view, canonical(Buffer.of(chunk)), stream=stream.cuda_stream)
        stream.synchronize()
        assert torch.equal(chunk, engine.wanted())


def test_a_captured_graph(engine: Engine, chunk: torch.Tensor) -> None:
    """Tables are kept by the graph, though ours are gone by the time it is replayed."""
    convert(engine.view, canonical(Buffer.of(chunk)))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        convert(engine.view, canonical(Buffer.of(chunk)))
    for seed in (5, 6):
        engine.fill(seed)
        chunk.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(chunk, engine.wanted())


@pytest.mark.parametrize("way", [{"stage_bytes": 0}, {"stage_bytes": 1}, {"stage_bytes": 0, "piece_bytes": 256}])
def test_pinned_memory_both_ways(
    engine: Engine, pinned: Pinned, monkeypatch: pytest.MonkeyPatch, way: dict[str, int]
) -> None:
    """By kernels alone, by way of a buffer on the device, and by copy engines alone."""
    usual = gpu.tuned
    monkeypatch.setattr(gpu, "tuned", lambda index: usual(index)._replace(**way))
    convert(engine.view, canonical(pinned.buffer))
    torch.cuda.synchronize()
    host = torch.frombuffer(pinned._map, dtype=torch.bfloat16).view(2, HEADS, LAYERS, TOKENS, DIM)
    wanted = engine.wanted()
    assert torch.equal(host, wanted.cpu())
    engine.fill(7)
    convert(canonical(pinned.buffer), engine.view)
    assert torch.equal(engine.wanted(), wanted)


def test_stages_overlap_and_stay_in_order(engine: Engine, pinned: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer of two parts, one block each: four stages take them in turn, on two streams, again and again."""
    block, usual = MODEL.block_bytes(MODEL.full, PAGE), gpu.tuned
    way = {"stage_bytes": 1, "run_bytes": 0, "piece_bytes": 0, "staging_bytes": 2 * block}
    monkeypatch.setattr(gpu, "tuned", lambda index: usual(index)._replace(**way))
    order = [2, 0, 3, 1]
    pool = format("canonical").pool(MODEL, MODEL.full, page=PAGE, blocks=len(order), buffers=[pinned.buffer])
    host = torch.frombuffer(pinned._map, dtype=torch.bfloat16).view(len(order), 2, HEADS, LAYERS, PAGE, DIM)
    for seed in range(20):
        engine.fill(seed)
        convert(engine.view, pool.view(order, 0, TOKENS))
        torch.cuda.current_stream().synchronize()
        wanted = engine.wanted()
        found = torch.cat([host[number] for number in order], dim=3)
        assert torch.equal(found, wanted.cpu())
        engine.fill(100 + seed)
        convert(pool.view(order, 0, TOKENS), engine.view)
        assert torch.equal(engine.wanted(), wanted)


FIRST_IN_A_CAPTURE = """
import torch
from kvlingua.layouts import LayoutError, convert, gpu
from tests.gpu.test_device import Engine, Buffer, canonical, MODEL, HEADS, LAYERS, TOKENS, DIM
engine = Engine()
chunk = torch.zeros(2, HEADS, LAYERS, TOKENS, DIM, dtype=torch.bfloat16, device="cuda:0")
torch.cuda.synchronize()
assert not gpu._decided, "kernels are loaded already, so this would not be the first conversion"
refused, graph = "", torch.cuda.CUDAGraph()
try:
    with torch.cuda.graph(graph):
        try:
            convert(engine.view, canonical(Buffer.of(chunk)))
        except LayoutError as error:
            refused = str(error)
except RuntimeError:  # a capture that a refusal has spoilt can't be ended
    assert refused
if refused:
    assert "while a graph is captured" in refused, refused
    convert(engine.view, canonical(Buffer.of(chunk)))
else:
    assert not chunk.any(), "it ran instead of being captured"
    graph.replay()
torch.cuda.synchronize()
assert torch.equal(chunk, engine.wanted())
assert gpu.on(0).library is not None
"""


def test_a_first_conversion_in_a_capture() -> None:
    """In a process of its own. It is captured, or refused by name; our kernels do the next one in any case."""
    done = subprocess.run([sys.executable, "-c", FIRST_IN_A_CAPTURE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_bad_block_is_refused_before_launch(engine: Engine, chunk: torch.Tensor) -> None:
    engine.table[1] = engine.blocks
    with pytest.raises(LayoutError, match=f"names block {engine.blocks}"):
        convert(engine.view, canonical(Buffer.of(chunk)))
    assert not chunk.any()


def test_the_fallback_gives_the_same(engine: Engine, chunk: torch.Tensor) -> None:
    convert(engine.view, canonical(Buffer.of(chunk)), backend="torch")
    assert torch.equal(chunk, engine.wanted())


def test_static_scales_are_compared_on_the_device() -> None:
    model = Geometry.kv(2, 2, 64, "float8_e4m3fn", scales="head")
    rows = torch.randint(0, 100, (2, 4, 16, 2, 128), dtype=torch.uint8, device="cuda:0")
    target = torch.zeros(2, 2, 2, 16, 64, dtype=torch.uint8, device="cuda:0")
    scales = {name: [torch.ones(2, device="cuda:0") for _ in range(4)] for name in ("k_scale", "v_scale")}

    def view(layout: str, buffers: list[torch.Tensor], page: int, blocks: int, table: list[int], first: int) -> View:
        fixed = {name: [Buffer.of(one) for one in given[first : first + 2]] for name, given in scales.items()}
        pool = format(layout).pool(
            model, model.full, page=page, blocks=blocks, buffers=[Buffer.of(one) for one in buffers], scales=fixed
        )
        return pool.view(table, 0, 16)

    source = view("vllm_lbnhc", list(rows), 16, 4, [2], 0)
    into = view("hf_static", [target[i, j] for i in range(2) for j in range(2)], 16, 1, [0], 2)
    assert make_plan(source, into).recipe.compares
    convert(source, into)
    torch.cuda.synchronize()
    assert target.any()
    target.zero_()
    scales["v_scale"][3][1] = 2
    torch.cuda.synchronize()
    with pytest.raises(LayoutError, match="v_scale"):
        convert(source, into)
    assert not target.any()
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(LayoutError, match="captured"):
        convert(source, into)
    assert not target.any()


def calls(run: int, engine: Engine, chunk: torch.Tensor) -> Counter[str]:
    """What was called of the run time, and how often, for so many conversions."""
    view, into = engine.view, canonical(Buffer.of(chunk))
    convert(view, into)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(run):
            convert(view, into)
    return Counter({event.key: event.count for event in profiler.key_averages()})


def test_one_launch_and_no_synchronisation(engine: Engine, chunk: torch.Tensor) -> None:
    """A chunk of 64 tokens and 32 layers. What the profiler itself waits for is seen in a run without conversions."""
    idle, busy = calls(0, engine, chunk), calls(20, engine, chunk)
    launches = sum(count for name, count in busy.items() if "LaunchKernel" in name)
    assert launches == 20, busy
    waits = {name: count - idle[name] for name, count in busy.items() if "ynchronize" in name}
    assert not any(waits.values()), waits
    assert not any("emcpy" in name or "alloc" in name.lower() for name in busy if not idle[name]), busy
