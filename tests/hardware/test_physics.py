"""The catalogue against what silicon can do: dense ratings only, and the ratios that each architecture fixes.

The sparse numbers are the headlines of vendors' datasheets, typed in by hand: none of them may be a rating here.
"""

from dataclasses import replace

import pytest

from moecap.hardware.catalogue import BYTES_PER_TRANSFER, DeviceSpec, catalogue, find_device

# Dense tensor rates as multiples of bfloat16, by architecture. From NVIDIA's and AMD's architecture papers; rates with
# FP32 accumulation, which GeForce chips do at half speed.
AMPERE = {"tfloat32": 0.5, "float16": 1, "int8": 2}
HOPPER_OR_ADA = {"tfloat32": 0.5, "float16": 1, "float8": 2, "int8": 2}
BLACKWELL = {"tfloat32": 0.5, "float16": 1, "float8": 2, "int8": 2, "float4": 4}
BLACKWELL_ULTRA = {"tfloat32": 0.5, "float16": 1, "float8": 2}
FAMILIES: dict[str, tuple[dict[str, float], tuple[str, ...]]] = {
    "Ampere": (
        AMPERE,
        (
            "nvidia-a100-sxm4-80gb", "nvidia-a100-sxm4-40gb", "nvidia-a100-pcie-80gb", "nvidia-a100-pcie-40gb",
            "nvidia-a30-24gb", "nvidia-a10-24gb", "nvidia-a40-48gb", "nvidia-rtx-a5000-24gb", "nvidia-rtx-a6000-48gb",
            "nvidia-hgx-a100-8x80gb-server",
        ),
    ),
    "Ada": (HOPPER_OR_ADA, ("nvidia-rtx-6000-ada-48gb", "nvidia-l4-24gb", "nvidia-l40s-48gb")),
    "Hopper": (
        HOPPER_OR_ADA,
        (
            "nvidia-h100-sxm5-80gb", "nvidia-h100-sxm5-94gb", "nvidia-h100-pcie-80gb", "nvidia-h100-nvl-94gb",
            "nvidia-h200-sxm-141gb", "nvidia-h200-nvl-141gb", "nvidia-h20-96gb", "nvidia-h20-3e-141gb",
            "nvidia-h800-sxm5-80gb", "nvidia-gh200-96gb", "nvidia-gh200-144gb", "nvidia-dgx-h100",
        ),
    ),
    "Blackwell": (
        BLACKWELL,
        (
            "nvidia-b200-sxm-180gb", "nvidia-gb200-186gb", "nvidia-rtx-pro-6000-blackwell-workstation-96gb",
            "nvidia-rtx-pro-6000-blackwell-max-q-96gb", "nvidia-rtx-pro-6000-blackwell-server-96gb",
        ),
    ),
    "Blackwell Ultra": (BLACKWELL_ULTRA, ("nvidia-b300-sxm-288gb", "nvidia-gb300-288gb")),
    "GeForce Ampere": ({"tfloat32": 0.5, "float16": 1, "int8": 4}, ("nvidia-geforce-rtx-3090-24gb",)),
    "GeForce Ada": (
        {"tfloat32": 0.5, "float16": 1, "float8": 2, "int8": 4},
        ("nvidia-geforce-rtx-4090-24gb", "nvidia-geforce-rtx-4090-48gb"),
    ),
    "GeForce Blackwell": (
        {"tfloat32": 0.5, "float16": 1, "float8": 2, "int8": 4, "float4": 8}, ("nvidia-geforce-rtx-5090-32gb",),
    ),
    "GB10": ({"float16": 1, "float8": 2, "float4": 4}, ("nvidia-gb10-dgx-spark-128gb",)),
    "CDNA 2": ({"float16": 1, "int8": 1}, ("amd-mi250x-128gb", "amd-mi250x-gcd-64gb")),
    "CDNA 3": (HOPPER_OR_ADA, ("amd-mi300x-192gb", "amd-mi325x-256gb")),
    "CDNA 4": ({"float16": 1, "float8": 2, "int8": 2, "float4": 4}, ("amd-mi355x-288gb",)),
    "Gaudi 2": ({"float8": 2}, ("intel-gaudi2-96gb",)),
    "Gaudi 3": ({"float8": 1}, ("intel-gaudi3-128gb",)),
}  # fmt: skip

