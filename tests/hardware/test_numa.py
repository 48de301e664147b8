"""NUMA nodes from a made-up sysfs."""

from pathlib import Path

from moecap.hardware.numa import numa_nodes
from moecap.records import NumaNode


def _node(root: Path, index: int, cpus: str, mem_total_kb: int | None) -> None:
    folder = root / f"node{index}"
    folder.mkdir()
    (folder / "cpulist").write_text(f"{cpus}\n")
    if mem_total_kb is not None:
        (folder / "meminfo").write_text(
            f"\nNode {index} MemTotal:       {mem_total_kb} kB\nNode {index} MemFree:        17 kB\n"
        )


def test_nodes_come_by_index_with_their_cpus_and_memory(tmp_path: Path) -> None:
    _node(tmp_path, 10, "", 98_304)  # memory alone, as a superchip's GPU shows
    _node(tmp_path, 0, "0-15,32-47", 131_072)
    _node(tmp_path, 1, "16-31,48-63", None)
    (tmp_path / "possible").write_text("0-10\n")
    assert numa_nodes(tmp_path) == (
        NumaNode(index=0, cpus="0-15,32-47", memory_bytes=131_072 * 1024),
        NumaNode(index=1, cpus="16-31,48-63", memory_bytes=None),
        NumaNode(index=10, cpus="", memory_bytes=98_304 * 1024),
    )


def test_a_kernel_that_shows_none_has_none(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path / "node") == ()
