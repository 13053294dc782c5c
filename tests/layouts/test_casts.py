"""Numbers that change their type: the reference against independent formulas, both backends against the contract."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from kvlingua.layouts import DTYPES, Geometry, LayoutError, Plane, Rope, convert
from kvlingua.layouts.convert import Backend
from kvlingua.layouts.geometry import Per
from kvlingua.layouts.rounding import rounded, values
from tests.layouts.planes_of_tensors import DTYPES as TORCH
from tests.layouts.planes_of_tensors import Tensors, empty, random_numbers, view

BACKENDS: tuple[Backend, ...] = ("native", "torch")
FLOATS = ("float32", "float16", "bfloat16")
FP8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
NAN = {
    "float32": 0x7FC00000,
    "float16": 0x7E00,
    "bfloat16": 0x7FC0,
    "float8_e4m3fn": 0x7F,
    "float8_e4m3fnuz": 0x80,
    "float8_e5m2": 0x7F,
}
UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}
ALL_BITS = {
    name: torch.arange(1 << (8 * DTYPES[name].itemsize), dtype=torch.int64).to(UNSIGNED[DTYPES[name].itemsize])
    for name in ("float16", "bfloat16", *FP8)
}


def codes(dtype: str) -> torch.Tensor:
    """Every number of a type of 1 or 2 bytes, as bits that the reference takes."""
    return ALL_BITS[dtype].view(torch.uint8 if dtype in FP8 else torch.int16)


# --- the definition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL_BITS)
def test_every_number_of_a_type_is_read_as_torch_reads_it(dtype: str) -> None:
    ours, theirs = values(codes(dtype), dtype), codes(dtype).view(TORCH[dtype]).to(torch.float32)
    assert torch.equal(ours.isnan(), theirs.isnan())
    numbers = ~ours.isnan()
    assert torch.equal(ours[numbers].view(torch.int32), theirs[numbers].view(torch.int32))  # the sign of 0 too
    assert int(ours[numbers & ours.isfinite()].max() == DTYPES[dtype].largest)
    assert float(ours[ours > 0].min()) == DTYPES[dtype].smallest


def numbers_to_round(dtype: str) -> torch.Tensor:
    """All numbers of 16 bits, all ties of an fp8 type and their neighbours, and large, small and special ones."""
    every = torch.cat([values(codes("float16"), "float16"), values(codes("bfloat16"), "bfloat16")])
    held = values(codes(dtype), dtype) if dtype in FP8 else torch.tensor([1.0, 2.0])
    held = held[held.isfinite()].sort().values
    ties = (held[1:] + held[:-1]) / 2
    up, down = (torch.nextafter(ties, torch.tensor(to)) for to in (math.inf, -math.inf))
    return torch.cat([every, ties, up, down, held * 1.01, held * 0.99, torch.tensor([math.nan, 3.4e38, 1e-45])])


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_the_nearest_number_even_at_ties(dtype: str) -> None:
    """By distance to all 256 numbers, without any arithmetic on bits."""
    numbers = numbers_to_round(dtype)
    table = values(codes(dtype), dtype).to(torch.float64)
    finite = [code for code in range(256) if math.isfinite(table[code])]
    # Even codes first, so that the first of two nearest ones is the even one; -0 is told from 0 below.
    order = torch.tensor(sorted((code for code in finite if code != 0x80), key=lambda code: (code % 2, code)))
    want = []
    for part in numbers.to(torch.float64).nan_to_num(nan=0.0).clamp(-(2**20), 2**20).split(1 << 14):
        want.append(order[(part[:, None] - table[order][None, :]).abs().argmin(dim=1)])
    code = torch.cat(want)
    if dtype != "float8_e4m3fnuz":
        code = torch.where((code == 0) & torch.signbit(numbers), 0x80, code)
    code = torch.where(numbers.isnan(), NAN[dtype], code)
    assert torch.equal(rounded(numbers, dtype).to(torch.int64), code)


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_is_what_torch_rounds_to_where_torch_does_not_overflow(dtype: str) -> None:
    numbers = numbers_to_round(dtype)
    numbers = numbers[numbers.abs() <= DTYPES[dtype].largest]
    assert len(numbers) > 50_000
    theirs = numbers.to(TORCH[dtype]).view(torch.uint8)
    assert torch.equal(rounded(numbers, dtype), theirs)


def test_float16_and_bfloat16_are_what_ieee_says() -> None:
    numbers = numbers_to_round("float8_e5m2")
    numbers = torch.cat([numbers, torch.nextafter(numbers, torch.tensor(0.0))])
    numbers = numbers[~numbers.isnan()]
    half = rounded(numbers, "float16").to(torch.int64) & 0xFFFF
    for number, bits in list(zip(numbers.tolist(), half.tolist(), strict=True))[::7]:
        try:
            (want,) = struct.unpack("<H", struct.pack("<e", number))
        except OverflowError:
            want = 0xFC00 if number < 0 else 0x7C00
        assert bits == want, number
    word = numbers.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    want16 = (word + 0x7FFF + (word >> 16 & 1)) >> 16
    assert torch.equal(rounded(numbers, "bfloat16").to(torch.int64) & 0xFFFF, want16)


@pytest.mark.parametrize("dtype", NAN)
def test_any_nan_becomes_one(dtype: str) -> None:
    nans = torch.tensor([0x7FC00000, 0x7F800001, -1, -4194304, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    mask = (1 << 8 * DTYPES[dtype].itemsize) - 1
    assert {bits & mask for bits in rounded(nans, dtype).tolist()} == {NAN[dtype]}


# --- conversions --------------------------------------------------------------------------------------------------

EXACT = {
    ("float16", "float32"),
    ("bfloat16", "float32"),
    *((fp8, wider) for fp8 in FP8 for wider in FLOATS),
}


def kv(dtype: str, scales: Per | None = None) -> Geometry:
    return Geometry.kv(2, 3, 16, dtype, 8, scales=scales)


def every_number(dtype: str) -> Tensors:
    """All numbers of a type of 1 or 2 bytes (of float32 those with 16 bits at either end), NaN among them."""
    if dtype == "float32":
        bits = torch.cat([torch.arange(1 << 16) << 16, torch.arange(1 << 16)]).to(torch.int32)
    else:
        bits = codes(dtype)
    geometry = Geometry.kv(2, 3, 16, dtype, 8)
    tokens = -(-len(bits) // (2 * 3 * 8))
    made = empty(geometry, tokens)
    for name in ("k", "v"):
        flat = made[name].view(bits.dtype).flatten()
        flat[:] = bits.repeat(-(-len(flat) // len(bits)))[: len(flat)]
        made[name] = flat.view(TORCH[dtype]).view(made[name].shape)
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theirs", FLOATS + FP8)
@pytest.mark.parametrize("ours", FLOATS + FP8)
def test_every_number_of_a_type_into_every_type(ours: str, theirs: str, backend: Backend) -> None:
    source = every_number(ours)
    target = empty(kv(theirs), source["k"].shape[2])
    before = target["k"].view(torch.uint8).clone()
    if ours != theirs and (ours, theirs) not in EXACT:
        with pytest.raises(LayoutError, match=f"lose precision from {ours} to {theirs}: .*allow_lossy=True"):
            convert(view(kv(ours), source), view(kv(theirs), target), backend=backend)
        assert torch.equal(target["k"].view(torch.uint8), before)
    convert(view(kv(ours), source), view(kv(theirs), target), backend=backend, allow_lossy=ours != theirs)
    for name in ("k", "v"):
        bits = target[name].view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[DTYPES[theirs].itemsize])
        if ours == theirs:
            assert torch.equal(bits, source[name].view(bits.dtype))
            continue
        numbers = source[name].to(torch.float32)
        assert torch.equal(bits, rounded(numbers, theirs))
        if (ours, theirs) in EXACT:
            assert torch.equal(target[name].to(torch.float32).nan_to_num(7.5), numbers.nan_to_num(7.5))


def half_steps(dtype: str) -> tuple[float, float]:
    """Greatest error of a rounding to a type: relative, and absolute near zero."""
    return 2.0 ** -(DTYPES[dtype].mantissa + 1), DTYPES[dtype].smallest / 2


PRODUCTS = 3 * 2.0**-24  # up to three products, each rounded to float32, and a reciprocal


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scales", ["token", "head", "tensor"])
@pytest.mark.parametrize("dtype", FP8)
def test_fp8_with_scales_into_numbers_without(dtype: str, scales: Per, backend: Backend) -> None:
    for theirs in ("float32", "bfloat16", "float16", "float8_e4m3fn"):
        source, target = random_numbers(kv(dtype, scales), 9, size=30.0), empty(kv(theirs), 9)
        with pytest.raises(LayoutError, match=f"from {dtype} with scales per {scales} to {theirs}"):
            convert(view(kv(dtype, scales), source), view(kv(theirs), target), backend=backend)
        convert(view(kv(dtype, scales), source), view(kv(theirs), target), backend=backend, allow_lossy=True)
        for name in ("k", "v"):
            want = source[name].to(torch.float64) * source[f"{name}_scale"].to(torch.float64)
            error = (target[name].to(torch.float64) - want).abs()
            relative, absolute = half_steps(theirs)
            assert bool((error <= (want.abs() * (relative + PRODUCTS)).clamp(min=absolute)).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theirs", FP8)
@pytest.mark.parametrize("ours", FLOATS)
def test_scales_per_token_are_made(ours: str, theirs: str, backend: Backend) -> None:
    """The largest number of a head's token becomes the type's largest one, or as near as rounding takes it."""
    source, geometry = random_numbers(kv(ours), 40, size=100.0), kv(theirs, "token")
    k = source["k"]
    k[0, 0, 0] = 0
    k[0, 0, 1, 3] = math.nan
    k[0, 0, 2, 3] = math.inf
    k[0, 0, 3] = 0
    k[0, 0, 3, 5] = -(2.0**-126) if ours != "float16" else 2.0**-24
    target = empty(geometry, 40)
    with pytest.raises(LayoutError, match=f"from {ours} to {theirs} with scales per token"):
        convert(view(kv(ours), source), view(geometry, target), backend=backend)
    convert(view(kv(ours), source), view(geometry, target), backend=backend, allow_lossy=True)
    scale = target["k_scale"]
    assert scale[0, 0, :3].flatten().tolist() == [1.0, 1.0, 1.0]
    assert float(scale[0, 0, 3]) == (1.0 if ours != "float16" else 2.0**-24 / torch.tensor(DTYPES[theirs].largest))
    assert int(target["k"].view(torch.uint8)[0, 0, 1, 3]) == NAN[theirs]
    assert float(target["k"][0, 0, 2, 3]) == DTYPES[theirs].largest
    for name in ("k", "v"):
        good = torch.ones(source[name].shape[:3], dtype=torch.bool)
        good[0, 0, :4] = name == "v"
        numbers, scale = source[name][good].to(torch.float32), target[f"{name}_scale"][good]
        largest = numbers.abs().amax(dim=-1, keepdim=True)
        assert torch.equal(scale, largest / torch.full_like(largest, DTYPES[theirs].largest))
        got = target[name][good].to(torch.float64)
        assert torch.equal(got.abs().amax(dim=-1), torch.full((len(got),), DTYPES[theirs].largest, dtype=torch.float64))
        relative, absolute = half_steps(theirs)
        error = (got * scale.to(torch.float64) - numbers.to(torch.float64)).abs()
        bound = (numbers.abs().to(torch.float64) * (relative + 2 * PRODUCTS)).maximum(absolute * scale * (1 + PRODUCTS))
        assert bool((error <= bound).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_mi300s_numbers_and_everybody_elses(backend: Backend) -> None:
    """One code means half as much in e4m3fnuz: numbers are halved, scales doubled, the values stay."""
    kinds: tuple[Per, ...] = ("token", "head", "tensor")
    for scales in kinds:
        fn, fnuz = kv("float8_e4m3fn", scales), kv("float8_e4m3fnuz", scales)
        source = every_number("float8_e4m3fn")
        tokens = source["k"].shape[2]
        source |= {name: each for name, each in random_numbers(fn, tokens).items() if name.endswith("scale")}
        target, back = empty(fnuz, tokens), empty(fn, tokens)
        convert(view(fn, source), view(fnuz, target), backend=backend)  # exact, so it needs no leave
        for name in ("k", "v"):
            assert torch.equal(target[f"{name}_scale"], source[f"{name}_scale"] * 2)
            want = (source[name].to(torch.float32) * source[f"{name}_scale"]).nan_to_num(7.5)
            assert torch.equal((target[name].to(torch.float32) * target[f"{name}_scale"]).nan_to_num(7.5), want)
        with pytest.raises(LayoutError, match="lose precision from float8_e4m3fnuz with scales"):
            convert(view(fnuz, target), view(fn, back), backend=backend)
        convert(view(fnuz, target), view(fn, back), backend=backend, allow_lossy=True)
        for name in ("k", "v"):
            assert torch.equal(back[f"{name}_scale"], source[f"{name}_scale"])
            same = source[name].to(torch.float32).nan_to_num(7.5)
            assert torch.equal(back[name].to(torch.float32).nan_to_num(7.5), same)
    everything, target = every_number("float8_e4m3fnuz"), empty(fn, tokens)
    everything |= {name: each for name, each in random_numbers(fnuz, tokens).items() if name.endswith("scale")}
    convert(view(fnuz, everything), view(fn, target), backend=backend, allow_lossy=True)
    ours, theirs = everything["k"].to(torch.float32), target["k"].to(torch.float32)
    differ = (ours * 2 != theirs) & ~ours.isnan()
    assert set(ours[differ].abs().tolist()) == {240.0}
    assert set(theirs[differ].abs().tolist()) == {448.0}


@pytest.mark.parametrize("backend", BACKENDS)
def test_e5m2_and_e4m3_with_scales_fill_each_others_range(backend: Backend) -> None:
    five, four = kv("float8_e5m2", "token"), kv("float8_e4m3fn", "token")
    source, target, back = random_numbers(five, 9, size=8000.0), empty(four, 9), empty(five, 9)
    convert(view(five, source), view(four, target), backend=backend, allow_lossy=True)
    assert torch.equal(target["k_scale"], source["k_scale"] * 128)
    assert torch.equal(
        target["k"].to(torch.float32), (source["k"].to(torch.float32) / 128).to(torch.float8_e4m3fn).float()
    )
    convert(view(four, target), view(five, back), backend=backend, allow_lossy=True)
    assert torch.equal(back["k_scale"], source["k_scale"])
    kept = source["k"].to(torch.float32).abs() >= 2.0**-6 * 128  # smaller ones are subnormal in e4m3
    assert torch.equal(back["k"].to(torch.float32)[kept], source["k"].to(torch.float32)[kept])


def test_scales_are_not_made_while_dims_are_permuted_in_pieces() -> None:
    """16 of 24 dims rotated: two pieces, and the largest number is of both. In two steps it works."""
    half, pairs = Rope("half", 16), Rope("interleaved", 16)
    ours, same = (Geometry.kv(1, 2, 24, "float16", rope=rope) for rope in (pairs, half))
    theirs = Geometry.kv(1, 2, 24, "float8_e5m2", scales="token", rope=half)
    source, middle, target = random_numbers(ours, 3), empty(same, 3), empty(theirs, 3)
    with pytest.raises(LayoutError, match="k can't be made while its dims are permuted in 2 pieces: convert in two"):
        convert(view(ours, source), view(theirs, target), allow_lossy=True)
    convert(view(ours, source), view(same, middle))
    convert(view(same, middle), view(theirs, target), allow_lossy=True)
    whole = Geometry.kv(1, 2, 24, "float16", rope=Rope("interleaved", 24))
    other = Geometry.kv(1, 2, 24, "float8_e5m2", scales="token", rope=Rope("half", 24))
    convert(view(whole, source), view(other, target), allow_lossy=True)  # one piece


# --- bytes of forms that aren't read ------------------------------------------------------------------------------


def blocked_fp4(per_scale: int = 16, width: int = 8) -> Geometry:
    numbers = [Plane(name, width, "float4_e2m1fn_x2") for name in ("k", "v")]
    scales = [Plane(f"{name}_scale", 2 * width // per_scale, "uint8") for name in ("k", "v")]
    return Geometry(2, 3, (*numbers, *scales))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp4_is_moved_with_its_block_scales(backend: Backend) -> None:
    geometry = blocked_fp4()
    source, target = empty(geometry, 9), empty(geometry, 9)
    for index, each in enumerate(source.values()):
        each.copy_(torch.arange(each.numel()).view(each.shape) * 7 + index)
    convert(view(geometry, source), view(geometry, target), backend=backend)
    assert all(torch.equal(source[name], target[name]) for name in source)


@pytest.mark.parametrize(
    "other",
    [
        kv("bfloat16"),
        blocked_fp4(8, 8),
        Geometry(2, 3, tuple(Plane(name, 8, "float4_e2m1fn_x2") for name in ("k", "v"))),
        Geometry(2, 3, tuple(Plane(name, 8, "uint8") for name in ("k", "v"))),
    ],
)
def test_bytes_are_moved_between_equals_or_not_at_all(other: Geometry) -> None:
    other = Geometry(2, 3, tuple(Plane(p.name, p.width if p.is_scale else 8, p.dtype, p.per) for p in other.planes))
    geometry = blocked_fp4()
    for ours, theirs in ((geometry, other), (other, geometry)):
        with pytest.raises(LayoutError, match="only moved, with their scales, between caches that keep both alike"):
            convert(view(ours, empty(ours, 9)), view(theirs, empty(theirs, 9)), allow_lossy=True)