SPARSE = {  # TFLOP/s or TOP/s with 2:4 sparsity, as headlines print them
    "nvidia-a100-sxm4-80gb": {"tfloat32": 312, "bfloat16": 624, "int8": 1248},
    "nvidia-a30-24gb": {"tfloat32": 165, "bfloat16": 330, "int8": 661},
    "nvidia-a10-24gb": {"bfloat16": 250, "int8": 500},
    "nvidia-a40-48gb": {"bfloat16": 299.4, "int8": 598.6},
    "nvidia-rtx-a5000-24gb": {"float16": 222.2},
    "nvidia-rtx-a6000-48gb": {"float16": 309.7},
    "nvidia-rtx-6000-ada-48gb": {"float8": 1457},
    "nvidia-geforce-rtx-4090-24gb": {"float8": 660.6, "int8": 1321},
    "nvidia-l4-24gb": {"tfloat32": 120, "bfloat16": 242, "float8": 485, "int8": 485},
    "nvidia-l40s-48gb": {"tfloat32": 366, "bfloat16": 733, "float8": 1466, "int8": 1466},
    "nvidia-h100-sxm5-80gb": {"tfloat32": 989, "bfloat16": 1979, "float8": 3958, "int8": 3958},
    "nvidia-h100-pcie-80gb": {"tfloat32": 756, "bfloat16": 1513, "float8": 3026, "int8": 3026},
    "nvidia-h100-nvl-94gb": {"tfloat32": 835, "bfloat16": 1671, "float8": 3341, "int8": 3341},
    "nvidia-h200-sxm-141gb": {"tfloat32": 989, "bfloat16": 1979, "float8": 3958, "int8": 3958},
    "nvidia-h200-nvl-141gb": {"tfloat32": 835, "bfloat16": 1671, "float8": 3341},
    "nvidia-h20-96gb": {"bfloat16": 296, "float8": 592},
    "nvidia-b200-sxm-180gb": {"tfloat32": 2200, "bfloat16": 4500, "float8": 9000, "float4": 18000},
    "nvidia-gb200-186gb": {"tfloat32": 2500, "bfloat16": 5000, "float8": 10000, "float4": 20000},
    "nvidia-rtx-pro-6000-blackwell-workstation-96gb": {"float4": 4000},
    "nvidia-rtx-pro-6000-blackwell-max-q-96gb": {"float4": 3511},
    "nvidia-rtx-pro-6000-blackwell-server-96gb": {"float4": 4000},
    "nvidia-geforce-rtx-5090-32gb": {"float4": 3352},
    "nvidia-gb10-dgx-spark-128gb": {"float4": 1000},
    "nvidia-jetson-agx-orin-64gb": {"int8": 170},
    "nvidia-jetson-orin-nx-16gb": {"int8": 60},
    "amd-mi300x-192gb": {"bfloat16": 2614.9, "float8": 5229.8, "int8": 5229.8},
    "amd-mi355x-288gb": {"bfloat16": 5033, "float8": 10066, "int8": 10066},
}
PCIE_X16 = {3: 16e9, 4: 32e9, 5: 64e9, 6: 128e9}
DENSE_BF16_PER_W = 2.6e12
"""Above every chip so far (GB300: 1.8, GB200: 2.1, B200: 2.3), below their sparse headlines."""


@pytest.mark.parametrize(
    ("key", "ratios"), [(key, ratios) for ratios, keys in FAMILIES.values() for key in keys]
)  # fmt: skip
def test_rates_stand_in_the_ratio_that_the_architecture_fixes(key: str, ratios: dict[str, float]) -> None:
    assert _wrong_ratios(find_device(key), ratios) == {}


def test_every_accelerator_with_matrix_rates_has_its_architecture_here() -> None:
    known = {key for _, keys in FAMILIES.values() for key in keys}
    simple = {"intel-arc-pro-b60-24gb"}  # no published architecture ratio
    assert {key for key, spec in catalogue().items() if "bfloat16" in spec.dense_flops_per_s} == known | simple


@pytest.mark.parametrize("key", SPARSE)
def test_no_rating_is_a_sparse_headline(key: str) -> None:
    assert _sparse(find_device(key), SPARSE[key]) == []


@pytest.mark.parametrize("spec", catalogue().values(), ids=lambda spec: spec.key)
def test_rows_are_physically_possible(spec: DeviceSpec) -> None:
    assert _impossible(spec) == []


def test_mistakes_that_others_made_would_be_seen_here() -> None:
    """A sparse bf16, an int8 halved once too often, a unit that isn't there, MB/s for GB/s, the memory of another
    variant, both directions of PCIe, two sockets for one."""
    h100 = find_device("nvidia-h100-sxm5-80gb")
    sparse = _with_rates(h100, bfloat16=1978.9e12)
    assert _sparse(sparse, SPARSE[h100.key]) == ["bfloat16"]
    assert set(_wrong_ratios(sparse, HOPPER_OR_ADA)) == {"tfloat32", "float16", "float8", "int8"}
    assert _impossible(sparse) == ["bfloat16 per watt"]
    assert set(_wrong_ratios(_with_rates(h100, int8=989e12), HOPPER_OR_ADA)) == {"int8"}
    assert _wrong_ratios(_with_rates(h100, float4=4e15), HOPPER_OR_ADA) == {
        "float4": "the architecture has no such unit"
    }
    assert _impossible(replace(h100, memory_bytes_per_s=3350e6)) == ["reading all memory once", "FLOPs per byte"]
    assert _impossible(replace(h100, memory_bytes=40 * 2**30)) == ["memory and the key's label"]
    assert _impossible(replace(h100, pcie_bytes_per_s_per_direction=128e9)) == ["PCIe rate and generation"]
    assert _impossible(replace(find_device("amd-epyc-9654"), memory_bytes_per_s=921.6e9)) == ["channels x 8 B x rate"]


def _with_rates(spec: DeviceSpec, **rates: float) -> DeviceSpec:
    return replace(spec, dense_flops_per_s={**spec.dense_flops_per_s, **rates})


def _wrong_ratios(spec: DeviceSpec, ratios: dict[str, float]) -> dict[str, str]:
    """Dtypes whose rate is over 2.5 % off (datasheets round, down to two digits), missing or too many."""
    rates = {dtype: rate for dtype, rate in spec.dense_flops_per_s.items() if dtype not in ("float32", "bfloat16")}
    # Blackwell Ultra gave up its int8 units and has half as many fp4 units again: no simple ratio.
    extra = {"int8", "float4"} if ratios is BLACKWELL_ULTRA else set()
    base = spec.dense_flops_per_s["bfloat16"]
    wrong = {dtype: "the architecture has no such unit" for dtype in rates.keys() - ratios.keys() - extra}
    for dtype, ratio in ratios.items():
        if rates.get(dtype, 0) / base != pytest.approx(ratio, rel=0.025):
            wrong[dtype] = f"{rates.get(dtype)} is not {ratio} x {base}"
    return wrong


def _sparse(spec: DeviceSpec, headlines: dict[str, float]) -> list[str]:
    """Dtypes whose rating is not half of the sparse headline."""
    return [
        dtype for dtype, tera in headlines.items()
        if spec.dense_flops_per_s[dtype] != pytest.approx(tera * 1e12 / 2, rel=0.05)
    ]  # fmt: skip


def _impossible(spec: DeviceSpec) -> list[str]:
    """What cannot be, by name."""
    rates, watts = spec.dense_flops_per_s, spec.tdp_w
    wrong = []
    if "bfloat16" in rates and watts is not None and rates["bfloat16"] / watts > DENSE_BF16_PER_W:
        wrong.append("bfloat16 per watt")
    if rates.get("float32", 0) > rates.get("bfloat16", rates.get("float16", float("inf"))):
        wrong.append("float32 above bfloat16")
    seconds = (spec.memory_bytes or 0) / (spec.memory_bytes_per_s or 1)
    if spec.memory_bytes and spec.memory_bytes_per_s and spec.kind != "cpu" and not 0.01 <= seconds <= 1:
        wrong.append("reading all memory once")
    if spec.memory_bytes_per_s and "bfloat16" in rates and not 30 <= rates["bfloat16"] / spec.memory_bytes_per_s <= 700:
        wrong.append("FLOPs per byte")
    if spec.memory_channels and spec.memory_transfers_per_s:
        expected = spec.memory_channels * BYTES_PER_TRANSFER * spec.memory_transfers_per_s
        if spec.memory_bytes_per_s != expected:
            wrong.append("channels x 8 B x rate")
    lanes = {"intel-arc-pro-b60-24gb": 8, "nvme-ssd-pcie4-x4": 4, "nvme-ssd-pcie5-x4": 4}.get(spec.key, 16)
    if spec.pcie_gen and spec.pcie_bytes_per_s_per_direction:
        expected = PCIE_X16[spec.pcie_gen] * lanes / 16
        if spec.pcie_bytes_per_s_per_direction != pytest.approx(expected, rel=0.02):
            wrong.append("PCIe rate and generation")
    label = spec.key.rpartition("-")[2]
    if label.endswith("gb") and spec.memory_bytes is not None:
        share = spec.memory_bytes / 2**30 / int(label.removesuffix("gb"))
        if not 0.9 <= share <= 1.0001:  # less for error correction and decimal labels
            wrong.append("memory and the key's label")
    return wrong
